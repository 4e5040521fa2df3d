"""The log of a training run: log.jsonl, and TensorBoard's events beside it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

from harness.training.validation import ValidationScores

_LINES = "log.jsonl"
_EVENTS = "tensorboard"


class TrainingLog:
    """The open log. Use as a context manager.

    Args:
        work: The run's directory.
        step: Step that training continues from; lines and events after it are dropped.
        writes: False in all processes except the first.
    """

    def __init__(self, work: Path, step: int, writes: bool) -> None:
        self._work, self._step, self._writes = work, step, writes

    def __enter__(self) -> TrainingLog:
        if self._writes:
            from tensorboardX import SummaryWriter

            path = self._work / _LINES
            lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
            kept = [line for line in lines if _step_of(line) <= self._step]
            self._file = path.open("w", encoding="utf-8")
            self._file.writelines(line + "\n" for line in kept)
            self._events = SummaryWriter(str(self._work / _EVENTS), purge_step=self._step + 1)
        return self

    def __exit__(self, *_: object) -> None:
        if self._writes:
            self._file.close()
            self._events.close()

    def step(self, step: int, entry: dict[str, Any]) -> None:
        """Log one step of the optimiser: its `loss` and what else is known of it."""
        if self._writes:
            self._write({"step": step, **entry})
            self._events.add_scalar("train/loss", entry["loss"], step)

    def validation(self, found: ValidationScores) -> None:
        """Log the scores on the validation documents."""
        if not self._writes:
            return
        # The keys of older logs, which scripts compare line by line.
        self._write({"step": found.step, "mean": found.mean, "figures": found.scores})
        self._events.add_scalar("validation/mean", found.mean, found.step)
        for task, metrics in found.scores.items():
            for name, value in metrics.items():
                self._events.add_scalar(f"validation/{task}/{name}", value, found.step)

    def _write(self, entry: dict[str, Any]) -> None:
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()


def copy_log(work: Path, checkpoint: Path) -> None:
    """Copy the log of a finished run into its checkpoint."""
    shutil.copyfile(work / _LINES, checkpoint / "training_log.jsonl")
    shutil.copytree(work / _EVENTS, checkpoint / _EVENTS, dirs_exist_ok=True)


def _step_of(line: str) -> float:
    """Return the step of a line of the log; infinity for one that a kill cut short."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return math.inf
