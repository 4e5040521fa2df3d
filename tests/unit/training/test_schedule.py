"""The order of training: which examples make up which batch, and how the learning rate rises and falls."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.scoring.packing import PackedSequence
from harness.training.examples import Example
from harness.training.recipe import Recipe
from harness.training.schedule import learning_rate_share, make_schedule, one_epoch

Schedule = list[list[tuple[str, list[int]]]]

SIZES = {"big": (900, 20), "middle": (100, 30), "small": (20, 25)}  # task -> (examples, tokens of each)


def example(length: int) -> Example:
    values = np.zeros(length, dtype=np.int32)
    packed = PackedSequence(values, values, values, np.zeros((0, 3), dtype=np.int32), 1)
    return Example("terra", (), packed, np.zeros(1, dtype=np.int64), np.ones(1, dtype=bool))


def examples(*lengths: int) -> list[Example]:
    return [example(length) for length in lengths]


def padded(batch: list[int], lengths: list[int]) -> int:
    return len(batch) * max(lengths[number] for number in batch)


def scheduled(sizes: dict[str, tuple[int, int]] = SIZES, steps: int = 100, temperature: float = 2.0, seed: int = 1):
    whole = {task: examples(*[length] * count) for task, (count, length) in sizes.items()}
    return make_schedule(whole, steps=steps, batches_per_step=4, batch_tokens=100, temperature=temperature, seed=seed)


def batches_by_task(schedule: Schedule) -> Counter[str]:
    return Counter(task for step in schedule for task, _ in step)


lists_of_lengths = st.lists(st.integers(1, 60), min_size=1, max_size=200)
generators = st.none() | st.integers(0, 9).map(np.random.default_rng)


# --- one epoch --------------------------------------------------------------------------------------------------------


@given(lengths=lists_of_lengths, batch_tokens=st.integers(16, 200), rng=generators)
def test_every_example_comes_once_an_epoch(lengths, batch_tokens, rng):
    batches = one_epoch(examples(*lengths), batch_tokens, rng)
    assert all(batches)
    assert sorted(itertools.chain(*batches)) == list(range(len(lengths)))


@given(lengths=lists_of_lengths, spare=st.integers(0, 100), rng=generators)
def test_no_batch_of_several_examples_is_over_the_budget_with_its_padding(lengths, spare, rng):
    # So large a budget that all examples are sorted at a time; the test below looks at more.
    batch_tokens = sum(lengths) // 16 + 1 + spare
    for batch in one_epoch(examples(*lengths), batch_tokens, rng):
        assert len(batch) == 1 or padded(batch, lengths) <= batch_tokens


def test_no_batch_is_over_the_budget_where_a_long_example_is_left_over():
    lengths = [*[5] * 303, 90]  # the first 303 are sorted together
    for batch in one_epoch(examples(*lengths), 100):
        assert padded(batch, lengths) <= 100


def test_an_example_longer_than_the_budget_goes_alone():
    batches = one_epoch(examples(10, 200, 10, 300), 100)
    assert sorted(map(sorted, batches)) == [[0, 2], [1], [3]]


@given(count=st.integers(1, 300), length=st.integers(1, 50), spare=st.integers(0, 50))
def test_batches_of_like_examples_differ_by_no_more_than_a_half(count, length, spare):
    """No remainder of a few examples, which would weigh as much as a full batch."""
    batch_tokens = count * length // 16 + 1 + spare
    rows = [len(batch) for batch in one_epoch(examples(*[length] * count), batch_tokens)]
    assert min(rows) >= max(rows) // 2


def test_a_remainder_is_shared_with_the_batch_before_it():
    assert [len(batch) for batch in one_epoch(examples(*[10] * 41), 200)] == [20, 10, 11]


def test_examples_of_like_length_share_a_batch():
    lengths = np.random.default_rng(0).integers(10, 200, 400).tolist()
    batches = one_epoch(examples(*lengths), 1000, np.random.default_rng(1))
    filled = sum(lengths) / sum(padded(batch, lengths) for batch in batches)
    assert filled > 0.9  # in the order of the file it is 0.6


def test_without_a_generator_nothing_is_drawn_by_lot():
    lengths = np.random.default_rng(0).integers(10, 200, 100).tolist()
    assert one_epoch(examples(*lengths), 500) == one_epoch(examples(*lengths), 500)
    assert one_epoch(examples(*lengths), 500) != one_epoch(examples(*lengths), 500, np.random.default_rng(0))


# --- the schedule -----------------------------------------------------------------------------------------------------


@given(steps=st.integers(1, 20), batches_per_step=st.integers(1, 5), seed=st.integers(0, 9))
def test_there_are_as_many_steps_and_batches_as_asked_for(steps, batches_per_step, seed):
    schedule = make_schedule(
        {"a": examples(5, 6, 7), "b": examples(9)},
        steps=steps,
        batches_per_step=batches_per_step,
        batch_tokens=16,
        temperature=2.0,
        seed=seed,
    )
    assert [len(step) for step in schedule] == [batches_per_step] * steps


def test_the_seed_fixes_the_schedule():
    assert scheduled(seed=1) == scheduled(seed=1)
    assert scheduled(seed=1) != scheduled(seed=2)


def test_a_longer_run_begins_like_a_shorter_one():
    assert scheduled(steps=50)[:20] == scheduled(steps=20)


@pytest.mark.parametrize("seed", range(3))
def test_every_example_of_a_task_comes_once_before_any_comes_twice(seed):
    schedule = scheduled({"a": (37, 10), "b": (11, 30)}, steps=60, seed=seed)
    for task, count in (("a", 37), ("b", 11)):
        numbers = [number for step in schedule for name, batch in step if name == task for number in batch]
        epochs = [numbers[start : start + count] for start in range(0, len(numbers) - count + 1, count)]
        assert len(epochs) > 3
        assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1  # not always in the same order


@pytest.mark.parametrize("temperature", [1, 2, 5])
def test_shares_of_batches_follow_tokens_by_the_temperature(temperature):
    found = batches_by_task(scheduled(steps=400, temperature=temperature))
    wanted = {task: (count * length) ** (1 / temperature) for task, (count, length) in SIZES.items()}
    for task in SIZES:
        assert found[task] / 1600 == pytest.approx(wanted[task] / sum(wanted.values()), abs=0.01)


def test_a_higher_temperature_evens_the_shares():
    gaps = []
    for temperature in (1, 2, 4, 1000):
        found = batches_by_task(scheduled(temperature=temperature)).values()
        gaps.append(max(found) - min(found))
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 300
    assert gaps[-1] <= 3


def test_the_batches_of_a_task_are_spread_over_the_whole_run():
    tasks = [task for step in scheduled(steps=250) for task, _ in step]
    wanted = {task: (count * length) ** 0.5 for task, (count, length) in SIZES.items()}
    for task in SIZES:
        share = wanted[task] / sum(wanted.values())
        done = np.cumsum([name == task for name in tasks])
        assert np.abs(done - share * np.arange(1, 1001)).max() < 2  # batches ahead or behind, at any time


# --- the learning rate ------------------------------------------------------------------------------------------------


def shares(schedule: str, warmup_steps: int, steps: int = 20) -> list[float]:
    """The share in each step, and in the one that would come after the last."""
    recipe = Recipe.model_validate(
        {
            "model": "embedded",
            "frozen_layers": 0,
            "tasks": {"terra": {}},
            "steps": steps,
            "learning_rate": 1.0,
            "heads_learning_rate": 1.0,
            "warmup_steps": warmup_steps,
            "schedule": schedule,
        }
    )
    return [learning_rate_share(recipe, step) for step in range(steps + 1)]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_learning_rate_warms_up_in_even_parts_to_its_peak(schedule):
    assert shares(schedule, 4)[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_without_a_warm_up_training_starts_at_the_peak(schedule):
    assert shares(schedule, 0)[0] == 1.0


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("warmup_steps", [0, 4])
def test_the_learning_rate_falls_from_its_peak_to_nothing_after_the_last_step(schedule, warmup_steps):
    decay = shares(schedule, warmup_steps)[warmup_steps:]
    assert decay[0] == 1.0
    assert all(later < sooner for sooner, later in itertools.pairwise(decay))
    assert decay[-2] > 0
    assert decay[-1] == pytest.approx(0, abs=1e-12)


def test_a_linear_decay_falls_by_the_same_amount_every_step():
    assert np.diff(shares("linear", 4)[4:]) == pytest.approx([-1 / 16] * 16)


def test_a_cosine_decay_is_half_done_half_way_and_slow_at_both_ends():
    decay = shares("cosine", 4)[4:]
    assert decay[8] == pytest.approx(0.5)
    assert decay[4] == pytest.approx((1 + 2**-0.5) / 2)
    assert decay[12] == pytest.approx((1 - 2**-0.5) / 2)


def test_a_constant_learning_rate_stays_at_its_peak():
    assert shares("constant", 4)[3:] == [1.0] * 18


def test_a_warm_up_longer_than_the_run_never_ends():
    assert shares("cosine", 40)[:20] == pytest.approx([step / 40 for step in range(1, 21)])
