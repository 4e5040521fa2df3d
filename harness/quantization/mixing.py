"""How many bits each part of a model gets within a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# What MLX's affine mode offers.
BITS = (2, 3, 4, 5, 6, 8)
_SCALE_BITS = 32  # a bfloat16 scale and a bfloat16 bias for every group


@dataclass(frozen=True)
class Part:
    """Matrices that are quantised alike.

    Attributes:
        name: `layers.3.mlp`, `embed_tokens`.
        matrices: their names in the model, without `.weight`.
        weights: how many they hold.
        divergence: mean over tasks of the mean KL divergence of the choices, in nats, when this part alone is rounded.
    """

    name: str
    matrices: tuple[str, ...]
    weights: int
    divergence: float


def average_bits(parts: Sequence[Part], bits: Mapping[str, int], group_size: int) -> float:
    """Bits a weight, scales included. `bits`: name of the part -> its bits."""
    total = sum(part.weights for part in parts)
    return _SCALE_BITS / group_size + sum(bits[part.name] * part.weights for part in parts) / total


def choose_bits(parts: Sequence[Part], lowest: int, group_size: int, target_bits: float) -> dict[str, int]:
    """Bits for every part, at most `target_bits` a weight: again and again the raise that gains most for its size.

    A bit more halves the rounding error, and small errors move the KL divergence by their square: so a part of
    divergence d at `lowest` bits is taken to have d / 4 ** (bits − lowest) at `bits`.

    Args:
        parts: measured at `lowest` bits.
        lowest: bits that every part has at least.
        group_size: weights that share a scale.
        target_bits: a weight, scales included.
    """
    chosen = {part.name: lowest for part in parts}
    open_parts = {part.name: part for part in parts}
    while open_parts:
        raises = {name: _raise(part, chosen[name], lowest) for name, part in open_parts.items()}
        name = max(raises, key=lambda found: raises[found][0])
        raised = {**chosen, name: raises[name][1]}
        if average_bits(parts, raised, group_size) <= target_bits:
            chosen = raised
        else:  # too large for what is left; a smaller part may fit
            del open_parts[name]
        open_parts = {name: part for name, part in open_parts.items() if chosen[name] < BITS[-1]}
    return chosen


def _raise(part: Part, bits: int, lowest: int) -> tuple[float, int]:
    """(divergence gained for each bit that it costs, the next number of bits)."""
    higher = min(offered for offered in BITS if offered > bits)
    gained = part.divergence * (4.0 ** (lowest - bits) - 4.0 ** (lowest - higher))
    return gained / ((higher - bits) * part.weights), higher
