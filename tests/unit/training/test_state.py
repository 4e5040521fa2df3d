"""States to resume from: training goes on as if nothing had been, from the latest state that is whole."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.errors import UserError
from harness.training.log import TrainingLog
from harness.training.state import Position, load_state, save_state
from harness.training.validation import ValidationScores

STATE_FILES = ["optimiser.safetensors", "progress.json", "weights.safetensors"]


class Run:
    """A linear model with a measure of its inputs and two heads, the second without a batch before the fifth step."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        shapes = {"layers.0.weight": (6, 5), "head_weight": (3, 6), "late.head": (2, 6)}
        self.parameters = {
            name: torch.nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()
        }
        self.scale = torch.rand(5, generator=generator)  # kept, but not trained
        body, *heads = self.parameters.values()
        self.optimiser = torch.optim.AdamW([{"params": [body], "weight_decay": 0.1}, {"params": heads}], lr=0.05)

    def train(self, first: int, last: int) -> None:
        """The steps from `first` to `last`, whose batches depend on their number alone."""
        body, head, late = self.parameters.values()
        for step in range(first, last + 1):
            inputs = torch.randn(8, 5, generator=torch.Generator().manual_seed(step)) / (0.5 + self.scale)
            loss = (inputs @ body.T @ head.T).square().mean()
            if step >= 5:
                loss = loss + (inputs @ body.T @ late.T).square().mean()
            loss.backward()
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)

    def save(self, work: Path, position: Position) -> None:
        save_state(work, position, self.tensors(), self.optimiser)

    def load(self, work: Path) -> Position:
        return load_state(work, self.tensors(), self.optimiser)

    def tensors(self) -> dict[str, torch.Tensor]:
        return {**self.parameters, "scale": self.scale}

    def bits(self) -> dict[str, bytes]:
        return {name: tensor.detach().numpy().tobytes() for name, tensor in self.tensors().items()}


def saved(work: Path, step: int = 3) -> Run:
    run = Run(seed=1)
    run.train(1, step)
    run.save(work, Position(step=step))
    return run


def states(work: Path) -> list[str]:
    return sorted(path.name for path in work.iterdir())


@pytest.mark.parametrize("step", [3, 5])
def test_a_resumed_run_ends_with_the_very_bits_of_an_undisturbed_one(tmp_path, step):
    undisturbed = Run(seed=1)
    undisturbed.train(1, 7)
    saved(tmp_path, step)
    resumed = Run(seed=2)
    assert resumed.bits() != undisturbed.bits()
    assert resumed.load(tmp_path).step == step
    resumed.train(step + 1, 7)
    assert resumed.bits() == undisturbed.bits()


def test_the_weights_alone_would_not_be_enough(tmp_path):
    """The test above would see an optimiser that starts anew."""
    undisturbed = Run(seed=1)
    undisturbed.train(1, 7)
    forgetful = saved(tmp_path)
    forgetful.optimiser.state.clear()
    forgetful.train(4, 7)
    assert forgetful.bits() != undisturbed.bits()


def test_saving_changes_nothing_in_the_run_that_goes_on(tmp_path):
    undisturbed = Run(seed=1)
    undisturbed.train(1, 7)
    run = saved(tmp_path)
    run.train(4, 7)
    assert run.bits() == undisturbed.bits()


def test_the_position_comes_back_as_it_was(tmp_path):
    position = Position(step=120, best_mean=1 / 3, best_step=100, since_best=2, seconds=0.1 + 0.2)
    Run(seed=1).save(tmp_path, position)
    assert Run(seed=1).load(tmp_path) == position


def test_without_a_state_training_starts_afresh(tmp_path):
    run = Run(seed=1)
    before = run.bits()
    assert run.load(tmp_path) == Position(step=0, best_mean=None, best_step=None, since_best=0, seconds=0.0)
    assert run.bits() == before


def test_a_state_is_safetensors_and_json(tmp_path):
    saved(tmp_path)
    assert sorted(path.name for path in (tmp_path / "state-000003").iterdir()) == STATE_FILES


def test_only_the_latest_state_stays(tmp_path):
    run = saved(tmp_path, 9)
    for step in (10, 100):
        run.save(tmp_path, Position(step=step))
        assert states(tmp_path) == [f"state-{step:06d}"]
    assert Run(seed=1).load(tmp_path).step == 100


