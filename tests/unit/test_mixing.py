from __future__ import annotations

import pytest

from harness.quantization.mixing import Part, average_bits, choose_raised

# Divergence for its size: small first, then broad, then deaf.
PARTS = [
    Part("broad", ("broad",), 600, 0.06),
    Part("small", ("small",), 100, 0.05),
    Part("deaf", ("deaf",), 300, 0.003),
]


def test_bits_are_averaged_over_weights_and_count_the_scales() -> None:
    assert average_bits(PARTS, [], 4, 64) == 4.5
    assert average_bits(PARTS, PARTS, 4, 64) == 8.5
    assert average_bits(PARTS, PARTS[1:2], 4, 32) == pytest.approx(5 + 4 * 0.1)


@pytest.mark.parametrize(
    ("target", "names"),
    [(4.5, []), (4.9, ["small"]), (5.0, ["small"]), (6.2, ["small", "deaf"]), (7.3, ["small", "broad"]), (8.5, None)],
)
def test_the_most_divergence_for_its_size_is_raised_first(target: float, names: list[str] | None) -> None:
    raised = choose_raised(PARTS, 4, 64, target)
    assert {part.name for part in raised} == set(names if names is not None else [part.name for part in PARTS])
    assert average_bits(PARTS, raised, 4, 64) <= target
