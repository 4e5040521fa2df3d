"""Divergence: KL against scipy, ratios and their intervals, texts cut into rows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats

from harness.errors import UserError
from harness.evaluation import sweep
from harness.evaluation.divergence import _batches, _rows, chosen_corpus, compare_distributions, ratio_estimate
from harness.evaluation.divergence_options import DivergenceOptions, check_divergence_options
from harness.evaluation.options import SweepOptions
from harness.scoring.encoding import TextEncoder
from tests.tiny_gemma import make_tiny_tokenizer

KEPT = Path(__file__).parents[2] / "results" / "divergence" / "gemma-3-270m"
ENCODER = TextEncoder(make_tiny_tokenizer())


def random_logits(seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(7, 50)) * 3).astype(np.float32)


def test_divergence_is_scipys():
    reference, other = random_logits(1), random_logits(2)
    targets = np.arange(7)
    _, kept = compare_distributions(None, reference, targets)
    found, _ = compare_distributions(kept, other, targets)
    p, q = (scipy.special.softmax(values.astype(np.float64), axis=-1) for values in (reference, other))
    np.testing.assert_allclose(found["kl"], scipy.stats.entropy(p, q, axis=-1), rtol=1e-4)
    np.testing.assert_allclose(found["logprob"], np.log(q[np.arange(7), targets]), rtol=1e-5)
    assert found["same_best"].tolist() == (p.argmax(-1) == q.argmax(-1)).tolist()
    assert found["right"].tolist() == (q.argmax(-1) == targets).tolist()


def test_a_distribution_does_not_diverge_from_itself_even_where_a_token_is_impossible():
    logits = random_logits(3)
    logits[:, 4] = -np.inf
    found, _ = compare_distributions(None, logits, np.zeros(7, dtype=np.int64))
    np.testing.assert_array_equal(found["kl"], np.zeros(7))
    assert found["same_best"].all()


def test_what_the_reference_allows_and_the_other_does_not_diverges_without_end():
    reference, other = random_logits(3), random_logits(3)
    other[2, 4] = -np.inf
    _, kept = compare_distributions(None, reference, np.zeros(7, dtype=np.int64))
    found, _ = compare_distributions(kept, other, np.zeros(7, dtype=np.int64))
    assert np.isinf(found["kl"]).tolist() == [False, False, True, False, False, False, False]


def test_the_interval_of_a_ratio_is_scipys():
    rng = np.random.default_rng(5)
    denominators = rng.integers(20, 90, 300).astype(float)
    numerators = denominators * rng.normal(0.3, 0.05, 300)
    found = ratio_estimate(numerators, denominators, seed=1)
    assert found.value == pytest.approx(numerators.sum() / denominators.sum())
    expected = scipy.stats.bootstrap(
        (numerators, denominators), lambda a, b: a.sum() / b.sum(), paired=True, vectorized=False,
        method="percentile", n_resamples=1000, random_state=2,
    ).confidence_interval  # fmt: skip
    assert found.interval == pytest.approx((expected.low, expected.high), abs=0.001)


def test_a_text_longer_than_the_context_comes_in_pieces_that_miss_no_token():
    text = "Снег тает на крыше, и с неё капает вода."
    tokens = ENCODER.encode(text)
    rows = list(_rows(ENCODER, text, 3, context=8))
    assert len(rows) > 1
    assert all(block == 3 and row[0] == ENCODER.bos_id and len(row) <= 9 for block, row in rows)
    assert [token for _, row in rows for token in row[1:]] == tokens[1:]


def test_batches_keep_to_the_budget_with_padding_and_lose_no_row():
    rows = [(number, list(range(length))) for number, length in enumerate([3, 9, 4, 40, 5, 9])]
    batches = list(_batches(rows, 20))
    assert sorted(row for batch in batches for row in batch) == sorted(rows)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(len(tokens) for _, tokens in batch) <= 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backends": ("torch",)}, "does not name two or more"),
        ({"backends": ("torch", "torch")}, "does not name two or more"),
        ({"backends": ("torch", "mlx-q44")}, "unknown backend 'mlx-q44'"),
        ({"limit": 0}, "--limit"),
        ({"seed": -1}, "--seed"),
        ({"dtype": "int4"}, "--dtype"),
    ],
)
def test_options_that_cannot_work_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        check_divergence_options(DivergenceOptions(**changes))


@pytest.mark.parametrize(
    ("changes", "is_same"),
    [
        ({}, True),
        ({"backends": ("torch", "mlx-q8")}, False),
        ({"corpus_limit": 1}, False),
        ({"resume": False}, False),
    ],
)
def test_a_sweep_takes_no_divergence_of_another_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], is_same: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("Ёж ушёл в лес.\n\nДом стоит у реки.\n" * 40, encoding="utf-8")
    first = Path("sweep-torch")
    asked = SweepOptions(backends=("torch", "mlx-q4"), corpus="texts.txt", resume=True)
    options = sweep._divergence_options(asked, first)
    kept = json.loads((KEPT / "divergence.json").read_text(encoding="utf-8"))
    by_name = {one["backend"]: one for one in kept["backends"]}
    kept["backends"] = [by_name[name] for name in asked.backends]
    kept["corpus"]["sha256"] = chosen_corpus(options).fingerprint()
    assert options.output is not None
    options.output.mkdir(parents=True)
    (options.output / "divergence.json").write_text(json.dumps(kept), encoding="utf-8")

    other = sweep._divergence_options(replace(asked, **changes), first)
    if is_same:
        assert sweep._measured_divergence(other) is not None
    else:
        with pytest.raises(UserError, match="of another sweep"):
            sweep._measured_divergence(other)
