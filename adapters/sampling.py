"""Choose the next token from its logits: greedily, or by temperature and nucleus (top-p)."""

from __future__ import annotations

import numpy as np

from adapters.base import Sampling, UserError


def row_generators(sampling: Sampling, rows: int) -> list[np.random.Generator]:
    """Return a random stream for each row of a batch, so that a row's tokens do not depend on when other rows end."""
    return [np.random.default_rng([sampling.seed, row]) for row in range(rows)]


def next_token(logits: np.ndarray, sampling: Sampling, generator: np.random.Generator) -> int:
    """Return the id of the next token; of equally likely ones, the lowest ids come first.

    Args:
        logits: float32 [vocabulary], finite or -inf.
        sampling: Temperature, 0 for the likeliest token; top_p.
        generator: Draws one number for each token that is sampled.

    Raises:
        UserError: The logits hold NaN, or nothing finite.
    """
    if not np.isfinite(logits.max()):
        raise no_numbers()
    if sampling.temperature <= 0:
        return int(np.argmax(logits))
    # The maximum goes before the division, so a very low temperature does not overflow.
    weights = logits - logits.max()
    weights /= np.float32(sampling.temperature)
    np.exp(weights, out=weights)
    tokens = nucleus(weights, sampling.top_p) if sampling.top_p < 1 else None
    sums = np.cumsum((weights if tokens is None else weights[tokens]).astype(np.float64))
    # A number just below 1 times the whole can be rounded up to the whole.
    place = min(int(np.searchsorted(sums, generator.random() * sums[-1], side="right")), len(sums) - 1)
    return place if tokens is None else int(tokens[place])


def no_numbers() -> UserError:
    """Return the error for a model that overflows."""
    return UserError("the model's output for a prompt is not a number", "try --dtype float32")


def nucleus(weights: np.ndarray, top_p: float) -> np.ndarray:
    """Return the ids of the fewest likeliest tokens that hold at least `top_p` of all weight, in ascending order.

    Args:
        weights: float32 or float64 [vocabulary], not negative, not all 0.
        top_p: Below 1; the likeliest token is always in.
    """
    whole = float(weights.sum())
    needed = top_p * whole
    # Weights under this bound hold less than 1 - top_p together, so only the few others need to be sorted.
    candidates = np.flatnonzero(weights >= (whole - needed) / len(weights))
    ordered = np.sort(weights[candidates])[::-1].astype(np.float64)
    size = min(int(np.searchsorted(np.cumsum(ordered), needed)) + 1, len(ordered))
    kept = candidates[weights[candidates] >= ordered[size - 1]]
    surplus = len(kept) - size  # tokens as light as the lightest of the nucleus
    if surplus:
        kept = np.delete(kept, np.flatnonzero(weights[kept] == ordered[size - 1])[-surplus:])
    return kept
