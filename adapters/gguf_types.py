"""Which type llama.cpp stores each tensor in, for each kind of file.

The rules are those of `llama_tensor_get_type` and `tensor_type_fallback` in llama.cpp's src/llama-quant.cpp (build
b11434), for models without experts and without an importance matrix. tests/parity/test_gguf_writer.py holds what they
give against files that llama.cpp itself quantised. Importing this loads nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from adapters.base import UserError

# Kinds whose tensors are numbers of one width, which need no quantiser.
WHOLE = ("f32", "bf16", "f16")
# Names of kinds, as llama.cpp's own command has them in capitals; the most accurate first.
KINDS = (
    *WHOLE,
    "q8_0",
    "q6_k",
    "q5_k_m",
    "q5_k_s",
    "q5_1",
    "q5_0",
    "q4_k_m",
    "q4_k_s",
    "q4_1",
    "q4_0",
    "q3_k_l",
    "q3_k_m",
    "q3_k_s",
    "q2_k",
)
# What stands for a type of 256 weights a block where these do not divide a row.
_FALLBACKS = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
_BLOCK, _LARGE_BLOCK = 32, 256
_LAYERS_OF_70B = 80


@dataclass(frozen=True)
class ModelShape:
    """What the choice of types depends on.

    Attributes:
        architecture: llama.cpp's name, such as "gemma3".
        layers: Number of layers.
        heads: Attention heads of a layer.
        key_heads: Heads of keys and values.
        tied: Whether the output matrix is that of the input, so that there is no output.weight.
    """

    architecture: str
    layers: int
    heads: int
    key_heads: int
    tied: bool


def tensor_type(kind: str, name: str, shape: tuple[int, ...], model: ModelShape) -> str:
    """Return the name of a tensor's type, a member of `gguf.GGMLQuantizationType`.

    Args:
        kind: One of `KINDS`.
        name: The tensor's name in the file.
        shape: In numpy's order: the last number is the length of a row.
        model: The model that it belongs to.

    Raises:
        UserError: No quantised type divides the tensor's rows.
    """
    if len(shape) < 2 or name.endswith("_norm.weight"):
        return "F32"
    base = base_type(kind)
    if kind in WHOLE:
        return base
    width = shape[-1]
    if width % _BLOCK:
        raise UserError(
            f"{kind} stores blocks of {_BLOCK} weights, which do not divide the rows of {width} in {name}",
            f"use {', '.join(WHOLE[:-1])} or {WHOLE[-1]}",
        )
    chosen = _usual_type(kind, base, name, width, model)
    return _FALLBACKS[chosen] if width % block_size(chosen) else chosen


def base_type(kind: str) -> str:
    """Return the type of most tensors of a kind: "Q4_K" of q4_k_m."""
    return re.sub(r"_[SML]$", "", kind.upper())


def block_size(quantised_type: str) -> int:
    """Return how many weights of a row share a block in a quantised type."""
    return _LARGE_BLOCK if quantised_type in _FALLBACKS else _BLOCK


def _usual_type(kind: str, base: str, name: str, width: int, model: ModelShape) -> str:
    """Return the type that a matrix has where its blocks divide the row."""
    place = name.split(".")
    if name == "output.weight" or (name == "token_embd.weight" and model.tied):
        return "Q8_0" if width % block_size(base) or base == "Q8_0" else "Q6_K"
    if place[0] != "blk":
        return base
    layer, part = int(place[1]), place[2]
    if part == "attn_v":
        chosen = _of_values(kind, base, layer, model)
        # The heads of a 70B model share their keys and values, so more bits for these cost little.
        grouped = model.architecture != "llama" or model.heads != model.key_heads
        of_70b = model.architecture in ("llama", "qwen2") and model.layers == _LAYERS_OF_70B and grouped
        return "Q5_K" if of_70b and chosen in ("Q3_K", "Q4_K") else chosen
    if part == "ffn_down":
        return _of_down_projection(kind, base, layer, model.layers)
    if part == "attn_output":
        return {"q2_k": "Q3_K", "q3_k_m": "Q4_K", "q3_k_l": "Q5_K"}.get(kind, base)
    return base


def _of_values(kind: str, base: str, layer: int, model: ModelShape) -> str:
    if kind == "q2_k":
        return "Q4_K" if model.heads // model.key_heads >= 4 else "Q3_K"
    if kind == "q3_k_m":
        return "Q5_K" if layer < 2 else "Q4_K"
    if kind == "q3_k_l" or (kind == "q4_k_s" and layer < 4):
        return "Q5_K"
    return "Q6_K" if kind in ("q4_k_m", "q5_k_m") and _gets_more_bits(layer, model.layers) else base


def _of_down_projection(kind: str, base: str, layer: int, layers: int) -> str:
    if kind == "q2_k":
        return "Q3_K"
    if kind == "q3_k_m":
        return "Q5_K" if layer < layers // 16 else "Q4_K"
    if kind == "q3_k_l" or (kind == "q4_k_s" and layer < layers // 8):
        return "Q5_K"
    return "Q6_K" if kind in ("q4_k_m", "q5_k_m") and _gets_more_bits(layer, layers) else base


def _gets_more_bits(layer: int, layers: int) -> bool:
    """Return whether a layer is among the first and last eighths, or every third between."""
    first = layers // 8
    return layer < first or layer >= 7 * layers // 8 or (layer - first) % 3 == 2
