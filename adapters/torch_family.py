"""The PyTorch backends. Importing this loads no tensor library."""

from __future__ import annotations

import functools
import platform
import re
from collections.abc import Mapping
from typing import Any

from adapters.base import Backend, BackendKind, Family, Finding, LoadRequest, UserError, first_line, is_installed

# Attention on Apple GPUs was silently wrong in earlier releases.
SAFE_MPS_TORCH = (2, 11)


class TorchFamily(Family):
    """transformers' models in PyTorch, on CUDA, MPS or the processor."""

    name = "torch"
    executions = ("torch",)
    arguments: Mapping[str, type] = {"threads": int}

    def kinds(self) -> tuple[BackendKind, ...]:
        return (
            BackendKind("torch", self, "PyTorch on the best device there is: cuda, mps or cpu", {"device": "auto"}),
            BackendKind("torch-mps", self, "PyTorch on an Apple GPU", {"device": "mps"}),
            BackendKind("torch-cuda", self, "PyTorch on an NVIDIA GPU", {"device": "cuda"}),
            BackendKind("torch-cpu", self, "PyTorch on the processor", {"device": "cpu"}),
        )

    def problem(self, kind: BackendKind) -> str:
        device = kind.settings["device"]
        if problem := torch_problem():
            return problem
        return "" if device == "auto" or devices(import_torch())[device] else f"PyTorch finds no {device} device"

    def load(self, kind: BackendKind, request: LoadRequest) -> Backend:
        from adapters.mlx_weights import quantization_of, read_config
        from adapters.torch_backend import load_torch

        set_threads(request.args)
        quantised = quantization_of(read_config(request.model_dir))
        if quantised is not None:
            raise UserError(
                f"{request.model_dir} holds MLX weights of {quantised['bits']} bits",
                f"use --backend mlx-q{quantised['bits']}",
            )
        return load_torch(kind.name, request.model_dir, device=kind.settings["device"], dtype=request.dtype)

    def dtypes(self, kind: BackendKind) -> tuple[str, ...]:
        return ("float32", "bfloat16", "float16")

    def reference(self, kind: BackendKind, request: LoadRequest) -> Backend:
        from adapters.torch_backend import load_torch

        return load_torch("torch-cpu", request.model_dir, device="cpu", dtype="float32")

    def findings(self) -> list[Finding]:
        torch = import_torch()
        if isinstance(torch, str):
            return [Finding("devices of torch", torch, "pip install 'torch>=2.11'")]
        there = [name for name, found in devices(torch).items() if found]
        return [Finding("devices of torch", ", ".join(there)), _bfloat16(torch), *_attention(torch)]


def set_threads(args: Mapping[str, Any]) -> None:
    """Let PyTorch compute with as many threads as `--backend-arg threads=N` says."""
    if "threads" in args:
        import torch

        torch.set_num_threads(args["threads"])


@functools.cache
def import_torch() -> Any:
    """Return the module torch, or say in a few words why it cannot be used."""
    if not is_installed("torch"):
        return "PyTorch is not installed"
    try:
        import torch
    except (ImportError, OSError) as error:
        return f"PyTorch cannot be loaded: {first_line(error)}"
    return torch


def torch_problem() -> str:
    """Say why PyTorch cannot be used here; "" where it can."""
    torch = import_torch()
    return torch if isinstance(torch, str) else ""


def devices(torch: Any) -> dict[str, bool]:
    """Return device -> whether PyTorch finds it."""
    return {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}


def _bfloat16(torch: Any) -> Finding:
    """Say whether `--dtype auto` computes in bfloat16 on the device that `--backend torch` picks."""
    there = devices(torch)
    if there["cuda"]:
        fast = torch.cuda.is_bf16_supported()
    elif there["mps"]:
        fast = True
    else:
        fast = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return Finding("bfloat16", "yes" if fast else "no: --dtype auto computes in float32, with twice the memory")


def _attention(torch: Any) -> list[Finding]:
    """Warn on a Mac with an old PyTorch, which silently computes wrong numbers."""
    if platform.system() != "Darwin":
        return []
    release = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if release >= SAFE_MPS_TORCH:
        return [Finding("attention on mps", f"right in PyTorch {torch.__version__}")]
    wrong = f"wrong in PyTorch {torch.__version__}: do not trust scores of --backend torch-mps"
    return [Finding("attention on mps", wrong, "pip install 'torch>=2.11', or use --backend mlx-bf16 or torch-cpu")]