def test_the_latest_of_several_states_is_taken(tmp_path):
    """As a kill between the saving of one state and the dropping of the other leaves them."""
    saved(tmp_path / "a", 9)
    saved(tmp_path / "b", 10)
    (tmp_path / "b" / "state-000010").rename(tmp_path / "a" / "state-000010")
    assert Run(seed=1).load(tmp_path / "a").step == 10


def test_what_a_killed_save_left_half_written_is_no_state(tmp_path):
    saved(tmp_path)
    (tmp_path / ".state-000009-abcd").mkdir()
    (tmp_path / ".state-000009-abcd" / "weights.safetensors").write_bytes(b"half")
    assert Run(seed=1).load(tmp_path).step == 3


def test_a_full_disk_leaves_the_state_before(tmp_path, monkeypatch):
    run = saved(tmp_path)
    kept = run.bits()
    run.train(4, 4)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="No space left on device"):
            run.save(tmp_path, Position(step=4))
    assert states(tmp_path) == ["state-000003"]
    again = Run(seed=2)
    assert again.load(tmp_path).step == 3
    assert again.bits() == kept


@pytest.mark.parametrize("name", STATE_FILES)
@pytest.mark.parametrize("damage", ["missing", "empty", "cut short", "other bytes"])
def test_a_damaged_file_is_a_user_error_that_names_the_state(tmp_path, name, damage):
    saved(tmp_path)
    path = tmp_path / "state-000003" / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "cut short": content[:-5], "other bytes": b"\xa5" * len(content)}[damage])
    with pytest.raises(UserError, match="state-000003 is damaged") as caught:
        Run(seed=1).load(tmp_path)
    assert "delete the directory" in caught.value.hint


@pytest.mark.parametrize("content", ["[]", "3", "null", '{"step": 3, "pace": 1}'])
def test_a_position_of_another_form_is_a_user_error(tmp_path, content):
    saved(tmp_path)
    (tmp_path / "state-000003" / "progress.json").write_text(content)
    with pytest.raises(UserError, match="state-000003 is damaged"):
        Run(seed=1).load(tmp_path)


def test_a_state_without_one_of_the_parameters_is_a_user_error(tmp_path):
    saved(tmp_path)
    run = Run(seed=1)
    run.parameters["another"] = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(UserError, match="another"):
        run.load(tmp_path)


# --- the log ----------------------------------------------------------------------------------------------------------


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_log_has_a_line_an_entry_at_once(tmp_path):
    with TrainingLog(tmp_path, 0, True) as log:
        log.step(1, {"loss": 0.5})
        log.validation(ValidationScores(1, 0.25, {"terra": {"rsg": 0.25}}))
        assert entries(tmp_path / "log.jsonl") == [
            {"step": 1, "loss": 0.5},
            {"step": 1, "mean": 0.25, "figures": {"terra": {"rsg": 0.25}}},
        ]


def test_a_resumed_log_drops_what_came_after_the_state(tmp_path):
    with TrainingLog(tmp_path, 0, True) as log:
        for step in range(1, 6):
            log.step(step, {"loss": 0.5, "part": "first"})
    with TrainingLog(tmp_path, 3, True) as log:
        log.step(4, {"loss": 0.5, "part": "second"})
    kept = [(entry["step"], entry["part"]) for entry in entries(tmp_path / "log.jsonl")]
    assert kept == [(1, "first"), (2, "first"), (3, "first"), (4, "second")]


@pytest.mark.parametrize("half", ['{"step": 2, "lo', '{"loss": 1}', "{", ""])
def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path, half):
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n' + half)
    with TrainingLog(tmp_path, 2, True) as log:
        log.step(3, {"loss": 0.5})
    assert entries(tmp_path / "log.jsonl") == [{"step": 1}, {"step": 3, "loss": 0.5}]


def test_a_process_that_does_not_write_leaves_the_log_alone(tmp_path):
    with TrainingLog(tmp_path, 0, False) as log:
        log.step(1, {"loss": 0.5})
        log.validation(ValidationScores(1, 0.25, {}))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "log.jsonl").write_text('{"step": 5}\n')
    with TrainingLog(tmp_path, 0, False) as log:
        log.step(1, {"loss": 0.5})
    assert entries(tmp_path / "log.jsonl") == [{"step": 5}]
