"""Comparing two runs, against scipy and against resampling by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from harness.errors import UserError
from harness.records.run import SampleRecord, write_run
from harness.reports.compare import compare, comparison_text, points, verdict
from harness.reports.paired import bootstrap_p, holm, mcnemar
from tests.unit.run_records import run_record

TERRA = ("entailment", "not_entailment")


def terra_samples(right: np.ndarray, scores: Any = None) -> list[SampleRecord]:
    """Documents whose answer is `entailment`, answered rightly or not."""
    return [
        SampleRecord(
            task="terra",
            idx=number,
            prediction=TERRA[0] if is_right else TERRA[1],
            gold=TERRA[0],
            scores=list(scores[number]) if scores is not None else [-0.1, -2.3],
        )
        for number, is_right in enumerate(right)
    ]


def write(directory: Path, samples: list[SampleRecord], **changes: Any) -> Path:
    directory.mkdir()
    tasks = {sample.task for sample in samples}
    write_run(directory, run_record(dict.fromkeys(sorted(tasks), 0.5), **changes), samples)
    return directory


@pytest.fixture
def pair(tmp_path: Path) -> Any:
    def make(before: list[SampleRecord], after: list[SampleRecord], **changes: Any) -> tuple[Path, Path]:
        return write(tmp_path / "before", before), write(tmp_path / "after", after, **changes)

    return make


@given(lost=st.integers(0, 60), gained=st.integers(0, 60))
def test_mcnemar_is_the_exact_binomial_test(lost: int, gained: int) -> None:
    if lost + gained:
        expected = stats.binomtest(lost, lost + gained, 0.5).pvalue
        assert mcnemar(lost, gained) == pytest.approx(expected, abs=1e-9)
    else:
        assert mcnemar(0, 0) == 1.0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm_by_its_definition(p_values: list[float]) -> None:
    order = np.argsort(p_values, kind="stable")
    count = len(p_values)
    steps = [min(1.0, (count - rank) * p_values[index]) for rank, index in enumerate(order)]
    expected = np.maximum.accumulate(steps)
    found = holm(p_values)
    assert [found[index] for index in order] == pytest.approx(list(expected))


def test_runs_that_differ_by_chance_show_no_loss(pair: Any) -> None:
    rng = np.random.default_rng(0)
    before = rng.random(300) < 0.6
    after = before.copy()
    flipped = rng.choice(300, 20, replace=False)
    after[flipped[:10]] = True
    after[flipped[10:]] = False
    found = compare(*pair(terra_samples(before), terra_samples(after)))
    [task] = found.tasks
    assert task.interval[0] < 0 < task.interval[1]
    assert task.p_holm > 0.05
    assert verdict(task.difference, task.interval, task.p_holm).startswith("no ")


def test_a_real_loss_is_called_worse_with_its_flips(pair: Any) -> None:
    before = np.ones(200, dtype=bool)
    before[:60] = False
    after = before.copy()
    after[100:130] = False
    after[0:2] = True
    found = compare(*pair(terra_samples(before), terra_samples(after)))
    [task] = found.tasks
    assert task.difference == pytest.approx(-28 / 200)
    assert [flip.idx for flip in task.lost] == list(range(100, 130))
    assert [flip.idx for flip in task.gained] == [0, 1]
    assert task.p == pytest.approx(stats.binomtest(2, 32, 0.5).pvalue)
    assert verdict(task.difference, task.interval, task.p_holm).startswith("worse: −14.0 points, interval −")
    assert found.mean_difference == task.difference


def test_the_interval_is_that_of_paired_differences(pair: Any) -> None:
    """The normal interval of a mean of paired differences, which pairing makes much narrower than two intervals."""
    rng = np.random.default_rng(1)
    before = rng.random(1000) < 0.5
    after = before ^ (rng.random(1000) < 0.05)
    [task] = compare(*pair(terra_samples(before), terra_samples(after))).tasks
    differences = after.astype(float) - before.astype(float)
    width = 1.96 * differences.std(ddof=1) / np.sqrt(1000)
    assert task.interval[0] == pytest.approx(differences.mean() - width, abs=0.004)
    assert task.interval[1] == pytest.approx(differences.mean() + width, abs=0.004)


def test_the_divergence_is_that_of_the_choice_distributions(pair: Any) -> None:
    rng = np.random.default_rng(2)
    scores = [rng.normal(size=(20, 2)) for _ in range(2)]
    right = np.ones(20, dtype=bool)
    [task] = compare(*pair(terra_samples(right, scores[0]), terra_samples(right, scores[1]))).tasks
    shares = [np.exp(values) / np.exp(values).sum(1, keepdims=True) for values in scores]
    expected = np.mean([stats.entropy(was, now) for was, now in zip(*shares, strict=True)])
    assert task.divergence == pytest.approx(expected)


def muserc_samples(right: np.ndarray) -> list[SampleRecord]:
    """Ten answers a paragraph, five a question, all of them right ones; a false prediction says they are not."""
    return [
        SampleRecord(
            task="muserc",
            idx={"paragraph": number // 10, "question": number // 5, "answer": number},
            prediction="1" if is_right else "0",
            gold="1",
            scores=[-2.0, -0.2],
        )
        for number, is_right in enumerate(right)
    ]


def test_muserc_is_resampled_by_paragraphs(pair: Any) -> None:
    before = np.ones(400, dtype=bool)
    after = before.copy()
    after[:40] = False  # four paragraphs wholly wrong
    [task] = compare(*pair(muserc_samples(before), muserc_samples(after))).tasks
    assert task.test == "bootstrap"
    assert len(task.lost) == 40
    # Were answers drawn alone, the interval would be some three times narrower.
    assert task.interval[1] - task.interval[0] > 0.1
    assert task.difference == pytest.approx(((2 * 360 / (2 * 360 + 40)) + 36 / 40) / 2 - 1)


def test_the_same_run_twice_is_the_same(pair: Any) -> None:
    right = np.arange(50) % 3 > 0
    found = compare(*pair(terra_samples(right), terra_samples(right)))
    [task] = found.tasks
    assert (task.difference, task.interval, task.p, task.lost, task.gained) == (0, (0, 0), 1.0, (), ())
    assert verdict(task.difference, task.interval, task.p_holm).startswith("the same: 0.0 points")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task_changes": {"data_sha256": "0" * 64}}, "different documents in terra"),
        ({"task_changes": {"prompt": "truth"}}, "different prompts in terra (statement and truth)"),
        ({"task_changes": {"prompt_sha256": "0" * 64}}, "different rendered prompts in terra"),
        ({"task_changes": {"documents": 7}}, "different numbers of documents in terra"),
    ],
)
def test_runs_that_are_not_alike_are_refused(pair: Any, changes: dict[str, Any], said: str) -> None:
    right = np.ones(10, dtype=bool)
    with pytest.raises(UserError, match=said.replace("(", r"\(").replace(")", r"\)")):
        compare(*pair(terra_samples(right), terra_samples(right), **changes))


def test_other_prompts_are_compared_where_that_is_asked_for(pair: Any) -> None:
    right = np.arange(50) % 3 > 0
    found = compare(
        *pair(terra_samples(right), terra_samples(~right), task_changes={"prompt_sha256": "0" * 64}),
        across_prompts=True,
    )
    assert len(found.tasks[0].lost) == right.sum()
    assert "asked by other prompts: terra" in comparison_text(found)


def hashed(samples: list[SampleRecord], hashes: list[str]) -> list[SampleRecord]:
    return [sample.model_copy(update={"document": one}) for sample, one in zip(samples, hashes, strict=True)]


def test_examples_are_paired_by_their_content(pair: Any) -> None:
    # The same idx for all, as in some files: the content tells them apart.
    samples = hashed(terra_samples(np.arange(10) < 5), [str(number) for number in range(10)])
    alike = [sample.model_copy(update={"idx": 0}) for sample in samples]
    found = compare(*pair(alike, alike[::-1]))
    assert (found.tasks[0].lost, found.tasks[0].gained) == ((), ())


@pytest.mark.parametrize("after", ["others", "without hashes"])
def test_examples_that_are_others_or_cannot_be_told_apart_are_refused(pair: Any, after: str) -> None:
    samples = terra_samples(np.ones(10, dtype=bool))
    if after == "others":
        sides = [hashed(samples, [f"{side} {number}" for number in range(10)]) for side in "ab"]
    else:
        sides = [[sample.model_copy(update={"idx": 0}) for sample in samples]] * 2
    directories = pair(*sides)
    with pytest.raises(UserError, match="not of the same examples"):
        compare(*directories)


def test_other_tasks_are_left_out_and_none_in_common_is_refused(pair: Any, tmp_path: Path) -> None:
    right = np.ones(20, dtype=bool)
    both = terra_samples(right) + muserc_samples(right)
    found = compare(*pair(both, terra_samples(right)))
    assert [task.task for task in found.tasks] == ["terra"]
    assert found.left_out == ("muserc",)
    other = write(tmp_path / "other", muserc_samples(right))
    with pytest.raises(UserError, match="no task in common"):
        compare(tmp_path / "after", other)


def test_a_bootstrap_p_is_small_only_where_draws_agree() -> None:
    rng = np.random.default_rng(3)
    assert bootstrap_p(rng.normal(0, 1, 5000)) > 0.8
    assert bootstrap_p(rng.normal(5, 1, 5000)) < 0.001
    found = bootstrap_p(rng.normal(1.96, 1, 200_000))
    assert found == pytest.approx(0.05, abs=0.004)


def test_points_carry_their_sign() -> None:
    assert [points(0.0123), points(-0.004), points(-0.0001), points(0.0)] == ["+1.2", "−0.4", "0.0", "0.0"]
