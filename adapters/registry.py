"""The backends by name, and how one is loaded. Importing this loads no tensor library."""

from __future__ import annotations

import importlib.util
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.base import Backend, UserError


@dataclass(frozen=True)
class BackendKind:
    """A name for --backend."""

    name: str
    family: str  # "torch" or "mlx"
    device: str = "auto"  # for torch
    bits: int | None = None  # for mlx: quantised
    stored: str | None = None  # for mlx, unquantised: the type of the weights
    summary: str = ""


_KINDS = (
    BackendKind("torch", "torch", summary="PyTorch on the best device there is: cuda, mps or cpu"),
    BackendKind("torch-mps", "torch", "mps", summary="PyTorch on an Apple GPU"),
    BackendKind("torch-cuda", "torch", "cuda", summary="PyTorch on an NVIDIA GPU"),
    BackendKind("torch-cpu", "torch", "cpu", summary="PyTorch on the processor"),
    BackendKind("mlx-fp16", "mlx", stored="float16", summary="MLX, float16 weights"),
    BackendKind("mlx-bf16", "mlx", stored="bfloat16", summary="MLX, bfloat16 weights"),
    BackendKind("mlx-q8", "mlx", bits=8, summary="MLX, 8-bit weights"),
    BackendKind("mlx-q6", "mlx", bits=6, summary="MLX, 6-bit weights"),
    BackendKind("mlx-q4", "mlx", bits=4, summary="MLX, 4-bit weights"),
    BackendKind("mlx-q3", "mlx", bits=3, summary="MLX, 3-bit weights"),
)
BACKENDS: dict[str, BackendKind] = {kind.name: kind for kind in _KINDS}
EXECUTIONS = ("auto", "mlx", "torch")
DTYPES = ("auto", "float32", "bfloat16", "float16")
# --backend-arg NAME=VALUE: what each family takes, and of which type.
BACKEND_ARGS: dict[str, dict[str, type]] = {
    "torch": {"threads": int},
    "mlx": {"group_size": int, "mode": str, "threads": int},
}


def is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def metal_is_there() -> bool:
    """True on an Apple GPU with MLX installed. Loads MLX only on a Mac."""
    if platform.system() != "Darwin" or not is_installed("mlx"):
        return False
    from adapters.mlx_backend import metal_available

    return metal_available()


def pick_execution(kind: BackendKind, wanted: str) -> str:
    """Which library computes: MLX computes itself only where it has a GPU, unless it is told to.

    Raises:
        UserError: MLX is to execute a torch backend.
    """
    if kind.family == "torch":
        if wanted == "mlx":
            raise UserError(f"--execution mlx does not go with --backend {kind.name}", "use an mlx-* backend")
        return "torch"
    if wanted != "auto":
        return wanted
    return "mlx" if metal_is_there() else "torch"


def parse_backend_args(kind: BackendKind, pairs: list[str]) -> dict[str, Any]:
    """NAME=VALUE pairs, checked against what the backend takes.

    Raises:
        UserError: an unknown name, or a value of the wrong type.
    """
    known = BACKEND_ARGS[kind.family]
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
    cache_dir: Path,
    execution: str = "auto",
    dtype: str = "auto",
    args: dict[str, Any] | None = None,
) -> Backend:
    """Loads a model for a backend.

    Args:
        name: a key of BACKENDS.
        model_dir: config.json, tokenizer.json, safetensors.
        fingerprint: of the model, which names its quantised copy in the cache.
        cache_dir: for quantised copies.
        execution, dtype: see EXECUTIONS, DTYPES.
        args: from `parse_backend_args`.

    Raises:
        UserError: what the user asked for is not to be had here.
    """
    kind = BACKENDS[name]
    options = dict(args or {})
    executed_by = pick_execution(kind, execution)
    if "threads" in options:
        import torch

        torch.set_num_threads(options.pop("threads"))
    if kind.family == "torch":
        return _load_torch(kind, model_dir, dtype)
    if not is_installed("mlx"):
        raise UserError(f"--backend {name} needs MLX, which is not installed", "pip install 'mlx[cpu]' mlx-lm")
    from adapters.mlx_weights import ensure_mlx_model

    mlx_dir = ensure_mlx_model(
        model_dir, bits=kind.bits, dtype="bfloat16", cache_dir=cache_dir, fingerprint=fingerprint, **options
    )
    if executed_by == "mlx":
        from adapters.mlx_backend import load_mlx

        return load_mlx(name, mlx_dir, dtype=dtype, stored=kind.stored, options=options)
    return _load_mlx_weights_in_torch(kind, mlx_dir, dtype)


def _load_torch(kind: BackendKind, model_dir: Path, dtype: str) -> Backend:
    from adapters.mlx_weights import quantization_of, read_config
    from adapters.torch_backend import load_torch

    quantised = quantization_of(read_config(model_dir))
    if quantised is not None:
        raise UserError(
            f"{model_dir} holds MLX weights of {quantised['bits']} bits", f"use --backend mlx-q{quantised['bits']}"
        )
    return load_torch(kind.name, model_dir, device=kind.device, dtype=dtype)


def _load_mlx_weights_in_torch(kind: BackendKind, mlx_dir: Path, dtype: str) -> Backend:
    """The MLX backend's weights, computed by PyTorch: its quality figures without its speed."""
    import torch

    from adapters.mlx_weights import dequantized_state, describe_weights, stored_bytes
    from adapters.torch_backend import load_torch, pick_device, pick_dtype

    device = pick_device("auto")
    # bfloat16 cannot hold float16 weights, so these are computed in float32.
    if kind.stored == "float16" and dtype == "auto":
        dtype = "float32"
    computed = pick_dtype(dtype, device)
    computed_name = "bfloat16" if computed is torch.bfloat16 else "float32"
    return load_torch(
        kind.name,
        mlx_dir,
        device=device,
        dtype=computed_name,
        state=dict(dequantized_state(mlx_dir, computed_name, stored=kind.stored)),
        weights=describe_weights(mlx_dir, kind.stored),
        weights_bytes=stored_bytes(mlx_dir, kind.stored),
    )
