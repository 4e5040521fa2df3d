"""Figures of lm-eval's tasks: their spread, and what two runs' figures are compared by."""

from __future__ import annotations

import functools
import math

import pytest

from harness.evaluation.foreign import spread
from harness.records.run import ForeignMetricRecord, ForeignTaskRecord, SampleRecord
from harness.reports.paired import comparable_metric, compare_foreign_task
from harness.tasks.aggregation import aggregation_name, find_aggregation, mean, resampled


def record(aggregation: str = "mean", higher_is_better: bool | None = True) -> ForeignTaskRecord:
    metric = ForeignMetricRecord(value=0.5, stderr=None, aggregation=aggregation, higher_is_better=higher_is_better)
    return ForeignTaskRecord(
        main="figure", metrics={"figure": metric}, documents=3, output_type="multiple_choice", version=None,
        prompt_sha256="p", data_sha256="d", num_fewshot=0, truncated=0,
    )  # fmt: skip


def samples(*values: object, choices: int = 2) -> list[SampleRecord]:
    """Documents with these values; None: the task gives this one none."""
    return [
        SampleRecord(
            task="own", idx=number, prediction=0, gold=0, scores=[-1.0] * choices,
            values={} if value is None else {"figure": value},
        )
        for number, value in enumerate(values)
    ]  # fmt: skip


def test_lm_evals_aggregations_are_found_by_name_and_others_are_not() -> None:
    perplexity = find_aggregation("perplexity")
    assert perplexity is not None
    assert perplexity([-1.0, -3.0]) == pytest.approx(math.exp(2))
    assert aggregation_name(perplexity) == "perplexity"
    assert find_aggregation("their_own") is None


def test_a_figure_that_is_no_number_has_no_spread() -> None:
    assert spread(math.nan, [1.0, math.nan], mean, 0) == (None, None)


def test_what_a_task_brought_along_is_called_for_no_sample() -> None:
    calls: list[int] = []
    own = functools.partial(lambda values: calls.append(len(values)) or 0.5)
    assert spread(0.5, [1, 0, 1], own, 0) == (None, None)
    assert calls == []


def test_slow_aggregations_are_drawn_as_seldom_as_lm_eval_does() -> None:
    bleu = find_aggregation("bleu")
    assert bleu is not None
    draws = resampled([("кот спит на окне", "кот спит на окне")] * 4, bleu, 0, 1000)
    assert draws is not None
    assert len(draws) == 100


def test_documents_without_a_value_in_both_runs_are_passed_over() -> None:
    pairs = list(zip(samples(1, None, 0, 1), samples(0, 1, None, 1), strict=True))
    found = compare_foreign_task("own", record(), "figure", pairs, 0)
    assert found is not None
    assert (found.before, found.after, found.answers, len(found.lost)) == (1.0, 0.5, 2, 1)
    assert compare_foreign_task("own", record(), "figure", pairs[1:3], 0) is None


def test_where_less_is_better_a_document_that_falls_is_gained() -> None:
    pairs = list(zip(samples(1, 0), samples(0, 0), strict=True))
    found = compare_foreign_task("own", record(higher_is_better=False), "figure", pairs, 0)
    assert found is not None
    assert (len(found.lost), len(found.gained)) == (0, 1)


def test_other_choices_have_no_divergence() -> None:
    pairs = list(zip(samples(1, 0), samples(1, 0, choices=3), strict=True))
    found = compare_foreign_task("own", record(), "figure", pairs, 0)
    assert found is not None
    assert found.divergence is None


def test_a_metric_that_is_not_defined_for_every_sample_shows_no_difference() -> None:
    # A sample that holds the second document alone has a perplexity of e**800, which is no float.
    pairs = list(zip(samples(800.0, -800.0), samples(-2.0, 1.0), strict=True))
    found = compare_foreign_task("own", record("perplexity"), "figure", pairs, 0)
    assert found is not None
    assert (found.before, found.interval, found.p) == (1.0, (-math.inf, math.inf), 1.0)


def test_runs_are_compared_by_a_metric_that_both_have() -> None:
    other = record().model_copy(update={"metrics": {"figure": record("perplexity").metrics["figure"]}})
    assert comparable_metric(record(), record()) == "figure"
    assert comparable_metric(record(), other) is None
    assert comparable_metric(record("their_own"), record("their_own")) is None
