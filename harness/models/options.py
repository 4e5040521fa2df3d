"""The options that choose a model and how it computes; every command that opens a model takes them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from adapters.registry import BACKENDS, DTYPES, EXECUTIONS, parse_backend_args, pick_execution
from harness.errors import UserError, nearest_hint

# What a sweep or a divergence goes through; the first is what the others are compared with.
COMPARED_BACKENDS = ("torch", "mlx-fp16", "mlx-q8", "mlx-q6", "mlx-q4", "mlx-q3")
CHAT_TEMPLATE = ("auto", "on", "off")


@dataclass(frozen=True)
class ModelOptions:
    """A model, a backend, and how the backend computes.

    Attributes:
        model: "best", "embedded", a directory, a .gguf file or a repository of the hub; None: "best" where a checkpoint
            is kept, else "embedded".
        backend: A key of `BACKENDS`; "auto": the one that the model's files are made for.
        backend_args: NAME=VALUE pairs that the backend takes.
        execution: The library that computes: one of `EXECUTIONS`.
        dtype: The type of the computation: one of `DTYPES`.
        apply_chat_template: "auto" (where the tokenizer has one), "on" or "off".
    """

    model: str | None = None
    backend: str = "auto"
    backend_args: tuple[str, ...] = ()
    execution: str = "auto"
    dtype: str = "auto"
    apply_chat_template: str = "auto"


def backend_of(spec: str) -> tuple[str, tuple[str, ...]]:
    """Return the backend and its arguments that one of --backends names: "mlx-q4:group_size=32"."""
    name, *arguments = spec.split(":")
    return name, tuple(arguments)


def check_model_options(options: ModelOptions) -> None:
    """Refuse options that cannot work, before anything is loaded.

    Raises:
        UserError: Names the option and what it takes.
    """
    if options.backend != "auto" and options.backend not in BACKENDS:
        raise UserError(f"unknown backend {options.backend!r}", nearest_hint(options.backend, BACKENDS, "backends"))
    check_choices(
        ("--execution", options.execution, EXECUTIONS),
        ("--dtype", options.dtype, DTYPES),
        ("--apply-chat-template", options.apply_chat_template, CHAT_TEMPLATE),
    )
    if options.backend != "auto":
        kind = BACKENDS[options.backend]
        pick_execution(kind, options.execution)
        parse_backend_args(kind, list(options.backend_args))


def check_choices(*options: tuple[str, str | None, Iterable[str]]) -> None:
    """Refuse an (option, value, known values) whose value is not known; None is left out.

    Raises:
        UserError: Names the option and the nearest known value.
    """
    for name, value, known in options:
        if value is not None and value not in known:
            raise UserError(f"{name} {value!r} is unknown", nearest_hint(value, known, "it takes"))


def check_numbers(*options: tuple[str, float | None, float]) -> None:
    """Refuse an (option, number, least) whose number is too small or not finite; None is left out.

    Raises:
        UserError: Names the option and the least number.
    """
    for name, number, least in options:
        if number is not None and (number < least or not math.isfinite(number)):
            raise UserError(f"{name} {number} makes no sense", f"give {least} or more, or leave it out")
