"""`rsg-harness train --distilled`, on what `distill` wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.distillation.lines import ANSWERS
from harness.models.checkpoint import read_checkpoint
from tests.integration.training import call, steps_of, write_recipe
from tests.openai_server import TEACHER, Behaviour, OpenAIServer

# They share what was distilled.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("train_distilled")]

TASKS: dict[str, Any] = {"rcb": {}, "parus": {"head": "likelihood"}, "muserc": {"limit": 3}, "rucos": {"limit": 2}}
CHANGES: dict[str, Any] = {"tasks": TASKS, "steps": 4, "evaluate_every": 4, "loss": {"weights": "fixed"}}
NEW = {"premise": "Слово {hash} стоит на доске.", "hypothesis": "Доска {hash} исписана словом {hash}."}


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory, shared_environment: dict[str, str]) -> dict[str, Path]:
    """Labels of four tasks, and documents written for RCB."""
    directory = tmp_path_factory.mktemp("distilled")
    made = {"labels": directory / "labels", "examples": directory / "examples"}
    with OpenAIServer(Behaviour(probability=0.5, texts=("да", "нет", "1"))) as server:
        done = call(
            shared_environment, "distill", "--endpoint", server.url, "--teacher", TEACHER, "--tasks", ",".join(TASKS),
            "--output", made["labels"],
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    with OpenAIServer(Behaviour(texts=(json.dumps(NEW, ensure_ascii=False),))) as server:
        done = call(
            shared_environment, "distill", "--endpoint", server.url, "--teacher", TEACHER, "--tasks", "rcb",
            "--generate", "paraphrases", "--count", "12", "--output", made["examples"],
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    return made


def train(
    environment: dict[str, str], directory: Path, model: Path, *arguments: str | Path, **changes: Any
) -> tuple[str, Path]:
    """Train; return what it said, and the checkpoint."""
    directory.mkdir(exist_ok=True)
    recipe = write_recipe(directory, model, **{**CHANGES, **changes})
    done = call(environment, "train", "--recipe", recipe, "--output", directory / "small", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stderr, directory / "small"


def logged(checkpoint: Path, name: str) -> list[float]:
    return [entry[name] for entry in steps_of(checkpoint / "training_log.jsonl") if "loss" in entry]


def test_soft_labels_and_written_documents_are_trained_on(
    distilled: dict[str, Path], float32_model: Path, shared_environment: dict[str, str], tmp_path: Path
) -> None:
    both = ("--distilled", distilled["labels"], "--distilled", distilled["examples"])
    said, checkpoint = train(shared_environment, tmp_path / "both", float32_model, *both)
    assert "rcb: 24 of 36 questions with a soft label, 12 written" in said
    assert "rcb: 36 train documents" in said
    assert "parus: 24 of 24 questions with a soft label, 0 written" in said
    assert "rucos: 0 of 2 questions" in said  # none was answered with an entity
    assert "left out" not in said
    training = read_checkpoint(checkpoint).training
    assert training.distilled is not None
    assert training.distilled["teachers"] == [TEACHER]
    assert training.distilled["documents"] == {"rcb": 12}
    assert training.documents["rcb"] == 36
    _, again = train(shared_environment, tmp_path / "again", float32_model, *reversed_pairs(both))
    assert logged(again, "loss") == logged(checkpoint, "loss")  # the order of the directories does not matter


def reversed_pairs(arguments: tuple[str | Path, ...]) -> tuple[str | Path, ...]:
    return arguments[2:] + arguments[:2]


def test_the_recipe_decides_how_much_the_teacher_says(
    distilled: dict[str, Path], float32_model: Path, shared_environment: dict[str, str], tmp_path: Path
) -> None:
    losses, norms = {}, {}
    for name, weight, arguments in (
        ("without", 0.5, ()),
        ("none", 0.0, ("--distilled", distilled["labels"])),
        ("half", 0.5, ("--distilled", distilled["labels"])),
        ("only", 1.0, ("--distilled", distilled["labels"])),
    ):
        _, checkpoint = train(
            shared_environment, tmp_path / name, float32_model, *arguments, distillation={"weight": weight}, steps=2
        )
        losses[name], norms[name] = logged(checkpoint, "loss"), logged(checkpoint, "gradient_norm")
    assert losses["none"] == pytest.approx(losses["without"], rel=1e-6)
    assert norms["none"] == pytest.approx(norms["without"], rel=1e-6)
    # The log tells the cross-entropy, which is the same before anything is learned, whatever the weight.
    assert losses["only"][0] == pytest.approx(losses["half"][0]) == pytest.approx(losses["none"][0])
    assert norms["only"][0] != pytest.approx(norms["none"][0], rel=1e-2)
    # The gradient of half the weight is the mean of the other two, so no longer than theirs.
    assert norms["half"][0] <= (norms["none"][0] + norms["only"][0]) / 2 * (1 + 1e-4)
    assert norms["half"][0] != pytest.approx(norms["none"][0], rel=1e-2)


def test_labels_of_other_documents_are_left_out_and_counted(
    distilled: dict[str, Path], float32_model: Path, shared_environment: dict[str, str], tmp_path: Path
) -> None:
    stale = tmp_path / "stale"
    stale.mkdir()
    (stale / "settings.json").write_bytes((distilled["labels"] / "settings.json").read_bytes())
    lines = [json.loads(line) for line in (distilled["labels"] / ANSWERS).read_text(encoding="utf-8").splitlines()]
    for line in [line for line in lines if line["task"] == "rcb"][:5]:
        line["document_sha256"] = "0" * 64
    (stale / ANSWERS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    said, _ = train(shared_environment, tmp_path, float32_model, "--distilled", stale, steps=1)
    assert "warning: rcb: 5 soft labels are left out" in said
    assert "rcb: 19 of 24 questions with a soft label" in said


def test_a_resumed_training_needs_the_same_teacher(
    distilled: dict[str, Path], float32_model: Path, shared_environment: dict[str, str], tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, float32_model, **{**CHANGES, "learning_rate": 1e4, "heads_learning_rate": 1e4,
                                                     "warmup_steps": 0, "schedule": "constant"})  # fmt: skip
    arguments = ("train", "--recipe", recipe, "--output", tmp_path / "out")
    exploded = call(shared_environment, *arguments, "--distilled", distilled["labels"])
    assert exploded.returncode == 2
    assert "the loss or its gradient" in exploded.stderr
    for others in ((), ("--distilled", distilled["examples"])):
        done = call(shared_environment, *arguments, "--resume", *others)
        assert done.returncode == 2
        assert "was started with other settings: distilled" in done.stderr


def test_a_directory_that_is_no_distillation_is_refused(
    float32_model: Path, shared_environment: dict[str, str], tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, float32_model, **CHANGES)
    done = call(
        shared_environment, "train", "--recipe", recipe, "--output", tmp_path / "out", "--distilled", tmp_path
    )  # fmt: skip
    assert done.returncode == 2
    assert f"{tmp_path} holds no settings.json" in done.stderr
    assert not (tmp_path / "out.training" / "settings.json").exists()
