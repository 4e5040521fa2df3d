"""An open model: everything that a verb needs to ask it something."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from adapters.base import Backend
from adapters.mlx_weights import GROUP_SIZE, MODE, quantization_of, read_config
from adapters.registry import AS_IT_STANDS, BACKENDS, load_backend, parse_backend_args
from harness.files import cached_directory
from harness.models.chat import Template, chat_template
from harness.models.check import check_backend
from harness.models.checkpoint import Checkpoint, read_checkpoint, read_heads
from harness.models.heads import Heads
from harness.models.options import ModelOptions, check_model_options
from harness.models.resolve import LocalModel, find_model, provide
from harness.quiet import quiet_libraries
from harness.scoring.encoding import TextEncoder

if TYPE_CHECKING:
    from harness.evaluation.language_model import PlannedModel

log = logging.getLogger(__name__)

Options = TypeVar("Options", bound=ModelOptions)


@dataclass(frozen=True)
class OpenModel:
    """A model loaded on a backend.

    Attributes:
        local: The model's files and where they come from.
        backend: What computes.
        heads: Of a multitask checkpoint; None for a plain language model.
        checkpoint: Its description.
        template: The tokenizer's chat template, and whether prompts go through it.
        encoder: Texts to tokens.
        self_check: Largest difference a token, in nats, between our log-probabilities and the library's.
    """

    local: LocalModel
    backend: Backend
    heads: Heads | None
    checkpoint: Checkpoint | None
    template: Template
    encoder: TextEncoder
    self_check: float

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer."""
        return self.backend.tokenizer

    @property
    def name(self) -> str:
        """The model's name in records."""
        return self.local.name

    @property
    def prompts(self) -> dict[str, str]:
        """Task -> the prompt that the checkpoint's head was trained on; empty for a plain language model."""
        return self.checkpoint.prompts() if self.checkpoint else {}

    def lm(self, batch_tokens: int | None = None) -> PlannedModel:
        """Return lm-eval's interface to the model: `lm_eval.simple_evaluate(model=opened.lm(), tasks=[…])`."""
        from harness.evaluation.language_model import PlannedModel

        return PlannedModel(self, batch_tokens)


def with_backend(options: Options, local: LocalModel) -> Options:
    """Return the options with a backend in place of "auto": the one that the model was trained for, MLX's for its
    quantised weights, else torch.

    Raises:
        UserError: What was asked for does not go with this backend.
    """
    if options.backend != "auto":
        return options
    quantised = quantization_of(read_config(local.path))
    backend = f"mlx-q{quantised['bits']}" if quantised else "torch"
    chosen = dataclasses.replace(options, backend=local.apart.backend if local.apart else backend)
    check_model_options(chosen)
    return chosen


def _rounds_otherwise(args: Mapping[str, Any]) -> bool:
    """Return whether a backend's arguments ask for another rounding than its usual one."""
    return (args.get("group_size", GROUP_SIZE), args.get("mode", MODE)) != (GROUP_SIZE, MODE)


def provide_model(options: ModelOptions) -> LocalModel:
    """Return the files of a model, downloaded and converted where necessary.

    Raises:
        UserError: An option that does not fit, no such model, or one that cannot be fetched or converted.
    """
    check_model_options(options)
    return provide(find_model(options.model), weights=options.backend != AS_IT_STANDS)


def open_model(options: ModelOptions, local: LocalModel | None = None) -> OpenModel:
    """Load a model on a backend.

    Args:
        options: Which model, which backend, and how it computes.
        local: The model's files, where they have been provided already.

    Raises:
        UserError: The model or backend is not available on this machine, a file is damaged, or the model's
            log-probabilities are not those of the library's own forward pass.
    """
    check_model_options(options)
    local = local or provide_model(options)
    options = with_backend(options, local)
    checkpoint = read_checkpoint(local.checkpoint) if local.checkpoint else None
    heads = read_heads(local.checkpoint) if local.checkpoint else None
    args = parse_backend_args(BACKENDS[options.backend], list(options.backend_args))
    apart = local.apart
    if apart and (apart.backend != options.backend or _rounds_otherwise(args)):
        apart = None
    with quiet_libraries():
        backend = load_backend(
            options.backend,
            apart.path if apart else local.path,
            fingerprint=apart.fingerprint if apart else local.fingerprint,
            cached=cached_directory,
            execution=options.execution,
            dtype=options.dtype,
            args=args,
            adapter=apart.adapter if apart else None,
            gguf=local.gguf,
        )
    template = chat_template(backend.tokenizer, options.apply_chat_template)
    encoder = TextEncoder(backend.tokenizer, backend.info.vocabulary_size)
    if not encoder.puts_bos and read_config(local.path)["model_type"].startswith("gemma"):
        log.warning("the tokenizer of %s puts no BOS before a text, and Gemma computes badly without it", local.name)
    return OpenModel(local, backend, heads, checkpoint, template, encoder, check_backend(backend, encoder))
