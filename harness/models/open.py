"""An open model: everything that a verb needs to ask it something."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from adapters.base import Backend
from adapters.registry import BACKENDS, load_backend, parse_backend_args
from harness.files import cached_directory
from harness.models.chat import Template, chat_template
from harness.models.checkpoint import Checkpoint, read_checkpoint, read_heads
from harness.models.heads import Heads
from harness.models.options import ModelOptions, check_model_options
from harness.models.resolve import LocalModel, find_model, provide
from harness.quiet import quiet_libraries


@dataclass(frozen=True)
class OpenModel:
    """A model loaded on a backend.

    Attributes:
        local: The model's files and where they come from.
        backend: What computes.
        heads: Of a multitask checkpoint; None for a plain language model.
        checkpoint: Its description.
        template: The tokenizer's chat template, and whether prompts go through it.
    """

    local: LocalModel
    backend: Backend
    heads: Heads | None
    checkpoint: Checkpoint | None
    template: Template

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


def open_model(options: ModelOptions, local: LocalModel | None = None) -> OpenModel:
    """Load a model on a backend.

    Args:
        options: Which model, which backend, and how it computes.
        local: The model's files, where they have been provided already.

    Raises:
        UserError: The model or backend is not available on this machine, or a file is damaged.
    """
    check_model_options(options)
    if local is None:
        local = provide(find_model(options.model))
    checkpoint = read_checkpoint(local.checkpoint) if local.checkpoint else None
    heads = read_heads(local.checkpoint) if local.checkpoint else None
    with quiet_libraries():
        backend = load_backend(
            options.backend,
            local.path,
            fingerprint=local.fingerprint,
            cached=cached_directory,
            execution=options.execution,
            dtype=options.dtype,
            args=parse_backend_args(BACKENDS[options.backend], list(options.backend_args)),
        )
    return OpenModel(local, backend, heads, checkpoint, chat_template(backend.tokenizer, options.apply_chat_template))
