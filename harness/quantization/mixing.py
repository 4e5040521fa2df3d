"""Which parts of a model get more bits than the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

HIGH_BITS = 8
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


def average_bits(parts: Sequence[Part], raised: Sequence[Part], bits: int, group_size: int) -> float:
    """Bits a weight, scales included, when `raised` have HIGH_BITS and the others `bits`."""
    total = sum(part.weights for part in parts)
    high = sum(part.weights for part in raised)
    return bits + _SCALE_BITS / group_size + (HIGH_BITS - bits) * high / total


def choose_raised(parts: Sequence[Part], bits: int, group_size: int, target_bits: float) -> list[Part]:
    """The parts to give HIGH_BITS: most divergence for their size first, as many as `target_bits` a weight allow."""
    raised: list[Part] = []
    for part in sorted(parts, key=lambda part: part.divergence / part.weights, reverse=True):
        if average_bits(parts, [*raised, part], bits, group_size) <= target_bits:
            raised.append(part)
    return raised
