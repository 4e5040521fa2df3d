"""The model that --model and --backend name, ready to answer."""

from __future__ import annotations

from adapters.base import Backend
from adapters.registry import BACKENDS, load_backend, parse_backend_args
from harness.evaluation.options import RunOptions
from harness.files import cache_dir
from harness.models.checkpoint import read_heads
from harness.models.heads import Heads
from harness.models.resolve import LocalModel
from harness.quiet import quiet_libraries


def load_model(model: LocalModel, options: RunOptions) -> tuple[Backend, Heads | None]:
    """The backend that holds the model, and the heads of its checkpoint.

    Args:
        model: on this machine.
        options: which backend; checked.

    Raises:
        UserError: the backend is not to be had here, or the checkpoint is damaged.
    """
    heads = read_heads(model.checkpoint) if model.checkpoint else None
    with quiet_libraries():
        backend = load_backend(
            options.backend,
            model.path,
            fingerprint=model.fingerprint,
            cache_dir=cache_dir() / "mlx",
            execution=options.execution,
            dtype=options.dtype,
            args=parse_backend_args(BACKENDS[options.backend], list(options.backend_args)),
        )
    return backend, heads
