"""Scoring a plan: the same numbers as sequence by sequence, however the work is cut, interrupted or halved."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from adapters.base import Backend, OutOfMemory, Prefix, Sampling
from adapters.torch_backend import TorchBackend, load_torch
from harness.scoring import scorer as scorer_module
from harness.scoring.encoding import ScoredSequence
from harness.scoring.plan import Plan, make_plan
from harness.scoring.scorer import NotFinite, Score, Scorer, plan_fingerprint
from harness.scoring.store import ProgressStore
from tests.tiny_gemma import VOCABULARY_SIZE, make_tiny_gemma

TOLERANCE = 1e-3  # natural logarithms
BUDGETS = [1, 48, 160, 4096]  # tokens a batch: every row alone, many units, few, all at once


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_gemma(tmp_path_factory.mktemp("gemma"), num_hidden_layers=4)


@pytest.fixture(scope="module")
def backend(directory: Path) -> TorchBackend:
    return load_torch("torch-cpu", directory, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def sequences() -> list[ScoredSequence]:
    """Paragraphs with several questions and answers, shared shots, unrelated rows, duplicates."""
    generator = np.random.default_rng(11)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(generator.integers(6, VOCABULARY_SIZE, count).tolist())

    found: list[ScoredSequence] = []
    shots = (2, *tokens(25))
    for _ in range(3):
        paragraph = shots + tokens(40)
        for _ in range(4):
            context = paragraph + tokens(int(generator.integers(3, 9)))
            found += [ScoredSequence((*context, answer), len(context)) for answer in (300, 301)]
    long_answer = tokens(6)
    found += [ScoredSequence(shots + long_answer[:end], len(shots)) for end in (1, 3, 6)]
    found += [ScoredSequence((2, *tokens(n)), max(1, n - 2)) for n in (1, 2, 9, 30, 30, 31)]
    found += [found[3], ScoredSequence((2, 50), 1)]
    return found


@pytest.fixture(scope="module")
def expected(directory: Path, sequences: list[ScoredSequence]) -> list[Score]:
    """Every sequence alone through plain transformers."""
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    scores = []
    for sequence in sequences:
        with torch.no_grad():
            logits = model.eval()(torch.tensor([list(sequence.tokens)]), use_cache=False).logits[0]
        table = logits.double().log_softmax(-1).numpy()
        targets = range(sequence.continuation_start, len(sequence.tokens))
        logprob = sum(table[place - 1, sequence.tokens[place]] for place in targets)
        greedy = all(table[place - 1].argmax() == sequence.tokens[place] for place in targets)
        scores.append(Score(float(logprob), bool(greedy)))
    return scores


def assert_same(found: list[Score], expected: list[Score]) -> None:
    np.testing.assert_allclose([s.logprob for s in found], [s.logprob for s in expected], atol=TOLERANCE, rtol=0)
    assert [s.greedy for s in found] == [s.greedy for s in expected]


class Interrupted(Exception):
    """Stands for whatever ends a process."""


class WatchedBackend(Backend):
    """The tiny model, with a count of its forward passes and, if asked for, a limit that it fails at."""

    def __init__(
        self,
        inner: TorchBackend,
        *,
        most_rows: int | None = None,
        passes: int | None = None,
        damage: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
    ) -> None:
        self.inner = inner
        self.info, self.tokenizer = inner.info, inner.tokenizer
        self.most_rows, self.passes, self.damage = most_rows, passes, damage
        self.row_counts: list[int] = []

    def hidden_states(
        self,
        rows: Sequence[Sequence[int]],
        positions: Sequence[Sequence[int]],
        prefix: Prefix | None = None,
        keep: bool = False,
    ) -> tuple[np.ndarray, Prefix | None]:
        if self.passes is not None and len(self.row_counts) >= self.passes:
            raise Interrupted
        self.row_counts.append(len(rows))
        if self.most_rows is not None and len(rows) > self.most_rows:
            raise OutOfMemory(f"{len(rows)} rows")
        return self.inner.hidden_states(rows, positions, prefix, keep)

    def project(self, hidden: np.ndarray, sources: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logprobs, greedy = self.inner.project(hidden, sources, tokens)
        return (self.damage(logprobs, tokens) if self.damage else logprobs), greedy

    def vocabulary_logits(self, hidden):
        raise NotImplementedError

    def library_logprobs(self, tokens: Sequence[int]) -> np.ndarray:
        raise NotImplementedError

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        on_text: Callable[[int, str], None] | None = None,
    ) -> list[str]:
        raise NotImplementedError

    def peak_memory(self) -> int | None:
        return None


def all_units(plan: Plan) -> list[Any]:
    return list(plan.root.units())


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_tokens", BUDGETS)
def test_scores_are_those_of_every_sequence_alone(backend, sequences, expected, batch_tokens):
    plan = make_plan(sequences, batch_tokens)
    assert_same(Scorer(backend).score(plan, sequences), expected)


def test_prefixes_are_really_shared_in_these_tests(sequences):
    plan = make_plan(sequences, 160)
    assert plan.root.cuts
    assert any(cut.cuts for cut in plan.root.cuts)
    assert plan.tokens_shared > plan.tokens_asked / 2


def test_a_greedy_continuation_is_recognised(backend, sequences):
    prompt = list(sequences[0].tokens[:10])
    for _ in range(3):
        hidden, _ = backend.hidden_states([prompt], [[len(prompt) - 1]])
        everything = np.arange(VOCABULARY_SIZE)
        _, greedy = backend.project(hidden, np.zeros(VOCABULARY_SIZE, dtype=np.int64), everything)
        prompt.append(int(np.flatnonzero(greedy)[0]))
    best = ScoredSequence(tuple(prompt), 10)
    other = ScoredSequence((*prompt[:-1], (prompt[-1] + 1) % VOCABULARY_SIZE), 10)
    found = Scorer(backend).score(make_plan([best, other], 64), [best, other])
    assert [score.greedy for score in found] == [True, False]


@pytest.mark.parametrize("positions", [1, 7, 10_000])
def test_the_size_of_a_projected_block_changes_nothing(backend, sequences, expected, monkeypatch, positions):
    monkeypatch.setattr(scorer_module, "POSITIONS_PER_BLOCK", positions)
    assert_same(Scorer(backend).score(make_plan(sequences, 96), sequences), expected)


# --- progress and statistics ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_tokens", BUDGETS)
def test_progress_adds_up_to_the_tokens_of_the_plan(backend, sequences, monkeypatch, batch_tokens):
    monkeypatch.setattr(scorer_module, "POSITIONS_PER_BLOCK", 5)
    plan = make_plan(sequences, batch_tokens)
    seen: list[int] = []
    Scorer(backend).score(plan, sequences, seen.append)
    assert sum(seen) == plan.tokens_computed


def test_statistics_count_what_was_done(backend, sequences):
    plan = make_plan(sequences, 160)
    watched = WatchedBackend(backend)
    scorer = Scorer(watched)
    scorer.score(plan, sequences)
    found = scorer.statistics
    assert found.forward_passes == len(watched.row_counts) == len(all_units(plan))
    assert (found.tokens_computed, found.tokens_shared) == (plan.tokens_computed, plan.tokens_shared)
    rows = [[len(row) for row in unit.rows] for unit in all_units(plan)]
    assert found.padding == sum(len(lengths) * max(lengths) - sum(lengths) for lengths in rows)
    distinct = {(unit.number, p.row, p.position) for unit in all_units(plan) for p in unit.predictions}
    assert found.positions_projected == len(distinct)
    assert (found.halved, found.resumed_units) == (0, 0)


# --- resume -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_tokens", [48, 160])
@pytest.mark.parametrize("passes", [0, 1, 2, 5, 8])
def test_an_interrupted_run_ends_bit_by_bit_as_an_uninterrupted_one(
    backend, sequences, monkeypatch, tmp_path, batch_tokens, passes
):
    monkeypatch.setattr(scorer_module, "POSITIONS_PER_BLOCK", 4)
    plan = make_plan(sequences, batch_tokens)
    whole = Scorer(backend).score(plan, sequences)
    with ProgressStore(tmp_path / "store") as store, pytest.raises(Interrupted):
        Scorer(WatchedBackend(backend, passes=passes), store).score(plan, sequences)
    with ProgressStore(tmp_path / "store") as store:
        kept = len(store.scored_units(plan_fingerprint(plan)))
        scorer = Scorer(backend, store)
        seen: list[int] = []
        assert scorer.score(plan, sequences, seen.append) == whole
        assert scorer.statistics.resumed_units == kept
        assert sum(seen) == plan.tokens_computed
        assert len(store.scored_units(plan_fingerprint(plan))) == len(all_units(plan))


@pytest.mark.parametrize("which", ["first", "last", "even", "prefixes", "batches"])
def test_a_store_with_half_of_the_units_gives_the_same_scores_in_fewer_passes(
    backend, sequences, monkeypatch, tmp_path, which
):
    monkeypatch.setattr(scorer_module, "POSITIONS_PER_BLOCK", 1)  # every unit is projected alone, whatever is stored
    plan = make_plan(sequences, 160)
    units = all_units(plan)
    prefixes = {cut.unit.number for cut in _cuts(plan.root) if cut.unit}
    chosen = {
        "first": [unit.number for unit in units[: len(units) // 2]],
        "last": [unit.number for unit in units[len(units) // 2 :]],
        "even": [unit.number for unit in units[::2]],
        "prefixes": sorted(prefixes),
        "batches": [unit.number for unit in units if unit.number not in prefixes],
    }[which]
    key = plan_fingerprint(plan)
    with ProgressStore(tmp_path / "whole") as store, ProgressStore(tmp_path / "half") as half:
        first = WatchedBackend(backend)
        whole = Scorer(first, store).score(plan, sequences)
        scored = store.scored_units(key)
        half.put_units(key, {number: scored[number] for number in chosen})
        second = WatchedBackend(backend)
        scorer = Scorer(second, half)
        assert scorer.score(plan, sequences) == whole
        assert scorer.statistics.resumed_units == len(chosen)
        # Stored prefixes whose rows are missing are computed again, and nothing else.
        assert len(second.row_counts) <= len(first.row_counts)
        if which != "prefixes":
            assert len(second.row_counts) < len(first.row_counts)
        for number, (logprobs, greedy) in half.scored_units(key).items():
            np.testing.assert_array_equal(logprobs, scored[number][0])
            np.testing.assert_array_equal(greedy, scored[number][1])


def _cuts(root: Any) -> Iterator[Any]:
    yield root
    for cut in root.cuts:
        yield from _cuts(cut)


def test_a_finished_store_needs_no_forward_pass(backend, sequences, tmp_path):
    plan = make_plan(sequences, 160)
    with ProgressStore(tmp_path / "store") as store:
        whole = Scorer(backend, store).score(plan, sequences)
        watched = WatchedBackend(backend, passes=0)
        seen: list[int] = []
        assert Scorer(watched, store).score(plan, sequences, seen.append) == whole
        assert sum(seen) == plan.tokens_computed


def test_other_work_finds_nothing_in_the_store(backend, sequences, tmp_path):
    with ProgressStore(tmp_path / "store") as store:
        Scorer(backend, store).score(make_plan(sequences, 160), sequences)
        for other in (make_plan(sequences[1:], 160), make_plan(sequences, 48)):
            assert store.scored_units(plan_fingerprint(other)) == {}


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most_rows", [1, 2, 3, 5])
def test_batches_that_do_not_fit_are_halved_and_score_the_same(backend, sequences, expected, most_rows):
    plan = make_plan(sequences, 4096)
    watched = WatchedBackend(backend, most_rows=most_rows)
    scorer = Scorer(watched)
    assert_same(scorer.score(plan, sequences), expected)
    assert scorer.statistics.halved == sum(count > most_rows for count in watched.row_counts) > 0


def test_halved_batches_are_stored_like_whole_ones(backend, sequences, tmp_path):
    plan = make_plan(sequences, 4096)
    with ProgressStore(tmp_path / "store") as store:
        halved = Scorer(WatchedBackend(backend, most_rows=2), store).score(plan, sequences)
        assert Scorer(WatchedBackend(backend, passes=0), store).score(plan, sequences) == halved


def test_a_single_row_that_does_not_fit_ends_the_scoring(backend, sequences):
    with pytest.raises(OutOfMemory):
        Scorer(WatchedBackend(backend, most_rows=0)).score(make_plan(sequences, 160), sequences)


# --- numbers that are none --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, -np.inf, np.inf])
def test_a_number_that_is_none_names_the_sequence(backend, sequences, bad):
    rare = [
        ScoredSequence((*sequence.tokens[:-1], 400 + index), len(sequence.tokens) - 1)
        for index, sequence in enumerate(sequences)
    ]
    damaged = WatchedBackend(backend, damage=lambda logprobs, tokens: np.where(tokens == 417, bad, logprobs))
    with pytest.raises(NotFinite) as caught:
        Scorer(damaged).score(make_plan(rare, 160), rare)
    assert caught.value.sequence == 17


def test_what_was_scored_before_a_nan_is_kept(backend, sequences, monkeypatch, tmp_path):
    monkeypatch.setattr(scorer_module, "POSITIONS_PER_BLOCK", 1)
    plan = make_plan(sequences, 160)
    last = all_units(plan)[-1].predictions[-1]
    damaged = WatchedBackend(backend, damage=lambda logprobs, tokens: np.where(tokens == last.token, np.nan, logprobs))
    with ProgressStore(tmp_path / "store") as store:
        with pytest.raises(NotFinite):
            Scorer(damaged, store).score(plan, sequences)
        kept = store.scored_units(plan_fingerprint(plan))
        assert all(np.isfinite(logprobs).all() for logprobs, _ in kept.values())
        assert len(kept) > 0
