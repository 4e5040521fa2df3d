"""What a run is asked to do, and the refusal of what cannot work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adapters.registry import BACKENDS, DTYPES, EXECUTIONS, parse_backend_args, pick_execution
from harness.data import SPLITS
from harness.errors import UserError, nearest_hint

# Called with (what, total) when work starts; gives a function to call with the work just done.
Progress = Callable[[str, int], Callable[[int], object]]


@dataclass(frozen=True)
class RunOptions:
    """What the user asked for; see `rsg-harness run --help`."""

    model: str | None = None
    backend: str = "torch"
    backend_args: tuple[str, ...] = ()
    execution: str = "auto"
    dtype: str = "auto"
    data: str = "mini"
    tasks: tuple[str, ...] = ("rsg",)
    split: str = "validation"
    limit: int | None = None
    num_fewshot: int = 0
    prompt: str | None = None
    apply_chat_template: str = "auto"
    batch_tokens: int | None = None
    seed: int = 1234
    output: Path | None = None
    resume: bool = False
    command: str = "rsg-harness run"


def check_options(options: RunOptions) -> None:
    """Refuses what cannot work before anything is loaded.

    Raises:
        UserError: says which option, and what it takes.
    """
    if options.backend not in BACKENDS:
        raise UserError(f"unknown backend {options.backend!r}", nearest_hint(options.backend, BACKENDS, "backends"))
    for name, value, known in (
        ("--execution", options.execution, EXECUTIONS),
        ("--dtype", options.dtype, DTYPES),
        ("--split", options.split, SPLITS),
        ("--apply-chat-template", options.apply_chat_template, ("auto", "on", "off")),
    ):
        if value not in known:
            raise UserError(f"{name} {value!r} is unknown", nearest_hint(value, known, "it takes"))
    for name, number, least in (
        ("--limit", options.limit, 1),
        ("--num-fewshot", options.num_fewshot, 0),
        ("--batch-tokens", options.batch_tokens, 1),
    ):
        if number is not None and number < least:
            raise UserError(f"{name} {number} makes no sense", f"give {least} or more, or leave it out")
    kind = BACKENDS[options.backend]
    pick_execution(kind, options.execution)
    parse_backend_args(kind, list(options.backend_args))
