"""The options of the evaluating commands (run, sweep, predict), and the refusal of what cannot work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from harness.models.options import COMPARED_BACKENDS, ModelOptions, check_choices, check_model_options, check_numbers
from harness.tasks import SPLITS


@dataclass(frozen=True)
class RunOptions(ModelOptions):
    """The options of `rsg-harness run`; `rsg-harness run --help` describes them."""

    include_path: tuple[Path, ...] = ()
    data: str = "mini"
    tasks: tuple[str, ...] = ("rsg",)
    split: str = "validation"
    limit: int | None = None
    num_fewshot: int | None = None  # None: 0, and the number of its own for a task of lm-eval's
    prompt: str | None = None
    system_instruction: str | None = None
    batch_tokens: int | None = None
    seed: int = 1234
    output: Path | None = None
    resume: bool = False
    command: str = "rsg-harness run"


@dataclass(frozen=True)
class SweepOptions(RunOptions):
    """The options of `rsg-harness sweep`: those of the runs, whose backends are `backends`.

    Attributes:
        backends: Names, each with its arguments after colons: "mlx-q4:group_size=32". The first is the one that the
            others are compared with.
        output: The directories' common start; a backend's name follows.
        corpus: Texts on which the backends' divergence from the first is measured too; None: it is not.
        corpus_limit: This many texts of them; None: all.
    """

    backends: tuple[str, ...] = COMPARED_BACKENDS
    corpus: str | None = None
    corpus_limit: int | None = None
    command: str = "rsg-harness sweep"


@dataclass(frozen=True, kw_only=True)
class PredictOptions(ModelOptions):
    """The options of `rsg-harness predict`.

    Attributes:
        task: The task's name.
        fields: The question: field of the task -> text.
    """

    task: str
    fields: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    include_path: tuple[Path, ...] = ()


def check_run_options(options: RunOptions) -> None:
    """Refuse options that cannot work, before anything is loaded.

    Raises:
        UserError: Names the option and what it takes.
    """
    check_model_options(options)
    check_choices(("--split", options.split, SPLITS))
    check_numbers(
        ("--limit", options.limit, 1),
        ("--num-fewshot", options.num_fewshot, 0),
        ("--batch-tokens", options.batch_tokens, 1),
        ("--seed", options.seed, 0),
    )


def foreign_chat_template(options: RunOptions) -> bool:
    """Return whether lm-eval's own tasks go through the chat template: as there, only where that is asked for."""
    return options.apply_chat_template == "on"
