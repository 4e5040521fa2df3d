"""The options of `rsg-harness train`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TrainOptions:
    """The options of `rsg-harness train`.

    Attributes:
        recipe: The name of a bundled recipe, or the path of a .yaml file.
        model: The base model; None: the recipe's.
        weights: The weights to train for; None: the recipe's.
        data: The source of the documents, as `run` takes it.
        start: The checkpoint to continue from; None: train from the base model.
        output: The checkpoint's directory; None: results/checkpoints/RECIPE-rsg.
        resume: Continue the unfinished training to `output`.
        distilled: Directories of a teacher's labels or documents.
        include_path: Directories with tasks of the user's own.
        command: The command line, for the record.
    """

    recipe: str
    model: str | None = None
    weights: str | None = None
    data: str = "mini"
    start: Path | None = None
    output: Path | None = None
    resume: bool = False
    distilled: tuple[Path, ...] = ()
    include_path: tuple[Path, ...] = ()
    command: str = "rsg-harness train"
