"""A budget of bits goes to the parts that gain most from it."""

from __future__ import annotations

import itertools

import pytest

from harness.quantization.sensitivity import BITS, Part, average_bits, choose_bits

# Divergence for its size: small first, then broad, then deaf.
PARTS = [
    Part("broad", ("broad",), 600, 0.06),
    Part("small", ("small",), 100, 0.05),
    Part("deaf", ("deaf",), 300, 0.003),
]


def test_bits_are_averaged_over_weights_and_count_the_scales() -> None:
    assert average_bits(PARTS, {"broad": 4, "small": 4, "deaf": 4}, 64) == 4.5
    assert average_bits(PARTS, {"broad": 8, "small": 8, "deaf": 8}, 64) == 8.5
    assert average_bits(PARTS, {"broad": 4, "small": 8, "deaf": 4}, 32) == pytest.approx(5 + 4 * 0.1)


@pytest.mark.parametrize(
    ("target", "bits"),
    [
        (4.5, {"broad": 4, "small": 4, "deaf": 4}),
        (4.6, {"broad": 4, "small": 5, "deaf": 4}),
        (5.3, {"broad": 5, "small": 6, "deaf": 4}),
        (5.6, {"broad": 5, "small": 8, "deaf": 4}),
        (8.5, {"broad": 8, "small": 8, "deaf": 8}),
    ],
)
def test_what_gains_most_for_its_size_is_raised_first(target: float, bits: dict[str, int]) -> None:
    assert choose_bits(PARTS, 4, 64, target) == bits


@pytest.mark.parametrize("target", [3.7, 4.4, 5.0, 5.75, 6.9])
def test_no_other_choice_within_the_budget_is_much_better(target: float) -> None:
    def left(bits: dict[str, int]) -> float:
        return sum(part.divergence / 4.0 ** (bits[part.name] - 3) for part in PARTS)

    names = [part.name for part in PARTS]
    others = (dict(zip(names, some, strict=True)) for some in itertools.product([b for b in BITS if b >= 3], repeat=3))
    best = min((bits for bits in others if average_bits(PARTS, bits, 64) <= target), key=left)
    found = choose_bits(PARTS, 3, 64, target)
    assert average_bits(PARTS, found, 64) <= target
    assert left(found) <= 1.5 * left(best)
