"""Choosing the next token: the same as a full sort in exact arithmetic, repeatable, and fast on a large vocabulary."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from adapters.base import Sampling, UserError
from adapters.sampling import next_token, nucleus, row_generators

# Few distinct weights, so that equal ones meet at the edge of the nucleus.
WEIGHTS = st.lists(st.sampled_from([0.0, 0.125, 0.25, 0.5, 1.0, 3.0]), min_size=1, max_size=30).filter(any)


@given(WEIGHTS, st.sampled_from([0.0, 0.25, 0.5, 0.75, 0.875, 0.9375]))
def test_the_nucleus_is_that_of_a_full_sort_in_exact_arithmetic(weights, top_p):
    order = sorted(range(len(weights)), key=lambda token: (-weights[token], token))
    total, before, kept = sum(map(Fraction, weights)), Fraction(0), []
    for token in order:
        if kept and before >= Fraction(top_p) * total:
            break
        kept.append(token)
        before += Fraction(weights[token])
    assert nucleus(np.array(weights), top_p).tolist() == sorted(kept)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 0.9), (2.0, 0.5)])
def test_tokens_are_drawn_as_often_as_their_probability_says(temperature, top_p):
    logits = np.random.default_rng(1).normal(scale=2, size=20).astype(np.float32)
    probabilities = special.softmax(logits.astype(np.float64) / temperature)
    order = np.argsort(-probabilities)
    kept = order[np.cumsum(probabilities[order]) - probabilities[order] < top_p]
    expected = np.zeros(20)
    expected[kept] = probabilities[kept] / probabilities[kept].sum()
    [generator] = row_generators(Sampling(1, seed=4), 1)
    drawn = [next_token(logits, Sampling(1, temperature=temperature, top_p=top_p), generator) for _ in range(20_000)]
    counts = np.bincount(drawn, minlength=20)
    assert not counts[expected == 0].any()
    assert stats.chisquare(counts[kept], 20_000 * expected[kept]).pvalue > 0.001


def test_without_temperature_the_first_of_the_likeliest_tokens_is_taken():
    logits = np.array([1.0, 3.0, -np.inf, 3.0], dtype=np.float32)
    [generator] = row_generators(Sampling(1), 1)
    assert next_token(logits, Sampling(1), generator) == 1
    assert next_token(logits, Sampling(1, temperature=1.0, top_p=0.0), generator) == 1
    assert next_token(logits, Sampling(1, temperature=1e-30), generator) in (1, 3)


def test_an_impossible_token_is_never_drawn():
    logits = np.array([-np.inf, 0.0, -np.inf], dtype=np.float32)
    [generator] = row_generators(Sampling(1), 1)
    assert {next_token(logits, Sampling(1, temperature=5.0), generator) for _ in range(100)} == {1}


def test_rows_have_streams_of_their_own_that_repeat_with_the_seed():
    first, again, other = (row_generators(Sampling(1, seed=seed), 3) for seed in (7, 7, 8))
    numbers = [[generator.random() for generator in row] for row in (first, again, other)]
    assert numbers[0] == numbers[1]
    assert len({*numbers[0], *numbers[2]}) == 6


@pytest.mark.parametrize(
    "sampling", [Sampling(1), Sampling(1, temperature=1.0), Sampling(1, temperature=1.0, top_p=0.5)]
)
def test_logits_that_are_no_numbers_are_refused(sampling: Sampling) -> None:
    logits = np.zeros(10, dtype=np.float32)
    logits[3] = np.nan
    with pytest.raises(UserError, match="not a number"):
        next_token(logits, sampling, np.random.default_rng(0))
