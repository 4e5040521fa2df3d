"""The options of the evaluating commands (run, sweep, predict), and the refusal of what cannot work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType

from harness.endpoint.options import CONCURRENCY, TIMEOUT, check_address
from harness.errors import UserError
from harness.models.options import COMPARED_BACKENDS, ModelOptions, check_choices, check_model_options, check_numbers
from harness.tasks import SPLITS

_ONLY_HERE = ("backend", "backend_args", "execution", "dtype", "batch_tokens")
_ONLY_WITH_ENDPOINT = ("api_key_file", "concurrency", "timeout")


@dataclass(frozen=True)
class RunOptions(ModelOptions):
    """The options of `rsg-harness run`; `rsg-harness run --help` describes them.

    Attributes:
        endpoint: Address of an OpenAI-compatible server; None: the model runs on this machine. With one, `model` is the
            model's name there, and None the only one that is served.
        api_key_file: File that holds the server's key; None: the environment variable.
        concurrency: Requests to the server at a time.
        timeout: Seconds for one of its answers.
    """

    endpoint: str | None = None
    api_key_file: Path | None = None
    concurrency: int = CONCURRENCY
    timeout: float = TIMEOUT
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
    _check_endpoint(options)
    check_choices(("--split", options.split, SPLITS))
    check_numbers(
        ("--limit", options.limit, 1),
        ("--num-fewshot", options.num_fewshot, 0),
        ("--batch-tokens", options.batch_tokens, 1),
        ("--seed", options.seed, 0),
    )


def _check_endpoint(options: RunOptions) -> None:
    """Refuse options of a model on this machine beside --endpoint, and those of an endpoint without one."""
    defaults = {field.name: field.default for field in fields(options)}
    senseless = _ONLY_WITH_ENDPOINT if options.endpoint is None else _ONLY_HERE
    given = [_option(name) for name in senseless if getattr(options, name) != defaults[name]]
    if options.endpoint is None:
        if given:
            raise UserError(f"{given[0]} is for a model behind a server", "name the server with --endpoint")
        return
    if given:
        raise UserError(f"{given[0]} is for a model on this machine, and --endpoint names a server", "leave out one")
    check_address(options.endpoint)
    check_numbers(("--concurrency", options.concurrency, 1), ("--timeout", options.timeout, 0.001))


def _option(field_name: str) -> str:
    return "--" + {"backend_args": "backend-arg"}.get(field_name, field_name).replace("_", "-")


def foreign_chat_template(options: RunOptions) -> bool:
    """Return whether lm-eval's own tasks go through the chat template: as there, only where that is asked for."""
    return options.apply_chat_template == "on"
