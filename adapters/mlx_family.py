"""The MLX backends. Importing this loads no tensor library."""

from __future__ import annotations

import functools
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapters.base import Backend, BackendKind, Family, Finding, LoadRequest, UserError, first_line, is_installed
from adapters.low_rank import LowRank, read_low_rank
from adapters.torch_family import set_threads, torch_problem

_BITS = (8, 6, 5, 4, 3, 2)
_STORED = {"fp16": "float16", "bf16": "bfloat16"}


class MlxFamily(Family):
    """mlx-lm's models; where MLX has no GPU, PyTorch computes with the same weights."""

    name = "mlx"
    executions = ("mlx", "torch")
    arguments: Mapping[str, type] = {"group_size": int, "mode": str, "threads": int}

    def kinds(self) -> tuple[BackendKind, ...]:
        whole = [
            BackendKind(f"mlx-{short}", self, f"MLX, {stored} weights", {"stored": stored})
            for short, stored in _STORED.items()
        ]
        quantised = [BackendKind(f"mlx-q{bits}", self, f"MLX, {bits}-bit weights", {"bits": bits}) for bits in _BITS]
        return (*whole, *quantised)

    def problem(self, kind: BackendKind) -> str:
        if problem := mlx_problem():
            return problem
        return "" if self.default_execution() == "mlx" else torch_problem()

    def default_execution(self) -> str:
        return "mlx" if metal_is_there() else "torch"

    def load(self, kind: BackendKind, request: LoadRequest) -> Backend:
        if not is_installed("mlx"):
            raise UserError(f"--backend {kind.name} needs MLX, which is not installed", "pip install 'mlx[cpu]' mlx-lm")
        set_threads(request.args)
        mlx_dir, args = _mlx_directory(kind, request)
        stored = kind.settings.get("stored")
        adapter = _adapter(request)
        if request.execution == "torch":
            return _load_in_torch(kind.name, mlx_dir, request.dtype, stored, adapter=adapter)
        from adapters.mlx_backend import load_mlx

        return load_mlx(kind.name, mlx_dir, dtype=request.dtype, stored=stored, adapter=adapter, options=args)

    def dtypes(self, kind: BackendKind) -> tuple[str, ...]:
        return ("float32", "bfloat16", "float16") if metal_is_there() else ("float32",)

    def reference(self, kind: BackendKind, request: LoadRequest) -> Backend:
        mlx_dir, _ = _mlx_directory(kind, request)
        stored = kind.settings.get("stored")
        return _load_in_torch(kind.name, mlx_dir, "float32", stored, device="cpu", adapter=_adapter(request))

    def findings(self) -> list[Finding]:
        if problem := mlx_problem():
            extra = "" if platform.system() == "Darwin" else "[cpu]"
            return [Finding("mlx-* backends", problem, f"pip install 'mlx{extra}' mlx-lm")]
        if metal_is_there():
            return [Finding("mlx-* backends", "computed by MLX on Metal")]
        by_torch = "computed by torch, since MLX has no GPU here: the quality is real, the speed is not"
        return [Finding("mlx-* backends", by_torch)]


@functools.cache
def mlx_problem() -> str:
    """Say why MLX cannot be used here; "" where it can."""
    for module, package in (("mlx", "mlx"), ("mlx_lm", "mlx-lm")):
        if not is_installed(module):
            return f"{package} is not installed"
    try:
        import mlx.core  # noqa: F401
    except (ImportError, OSError) as error:
        return f"MLX cannot be loaded: {first_line(error)}"
    return ""


def metal_is_there() -> bool:
    """Return whether this is an Apple GPU with MLX installed. Loads MLX only on a Mac."""
    if platform.system() != "Darwin" or not is_installed("mlx"):
        return False
    from adapters.mlx_backend import metal_available

    return metal_available()


def _mlx_directory(kind: BackendKind, request: LoadRequest) -> tuple[Path, dict[str, Any]]:
    """Return the directory of the weights as MLX stores them, made if need be, and the arguments that say how."""
    from adapters.mlx_weights import ensure_mlx_model

    args = {name: value for name, value in request.args.items() if name != "threads"}
    made = ensure_mlx_model(
        request.model_dir,
        bits=kind.settings.get("bits"),
        dtype="bfloat16",
        cached=request.cached,
        fingerprint=request.fingerprint,
        **args,
    )
    return made, args


def _adapter(request: LoadRequest) -> dict[str, LowRank] | None:
    return read_low_rank(request.adapter) if request.adapter else None


def _load_in_torch(
    name: str,
    mlx_dir: Path,
    dtype: str,
    stored: str | None,
    device: str = "auto",
    adapter: Mapping[str, LowRank] | None = None,
) -> Backend:
    """Load an MLX backend's weights into PyTorch, an adapter added to them: its quality without its speed."""
    import torch

    from adapters.mlx_weights import dequantized_state, describe_weights, stored_bytes
    from adapters.torch_backend import load_torch, pick_device, pick_dtype

    device = pick_device(device)
    # bfloat16 cannot hold float16 weights, so these are computed in float32.
    if stored == "float16" and dtype == "auto":
        dtype = "float32"
    computed = "bfloat16" if pick_dtype(dtype, device) is torch.bfloat16 else "float32"
    state = dict(dequantized_state(mlx_dir, "float32" if adapter else computed, stored=stored))
    for layer, part in (adapter or {}).items():
        state[f"{layer}.weight"] += part.scale * part.up.float() @ part.down.float()
    return load_torch(
        name,
        mlx_dir,
        device=device,
        dtype=computed,
        state=state,
        weights=describe_weights(mlx_dir, stored, adapter),
        weights_bytes=stored_bytes(mlx_dir, stored, adapter),
    )
