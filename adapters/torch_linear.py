"""Linear layers and gated MLPs of PyTorch models on processors with AVX-512, by oneDNN's products.

PyTorch itself takes MKL for float32 products, which is slower on AMD's processors, and computes the activation of an
MLP and the product with its other half in passes of their own over the widest activations that there are. oneDNN does
both while it has the products in its registers, in float32, which saves two roundings in 16 bits.

The operator is the one that PyTorch's own compiler calls. It takes the weights as they are, so nothing is copied.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import torch
from torch import nn

# transformers' activations, as oneDNN calls them: a name and an algorithm.
_ACTIVATIONS = {
    "GELUTanh": ("gelu", "tanh"),
    "GELUActivation": ("gelu", "none"),
    "SiLUActivation": ("swish", ""),
    "SiLU": ("swish", ""),
}
# Rows on which an MLP is held against its own code before it takes another.
_PROBE_ROWS = 8
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}  # of the largest output


def use_onednn(decoder: nn.Module) -> None:
    """Let a decoder's linear layers and MLPs compute by oneDNN, where that gives the same numbers faster.

    The modules then have no gradients. Other processors, types and kinds of module are left as they are.
    """
    if not (torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX512")):
        return  # with AVX2 it gains nothing, and loses with long prefixes
    types = {torch.float32, torch.bfloat16} if torch.ops.mkldnn._is_mkldnn_bf16_supported() else {torch.float32}
    if any(weight.device.type != "cpu" or weight.dtype not in types for weight in decoder.parameters()):
        return
    for module in decoder.modules():  # an MLP before its parts, so that it is held against their own code
        if _is_gated(module) and _agrees(module):
            _compute_by(module, _gated_mlp)
        elif type(module) is nn.Linear and module.weight.dtype is torch.float32:
            _compute_by(module, _linear)


@contextlib.contextmanager
def library_linear(model: nn.Module) -> Iterator[None]:
    """Let a model compute with its own linear layers and MLPs for a while, to be compared with."""
    changed = [module for module in model.modules() if _forward(module) in (_linear, _gated_mlp)]
    forwards = [vars(module).pop("forward") for module in changed]
    try:
        yield
    finally:
        for module, forward in zip(changed, forwards, strict=True):
            module.forward = forward


def _compute_by(module: Any, forward: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
    module.forward = MethodType(forward, module)  # a bound method, so that a copy of the module calls its own


def _forward(module: nn.Module) -> Any:
    """Return the function of `_compute_by`; None for a module that computes as its class does."""
    return getattr(vars(module).get("forward"), "__func__", None)


def _linear(layer: nn.Linear, states: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(states, layer.weight, layer.bias, "none", [], "")


def _gated_mlp(mlp: Any, states: torch.Tensor) -> torch.Tensor:
    name, algorithm = _ACTIVATIONS[type(mlp.act_fn).__name__]
    product = torch.ops.mkldnn._linear_pointwise
    gate = product(states, mlp.gate_proj.weight, mlp.gate_proj.bias, name, [], algorithm)
    return mlp.down_proj(product.binary(states, gate, mlp.up_proj.weight, mlp.up_proj.bias, "mul"))


def _is_gated(module: Any) -> bool:
    """Return whether a module has the parts of Llama's MLP, which Gemma, Mistral, Qwen and others have too."""
    names = ("gate_proj", "up_proj", "down_proj")
    return (
        all(type(getattr(module, name, None)) is nn.Linear for name in names)
        and type(getattr(module, "act_fn", None)).__name__ in _ACTIVATIONS
    )


@torch.inference_mode()
def _agrees(mlp: Any) -> bool:
    """Return whether an MLP computes what `_gated_mlp` does: its parts may be put together in another way."""
    weight = mlp.gate_proj.weight
    probe = torch.randn(_PROBE_ROWS, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight)
    expected, found = mlp(probe), _gated_mlp(mlp, probe)
    return bool((expected - found).abs().max() <= _TOLERANCE[weight.dtype] * expected.abs().max())
