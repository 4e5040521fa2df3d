"""The backends by name, and how one is loaded. Importing this loads no tensor library.

A new library is one module with a `Family`, and one line in `FAMILIES`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adapters.base import Backend, BackendKind, CachedDirectory, Family, LoadRequest, UserError
from adapters.gguf_family import GgufFamily
from adapters.mlx_family import MlxFamily
from adapters.torch_family import TorchFamily

FAMILIES: tuple[Family, ...] = (TorchFamily(), MlxFamily(), GgufFamily())
BACKENDS: dict[str, BackendKind] = {kind.name: kind for family in FAMILIES for kind in family.kinds()}
# The backend that needs no weights besides a .gguf file's own.
AS_IT_STANDS = "gguf"
EXECUTIONS = ("auto", *dict.fromkeys(name for family in reversed(FAMILIES) for name in family.executions))
DTYPES = ("auto", "float32", "bfloat16", "float16")


def pick_execution(kind: BackendKind, wanted: str) -> str:
    """Return the library that computes; "auto" is what suits this machine.

    Raises:
        UserError: The wanted library cannot compute this backend.
    """
    if wanted == "auto":
        return kind.family.default_execution()
    if wanted not in kind.family.executions:
        able = ", ".join(f"{family.name}-*" for family in FAMILIES if wanted in family.executions)
        raise UserError(f"--execution {wanted} does not go with --backend {kind.name}", f"use one of {able}")
    return wanted


def parse_backend_args(kind: BackendKind, pairs: list[str]) -> dict[str, Any]:
    """Parse NAME=VALUE pairs and check them against what the backend takes.

    Raises:
        UserError: An unknown name, or a value of the wrong type.
    """
    known = kind.family.arguments
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or name not in known:
            raise UserError(
                f"--backend-arg {pair!r} is not for {kind.name}", f"it takes {', '.join(known)} as NAME=VALUE"
            )
        try:
            values[name] = known[name](value)
        except ValueError:
            raise UserError(f"--backend-arg {name} takes a whole number, not {value!r}", f"e.g. {name}=64") from None
    return values


def load_backend(
    name: str,
    model_dir: Path,
    *,
    fingerprint: str,
    cached: CachedDirectory,
    execution: str = "auto",
    dtype: str = "auto",
    args: dict[str, Any] | None = None,
    adapter: Path | None = None,
    gguf: Path | None = None,
) -> Backend:
    """Load a model for a backend.

    Args:
        name: A key of `BACKENDS`.
        model_dir: Holds config.json, tokenizer.json and safetensors.
        fingerprint: Of the model; names conversions of it in the cache.
        cached: Makes directories of the cache, whole or not at all.
        execution: One of `EXECUTIONS`.
        dtype: One of `DTYPES`.
        args: From `parse_backend_args`.
        adapter: Of a model that was trained for this backend's weights; stays beside them.
        gguf: The GGUF file that the model is.

    Raises:
        UserError: The backend or the model cannot be used on this machine.
    """
    kind = BACKENDS[name]
    request = LoadRequest(
        model_dir, fingerprint, cached, pick_execution(kind, execution), dtype, args or {}, adapter, gguf
    )
    return kind.family.load(kind, request)
