"""The plan: every asked prediction is made exactly once, from exactly the tokens that precede it."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from harness.scoring.encoding import ScoredSequence
from harness.scoring.plan import Cut, Plan, make_plan, share_units


@st.composite
def sequences(draw: st.DrawFn) -> list[ScoredSequence]:
    """Few different tokens, so that prefixes are shared in every possible way, duplicates included."""
    tokens = draw(st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=12), min_size=1, max_size=30))
    return [ScoredSequence(tuple(row), draw(st.integers(1, len(row) - 1))) for row in tokens]


def predictions_with_contexts(plan: Plan) -> Counter[tuple[int, tuple[int, ...], int]]:
    """(sequence, all tokens before the prediction, token) of every prediction, by walking the cuts."""
    found: Counter[tuple[int, tuple[int, ...], int]] = Counter()

    def walk(cut: Cut, before: tuple[int, ...]) -> None:
        prefix = before
        units = [(unit, before) for unit in [cut.unit] if unit is not None]
        if cut.unit is not None:
            prefix = before + cut.unit.rows[0]
        units += [(unit, prefix) for unit in cut.batches]
        for unit, context in units:
            for prediction in unit.predictions:
                seen = context + unit.rows[prediction.row][: prediction.position + 1]
                found[prediction.sequence, seen, prediction.token] += 1
        for below in cut.cuts:
            walk(below, prefix)

    walk(plan.root, ())
    return found


@settings(max_examples=500, deadline=None)
@given(rows=sequences(), batch_tokens=st.integers(1, 64))
def test_every_prediction_is_made_once_from_the_right_context(rows: list[ScoredSequence], batch_tokens: int) -> None:
    plan = make_plan(rows, batch_tokens)
    wanted = Counter(
        (index, row.tokens[:target], row.tokens[target])
        for index, row in enumerate(rows)
        for target in range(row.continuation_start, len(row.tokens))
    )
    assert predictions_with_contexts(plan) == wanted


@settings(max_examples=300, deadline=None)
@given(rows=sequences(), batch_tokens=st.integers(1, 64))
def test_batches_keep_to_the_token_budget(rows: list[ScoredSequence], batch_tokens: int) -> None:
    def batches(cut: Cut) -> list[list[int]]:
        own = [[len(row) for row in unit.rows] for unit in cut.batches]
        return own + [batch for below in cut.cuts for batch in batches(below)]

    for lengths in batches(make_plan(rows, batch_tokens).root):
        assert min(lengths) > 0
        assert len(lengths) == 1 or len(lengths) * max(lengths) <= batch_tokens


@settings(max_examples=300, deadline=None)
@given(rows=sequences(), batch_tokens=st.integers(1, 64))
def test_units_are_numbered_in_the_order_of_execution_and_sharing_never_costs(
    rows: list[ScoredSequence], batch_tokens: int
) -> None:
    plan = make_plan(rows, batch_tokens)
    numbers = [unit.number for unit in plan.root.units()]
    assert numbers == list(range(len(numbers)))
    assert plan.tokens_asked == sum(len(row.tokens) - 1 for row in rows)
    assert 0 < plan.tokens_computed <= plan.tokens_asked


def test_the_same_sequences_give_the_same_plan() -> None:
    rows = [ScoredSequence((2, 5, 6, n % 7, n % 3), 4) for n in range(50)]
    first, second = make_plan(rows, 16), make_plan(rows, 16)
    assert list(first.root.units()) == list(second.root.units())


def test_a_paragraph_with_many_questions_is_computed_once() -> None:
    paragraph = tuple(range(100, 400))
    rows = [ScoredSequence((2, *paragraph, 10 + n, 11, answer), 303) for n in range(20) for answer in (50, 51)]
    plan = make_plan(rows, 1024)
    assert plan.tokens_computed == 1 + 300 + 20 * 2
    (cut,) = plan.root.cuts
    assert cut.unit is not None
    assert len(cut.unit.rows[0]) == 301
    assert [len(unit.rows) for unit in cut.batches] == [20]


def test_two_one_token_choices_need_a_single_forward_row() -> None:
    rows = [ScoredSequence((2, 7, 8, 9, answer), 4) for answer in (50, 51, 52)]
    (unit,) = make_plan(rows, 1024).root.units()
    assert unit.rows == ((2, 7, 8, 9),)
    assert {prediction.token for prediction in unit.predictions} == {50, 51, 52}
    assert {prediction.position for prediction in unit.predictions} == {3}


@settings(deadline=None)
@given(sequences(), st.integers(4, 40), st.integers(1, 4), st.data())
def test_processes_share_what_is_not_done_and_nothing_twice(
    rows: list[ScoredSequence], batch_tokens: int, size: int, data: st.DataObject
) -> None:
    plan = make_plan(rows, batch_tokens)
    units = {unit.number: unit.tokens for unit in plan.root.units()}
    done = data.draw(st.sets(st.sampled_from(sorted(units)))) if units else set()
    shares = share_units(plan.root, size, done)
    assert len(shares) == size
    assert sorted(number for share in shares for number in share) == sorted(units.keys() - done)
    loads = [sum(units[number] for number in share) for share in shares]
    # No process has more than the lightest and the largest piece, which is a unit or a part of a fair share.
    largest = max([*(units[number] for number in units.keys() - done), sum(loads) / size / 4], default=0)
    assert max(loads) <= min(loads) + largest


def test_a_paragraph_stays_with_one_process_among_many_paragraphs() -> None:
    paragraphs = [
        ScoredSequence(tuple([paragraph * 1000 + word for word in range(50)] + [question, 7]), 51)
        for paragraph in range(40)
        for question in range(900, 910)
    ]
    plan = make_plan(paragraphs, 64)
    shares = share_units(plan.root, 2, set())
    for cut in plan.root.cuts:
        numbers = {unit.number for unit in cut.units()}
        assert any(numbers <= share for share in shares)
    tokens = {unit.number: unit.tokens for unit in plan.root.units()}
    first, second = (sum(tokens[number] for number in share) for share in shares)
    assert abs(first - second) <= max(tokens.values()) * 12
