"""From an official directory with hidden answers to the archive that the leaderboard takes."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest

import harness.data
from tests.integration.command import Command

MINI = Path(harness.data.__file__).parent / "mini"


def without_answers(document: dict[str, object]) -> dict[str, object]:
    """A document as the official test files hold it."""
    document.pop("label", None)
    if "passage" in document and isinstance(document["passage"], dict):
        for question in document["passage"].get("questions", []):
            for answer in question["answers"]:
                answer.pop("label", None)
    for query in document.get("qas", []):  # type: ignore[attr-defined]
        query.pop("answers", None)
    return document


@pytest.fixture
def test_data(tmp_path: Path) -> Path:
    """An official directory: the mini set's validation documents as test files, answers left out."""
    root = tmp_path / "official"
    for task in MINI.iterdir():
        (root / task.name).mkdir(parents=True)
        if task.name == "LiDiRus":
            shutil.copy(task / "LiDiRus.jsonl", root / task.name)
            continue
        lines = (task / "val.jsonl").read_text(encoding="utf-8").splitlines()
        hidden = [json.dumps(without_answers(json.loads(line)), ensure_ascii=False) + "\n" for line in lines]
        (root / task.name / "test.jsonl").write_text("".join(hidden), encoding="utf-8")
    return root


def test_a_run_over_hidden_answers_becomes_the_official_archive(
    rsg_harness: Command, tiny_model: Path, test_data: Path, tmp_path: Path
) -> None:
    done = rsg_harness("run", "--model", tiny_model, "--data", test_data, "--split", "test", "--output", "run")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    assert record["score"] is None
    assert record["tasks"]["terra"]["score"] is None
    assert record["tasks"]["lidirus"]["score"] is not None
    made = rsg_harness("submit", "run", "--output", "submission.zip")
    assert made.returncode == 0, made.stderr
    with zipfile.ZipFile(tmp_path / "submission.zip") as archive:
        assert sorted(archive.namelist()) == sorted(f"{task.name}.jsonl" for task in MINI.iterdir())
        terra = [json.loads(line) for line in archive.read("TERRa.jsonl").decode().splitlines()]
        muserc = [json.loads(line) for line in archive.read("MuSeRC.jsonl").decode().splitlines()]
    assert [line["idx"] for line in terra] == list(range(24))
    assert {line["label"] for line in terra} <= {"entailment", "not_entailment"}
    assert set(muserc[0]["passage"]["questions"][0]["answers"][0]) == {"idx", "label"}


def test_a_run_over_another_split_is_refused(rsg_harness: Command, tiny_model: Path) -> None:
    assert rsg_harness("run", "--model", tiny_model, "--tasks", "terra", "--output", "run").returncode == 0
    refused = rsg_harness("submit", "run")
    assert refused.returncode == 2
    assert "test" in refused.stderr
    assert "Traceback" not in refused.stderr
