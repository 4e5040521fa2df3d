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
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from adapters.torch_attention import CPU_ATTENTION

STEP_ATTENTION = "rsg_step"
# Rows up to which FBGEMM's product is faster: PyTorch's own makes better use of several rows, in bfloat16 sooner.
PACKED_ROWS = {torch.float32: 24, torch.bfloat16: 8}


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


def step_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute `grouped_attention` for one float32 query of each row, without what only longer texts need."""
    batch, heads, _, size = query.shape
    if sliding_window and key.shape[2] > sliding_window:
        key, value = key[:, :, -sliding_window:], value[:, :, -sliding_window:]
        attention_mask = None if attention_mask is None else attention_mask[..., -sliding_window:]
    products, groups = batch * key.shape[1], key.shape[1]
    folded = query.reshape(products, heads // groups, size) * (size**-0.5 if scaling is None else scaling)
    scores = torch.bmm(folded, key.reshape(products, -1, size).transpose(1, 2))
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        scores = scores.view(batch, heads, -1).masked_fill_(~attention_mask[:, :, 0], -torch.inf).view(scores.shape)
    if s_aux is not None:
        sinks = s_aux.float().view(1, groups, -1, 1).expand(batch, -1, -1, 1).reshape(products, -1, 1)
        weights = torch.softmax(torch.cat([scores, sinks], dim=-1), dim=-1)[..., :-1]
    else:
        weights = torch.softmax(scores, dim=-1)
    mixed = torch.bmm(weights, value.reshape(products, -1, value.shape[-1]))
    return mixed.view(batch, 1, heads, -1), None


for register, function in ((AttentionInterface, step_attention), (AttentionMaskInterface, sdpa_mask)):
    register.register(STEP_ATTENTION, function)


def stepping_decoder(decoder: nn.Module) -> nn.Module:
    """Return the decoder to compute single tokens with: a twin on the same weights, or the decoder itself.

    Args:
        decoder: transformers' decoder, without the output head.
    """
    if not _can_be_packed(decoder):
        return decoder
    shared = {id(tensor): tensor for tensor in (*decoder.parameters(), *decoder.buffers())}
    twin: Any = copy.deepcopy(decoder, shared)
    if twin.config._attn_implementation == CPU_ATTENTION:
        twin.config._attn_implementation = STEP_ATTENTION
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
    """Return whether all numbers are bfloat16 ones in the range of float16, which rounds the smallest by 2 ** -25."""
    low, high = torch.aminmax(weight)
    largest = float(torch.maximum(-low, high))
    return largest <= torch.finfo(torch.float16).max and torch.equal(weight.bfloat16().to(weight.dtype), weight)


@contextlib.contextmanager
def _fbgemm() -> Iterator[None]:
    """Let PyTorch pack matrices for FBGEMM, not for its other libraries."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        yield
    finally:
        torch.backends.quantized.engine = before
