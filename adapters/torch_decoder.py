"""Decoders of Llama's kind, spelled out for one token of each row on a CPU.

Such a step costs what reading the weights costs, and what calling PyTorch costs: transformers' modules call it some
1,800 times for 18 layers, and PyTorch's products of a matrix with one row reach a third to a half of the memory's
speed. FBGEMM's product of float32 states with a float16 matrix comes near to it, and here it is called four times a
layer. float16 holds the bfloat16 numbers that models are published in to 2 ** -25 or better, so a step is a float32
computation on the model's own weights, whichever type the model computes in.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch.nn import functional

from adapters.torch_cache import Batch

# transformers' names of the decoders that are spelled out here, and what their RMS norms add to their weights.
FAMILY = {"gemma3_text": 1.0, "llama": 0.0, "mistral": 0.0, "qwen2": 0.0, "qwen3": 0.0}
# Rows up to which FBGEMM's product is faster: PyTorch's own makes better use of many rows.
PACKED_ROWS = 24
Function = Callable[[torch.Tensor], torch.Tensor]
_TYPES = (torch.float32, torch.bfloat16)


def make_stepping(decoder: Any) -> SteppingDecoder | None:
    """Return a decoder that computes single tokens; None if the model's own has to.

    Args:
        decoder: transformers' decoder, without the output head.
    """
    config = decoder.config
    matrices = list(decoder.layers.parameters()) if config.model_type in FAMILY else []
    if (
        not matrices
        or "fbgemm" not in torch.backends.quantized.supported_engines
        or getattr(config, "use_bidirectional_attention", False)
        or getattr(config, "attn_logit_softcapping", None) is not None
        or any(matrix.device.type != "cpu" or matrix.dtype not in _TYPES for matrix in matrices)
        or not all(_fits_float16(matrix) for matrix in matrices if matrix.ndim == 2)
    ):
        return None
    return SteppingDecoder(decoder)


def _fits_float16(weight: torch.Tensor) -> bool:
    """Return whether all numbers are bfloat16 ones in the range of float16, which rounds the smallest by 2 ** -25."""
    low, high = torch.aminmax(weight)
    largest = float(torch.maximum(-low, high))
    return largest <= torch.finfo(torch.float16).max and torch.equal(weight.bfloat16().to(weight.dtype), weight)


class SteppingDecoder:
    """A decoder that computes one token of each row in float32.

    Args:
        decoder: transformers' decoder, of a kind in `FAMILY`, whose matrices fit float16.
    """

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder
        kinds = getattr(decoder.config, "layer_types", None) or ["full_attention"] * len(decoder.layers)
        with _fbgemm(), ThreadPoolExecutor(torch.get_num_threads()) as pool:  # a matrix is packed by one thread
            self._layers = list(pool.map(_Layer, decoder.layers, kinds, [decoder.config] * len(kinds)))
        self._kinds = (
            sorted(set(kinds)) if "layer_type" in inspect.signature(decoder.rotary_emb.forward).parameters else []
        )
        self._norm = _norm(decoder.norm, decoder.config)

    def __call__(self, ids: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Compute a token of each row of a batch and append its keys and values; return float32 [rows, hidden size].

        Args:
            ids: int64 [rows, 1].
            batch: Whose cache the tokens follow.
        """
        states = self._decoder.embed_tokens(ids)[:, 0].float()
        positions, mask = batch.positions(ids.device), batch.mask(ids.device)
        turns = {kind: self._turn(states, positions, kind) for kind in self._kinds or [None]}
        for layer, cache in zip(self._layers, batch.cache.layers, strict=True):
            states = layer(states, turns[layer.kind if self._kinds else None], cache, mask)
        return self._norm(states)

    def _turn(
        self, states: torch.Tensor, positions: torch.Tensor, kind: str | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what turns queries and keys by their position: factors of a head, and of its halves exchanged."""
        cosine, sine = self._decoder.rotary_emb(states, positions, *([kind] if kind else []))
        first, second = sine.chunk(2, dim=-1)
        return cosine, torch.cat([-first, second], dim=-1)


class _Layer:
    """A layer: attention and a gated MLP, each after a norm, and in Gemma before another one."""

    def __init__(self, layer: Any, kind: str, config: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.kind = kind
        self._size = attention.head_dim
        self._heads = attention.q_proj.out_features // self._size
        self._groups = attention.k_proj.out_features // self._size
        self._scale = attention.scaling
        sliding = kind == "sliding_attention" or not getattr(config, "layer_types", None)
        self._window = getattr(config, "sliding_window", None) if sliding else None
        self._qkv = PackedLinear([attention.q_proj, attention.k_proj, attention.v_proj])
        self._out = PackedLinear([attention.o_proj])
        self._gate_and_up = PackedLinear([mlp.gate_proj, mlp.up_proj])
        self._down = PackedLinear([mlp.down_proj])
        self._activation = mlp.act_fn
        names = (
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
        )
        norms = [_norm(getattr(layer, name), config) for name in names if hasattr(layer, name)]
        self._before: list[Function] = norms if len(norms) == 2 else norms[::2]
        self._after: list[Function] = [_unchanged, _unchanged] if len(norms) == 2 else norms[1::2]
        self._query_norm = _norm(attention.q_norm, config) if hasattr(attention, "q_norm") else _unchanged
        self._key_norm = _norm(attention.k_norm, config) if hasattr(attention, "k_norm") else _unchanged

    def __call__(
        self, states: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor], cache: Any, mask: torch.Tensor | None
    ) -> torch.Tensor:
        states = states + self._after[0](self._attend(self._before[0](states), turn, cache, mask))
        gate, up = self._gate_and_up(self._before[1](states)).chunk(2, dim=-1)
        return states + self._after[1](self._down(self._activation(gate) * up))

    def _attend(
        self, states: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor], cache: Any, mask: torch.Tensor | None
    ) -> torch.Tensor:
        rows, size, heads, groups = len(states), self._size, self._heads, self._groups
        parts = self._qkv(states).view(rows, heads + 2 * groups, size)
        query = _turned(self._query_norm(parts[:, :heads]), *turn)
        key = _turned(self._key_norm(parts[:, heads : heads + groups]), *turn)
        keys, values = cache.update(key[:, :, None], parts[:, heads + groups :, None])
        if self._window and keys.shape[2] > self._window:
            keys, values = keys[:, :, -self._window :], values[:, :, -self._window :]
            mask = None if mask is None else mask[:, -self._window :]
        # The query heads that share keys are the rows of one product.
        folded = (query * self._scale).reshape(rows * groups, heads // groups, size)
        scores = torch.bmm(folded, keys.reshape(rows * groups, -1, size).transpose(1, 2))
        if mask is not None:
            scores.view(rows, heads, -1).masked_fill_(~mask[:, None], -torch.inf)
        mixed = torch.bmm(torch.softmax(scores, dim=-1), values.reshape(rows * groups, -1, size))
        return self._out(mixed.view(rows, heads * size))


class PackedLinear:
    """Linear layers with the same input as one product of float32 states, with a copy of their weights in float16.

    Args:
        layers: Their outputs come one after the other; the weights fit float16.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        self._layers = layers
        self._width = layers[0].in_features
        weight = torch.cat([layer.weight for layer in layers]).float()
        biases = [torch.zeros(layer.out_features) if layer.bias is None else layer.bias.float() for layer in layers]
        bias = None if all(layer.bias is None for layer in layers) else torch.cat(biases)
        self._packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Return the outputs for float32 states [rows, in], as float32."""
        if len(states) <= PACKED_ROWS:
            return torch.ops.quantized.linear_dynamic_fp16(states, self._packed)
        own = states.to(self._layers[0].weight.dtype)
        return torch.cat([layer(own) for layer in self._layers], dim=-1).float()


def _norm(norm: Any, config: Any) -> Function:
    """Return a model's RMS norm as one call."""
    weight = norm.weight.float() + FAMILY[config.model_type]
    shape, eps = [len(weight)], config.rms_norm_eps
    return lambda states: functional.rms_norm(states, shape, weight, eps)


def _unchanged(states: torch.Tensor) -> torch.Tensor:
    return states


def _turned(heads: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Return heads [rows, heads, size], turned by their position."""
    return torch.addcmul(heads * cosine, heads.roll(heads.shape[-1] // 2, -1), sine)


@contextlib.contextmanager
def _fbgemm() -> Iterator[None]:
    """Let PyTorch pack matrices for FBGEMM, not for its other libraries."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        yield
    finally:
        torch.backends.quantized.engine = before
