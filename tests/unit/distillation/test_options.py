"""What may be asked of a teacher."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from harness.distillation.options import DistillOptions, check_options, chosen_tasks
from harness.endpoint.options import read_key
from harness.errors import UserError


def options(**changes: Any) -> DistillOptions:
    return DistillOptions(**{"endpoint": "http://localhost:8000/v1", "teacher": "t", "output": Path("out"), **changes})


def chosen(**changes: Any) -> list[str]:
    return [task.file.name for task in chosen_tasks(options(**changes))]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_only_train_documents_are_sent(split: str) -> None:
    with pytest.raises(UserError, match=f"--split {split}: only train documents are sent to a teacher"):
        check_options(options(split=split))


def test_lidirus_is_left_out_of_a_group_and_refused_by_name(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        found = chosen()
    assert "gen_lidirus" not in found
    assert len(found) == 8
    assert caplog.messages == ["left out: lidirus is a test set and is never sent to a teacher"]
    for name in ("lidirus", "gen_lidirus", "rsg_lidirus", "rsg_gen_lidirus", " LiDiRus"):
        with pytest.raises(UserError, match="lidirus is a test set"):
            chosen(tasks=(name,))


def test_documents_are_written_for_the_small_tasks_alone() -> None:
    assert chosen(generate="examples") == ["gen_rcb", "gen_parus", "gen_rwsd"]
    with pytest.raises(UserError, match="terra has enough documents"):
        chosen(tasks=("terra",), generate="examples")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "trian"}, "--split 'trian' is unknown"),
        ({"api": "responses"}, "--api 'responses' is unknown"),
        ({"generate": "labels"}, "--generate 'labels' is unknown"),
        ({"endpoint": "localhost:8000/v1"}, "is no address"),
        ({"endpoint": "http://[half/v1"}, "is no address"),
        ({"endpoint": "http://localhost:999999/v1"}, "is no address"),
        ({"concurrency": 0}, "--concurrency 0"),
        ({"samples": 0}, "--samples 0"),
        ({"samples": 3, "temperature": 0.0}, "--samples needs a --temperature above 0"),
        ({"temperature": -1.0}, "--temperature -1"),
        ({"timeout": float("nan")}, "--timeout nan"),
        ({"limit": 0}, "--limit 0"),
        ({"price_input": 1.0}, "only one of two prices"),
        ({"generate": "examples", "rationale": True}, "--generate asks for documents"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_options(options(**changes))
    assert message in caught.value.message


def test_sampling_follows_what_is_asked() -> None:
    assert (options().used_temperature(), options().used_max_tokens()) == (0, 24)
    assert options(samples=3).used_temperature() > 0
    assert options(rationale=True).used_max_tokens() > 24
    assert (options(generate="examples", temperature=0.0, max_tokens=7).used_temperature()) == 0


def test_the_key_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", " from-environment\n")
    assert read_key(None) == "from-environment"
    monkeypatch.delenv("OPENAI_API_KEY")
    assert read_key(None) is None
    path = tmp_path / "key"
    path.write_text("from-file\n")
    assert read_key(path) == "from-file"
    for content in ("", "two words", "ключ"):
        path.write_text(content)
        with pytest.raises(UserError, match="holds no API key"):
            read_key(path)
    with pytest.raises(UserError, match="cannot read"):
        read_key(tmp_path / "none")
