"""The options of `rsg-harness divergence`, and the refusal of what cannot work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.errors import UserError
from harness.models.options import COMPARED_BACKENDS, ModelOptions, backend_of, check_model_options, check_numbers


@dataclass(frozen=True)
class DivergenceOptions:
    """The options of `rsg-harness divergence`.

    Attributes:
        corpus: A file, a directory, hub:NAME, or "rsg": the train texts of `data`.
        model: As `run` takes it.
        backends: Names, each with its arguments after colons; the first is the reference.
        execution: The library that computes.
        dtype: The type of the computation.
        data: The source of the texts of "rsg".
        limit: This many texts of about a thousand characters, evenly spread; None: all.
        seed: Of the choice of texts and of the intervals.
        output: The directory of the record; None: results/divergence/MODEL.
        resume: Continue the unfinished measurement.
        command: The command line, for the record.
    """

    corpus: str = "rsg"
    model: str | None = None
    backends: tuple[str, ...] = COMPARED_BACKENDS
    execution: str = "auto"
    dtype: str = "auto"
    data: str = "mini"
    limit: int | None = None
    seed: int = 1234
    output: Path | None = None
    resume: bool = False
    command: str = "rsg-harness divergence"


def check_divergence_options(options: DivergenceOptions) -> None:
    """Refuse options that cannot work, before anything is loaded.

    Raises:
        UserError: Names the option and what it takes.
    """
    if len(options.backends) < 2 or len(set(options.backends)) != len(options.backends):
        raise UserError(
            f"--backends {','.join(options.backends)!r} does not name two or more, each once",
            "name the reference first: torch,mlx-q8,mlx-q4",
        )
    for spec in options.backends:
        check_model_options(model_options(options, spec))
    check_numbers(("--limit", options.limit, 1), ("--seed", options.seed, 0))


def model_options(options: DivergenceOptions, spec: str) -> ModelOptions:
    """Return how the model is opened on one of the backends. Texts of a corpus go through no chat template."""
    return ModelOptions(options.model, *backend_of(spec), options.execution, options.dtype, apply_chat_template="off")
