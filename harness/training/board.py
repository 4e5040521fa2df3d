"""TensorBoard's event files of a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.training.trainer import Evaluation


class Board:
    """Writes events beside the log.

    Args:
        directory: for the event files.
        writes: False in processes other than the first.
    """

    def __init__(self, directory: Path, writes: bool) -> None:
        self._directory = directory
        self._writes = writes
        self._writer: Any = None

    def start(self, step: int) -> None:
        """Events after the step that training goes on from are struck out."""
        if self._writes:
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(self._directory), purge_step=step + 1)

    def step(self, step: int, loss: float) -> None:
        if self._writer:
            self._writer.add_scalar("train/loss", loss, step)

    def evaluation(self, evaluation: Evaluation) -> None:
        if self._writer:
            self._writer.add_scalar("validation/mean", evaluation.mean, evaluation.step)
            for task, parts in evaluation.figures.items():
                for metric, value in parts.items():
                    self._writer.add_scalar(f"validation/{task}/{metric}", value, evaluation.step)

    def close(self) -> None:
        if self._writer:
            self._writer.close()
