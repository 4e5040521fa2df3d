"""The decoder that computes one token for each row of a batch, where that is faster than the model itself.

On a CPU a step costs what reading the weights costs, and PyTorch's float32 and bfloat16 products of a matrix and one
row reach a third to a half of the memory's speed. FBGEMM's product of float32 states with a float16 matrix comes near
to it. float16 holds every bfloat16 number of a model's weights to 2 ** -25 or better, so the states of such a step are
those of a float32 computation on the same weights, whichever type the model computes in.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import nn

# What float16 may lose of a weight: half its smallest step. float32 itself rounds larger weights as much.
LARGEST_LOSS = 2.0**-25
# Rows up to which FBGEMM's product is faster: PyTorch's own makes better use of several rows, in bfloat16 sooner.
PACKED_ROWS = {torch.float32: 24, torch.bfloat16: 8}
# Rows of a matrix that are checked at a time.
CHECKED_ROWS = 4_096


class PackedLinear(nn.Module):
    """A linear layer for float32 states, with a copy of its weight in float16 for a few rows of states.

    Args:
        linear: The layer; its weight fits float16.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._most_rows = PACKED_ROWS[linear.weight.dtype]
        bias = None if linear.bias is None else linear.bias.float()
        self._packed = torch.ops.quantized.linear_prepack_fp16(linear.weight.float(), bias)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return the layer's output for float32 states [..., in], as float32."""
        if states.numel() <= self._most_rows * self.in_features:
            return torch.ops.quantized.linear_dynamic_fp16(states, self._packed)
        return nn.functional.linear(states.to(self.weight.dtype), self.weight, self.bias).float()


def stepping_decoder(decoder: nn.Module) -> nn.Module:
    """Return the decoder to compute single tokens with: a twin on the same weights, or the decoder itself.

    Args:
        decoder: transformers' decoder, without the output head.
    """
    if not _can_be_packed(decoder):
        return decoder
    shared = {id(tensor): tensor for tensor in (*decoder.parameters(), *decoder.buffers())}
    twin = copy.deepcopy(decoder, shared)
    places = [
        (module, name, child)
        for module in twin.modules()
        for name, child in module.named_children()
        if isinstance(child, nn.Linear)
    ]
    with _fbgemm(), ThreadPoolExecutor(torch.get_num_threads()) as pool:  # one matrix is packed by one thread
        for (module, name, _), packed in zip(
            places, pool.map(PackedLinear, (child for *_, child in places)), strict=True
        ):
            setattr(module, name, packed)
    for module in twin.modules():
        if isinstance(module, nn.Embedding):
            module.register_forward_hook(_as_float32)
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 1:
                setattr(module, name, nn.Parameter(parameter.float(), requires_grad=False))
    return twin


def _as_float32(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output.float()


def _can_be_packed(decoder: nn.Module) -> bool:
    """Return whether all matrices are those of linear layers and embeddings, and float16 holds the former."""
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        return False
    linear = [module for module in decoder.modules() if isinstance(module, nn.Linear)]
    known = {id(module.weight) for module in decoder.modules() if isinstance(module, nn.Linear | nn.Embedding)}
    return (
        all(parameter.device.type == "cpu" for parameter in decoder.parameters())
        and all(parameter.dtype in PACKED_ROWS for parameter in decoder.parameters())
        and all(parameter.ndim < 2 or id(parameter) in known for parameter in decoder.parameters())
        and all(_fits_float16(layer.weight) for layer in linear)
    )


def _fits_float16(weight: torch.Tensor) -> bool:
    for rows in weight.split(CHECKED_ROWS):
        exact = rows.float()
        if not bool((exact.half().float() - exact).abs().max() <= LARGEST_LOSS):
            return False
    return True


@contextlib.contextmanager
def _fbgemm() -> Iterator[None]:
    """Let PyTorch pack matrices for FBGEMM, not for its other libraries."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        yield
    finally:
        torch.backends.quantized.engine = before
