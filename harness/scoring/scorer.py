"""Carry out a plan on a backend: prefill the cuts, run the batches, project, store, sum up.

Hidden states of many units are projected to the vocabulary together, since reading the 262,144-row matrix costs the
same for one position as for hundreds.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from adapters.base import Backend, OutOfMemory, Prefix
from harness.processes import ALONE, Processes
from harness.scoring.encoding import ScoredSequence
from harness.scoring.plan import Cut, Plan, Prediction, Unit, share_units
from harness.scoring.store import ProgressStore

# Units are projected and stored together once they hold this many predicted positions or this many tokens: some
# seconds of work, which is the most that a kill can lose.
POSITIONS_PER_BLOCK = 384
TOKENS_PER_BLOCK = 16_384


# (hidden [n, hidden size], sources [m], tokens [m]) -> (scores [m], flags [m]), as `Backend.project` does.
Projection = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
# Log-probabilities (float64) and greedy flags (bool) of a unit's predictions, in order.
Scored = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Score:
    """log P(continuation | context), natural logarithm, and whether greedy decoding would give the continuation."""

    logprob: float
    greedy: bool


@dataclass
class ScoringStatistics:
    """What the scoring cost. Tokens leave padding out; `padding` counts it; `halved` counts batches too large."""

    tokens_computed: int = 0
    tokens_shared: int = 0
    padding: int = 0
    positions_projected: int = 0
    forward_passes: int = 0
    halved: int = 0
    resumed_units: int = 0


class NotFinite(Exception):
    """The model gave NaN or infinite log-probabilities for sequence `sequence`."""

    def __init__(self, sequence: int) -> None:
        super().__init__(f"the model's log-probabilities are not finite for request {sequence}")
        self.sequence = sequence


def plan_fingerprint(plan: Plan) -> str:
    """Return the SHA-256 over every token of the plan, so that a stored score belongs to exactly this work."""
    digest = hashlib.sha256()
    for unit in plan.root.units():
        for row in unit.rows:
            digest.update(np.asarray(row, dtype=np.int32).tobytes() + b"/")
        digest.update(
            np.asarray([(p.row, p.position, p.token, p.sequence) for p in unit.predictions], dtype=np.int32).tobytes()
        )
        digest.update(b"|")
    return digest.hexdigest()


@dataclass
class _Block:
    """Units computed but not yet projected."""

    units: list[Unit] = field(default_factory=list)
    hidden: list[np.ndarray] = field(default_factory=list)
    sources: list[np.ndarray] = field(default_factory=list)
    positions: int = 0
    tokens: int = 0

    def is_full(self) -> bool:
        return self.positions >= POSITIONS_PER_BLOCK or self.tokens >= TOKENS_PER_BLOCK


def hidden_states_halving(
    backend: Backend,
    rows: Sequence[Sequence[int]],
    positions: Sequence[Sequence[int]],
    statistics: ScoringStatistics,
    prefix: Prefix | None = None,
    keep: bool = False,
) -> tuple[np.ndarray, Prefix | None]:
    """Do `Backend.hidden_states`, in smaller batches where a batch does not fit.

    Raises:
        OutOfMemory: Not even a single row fits.
    """
    try:
        statistics.forward_passes += 1
        statistics.padding += len(rows) * max(map(len, rows)) - sum(map(len, rows))
        return backend.hidden_states(rows, positions, prefix, keep)
    except OutOfMemory:
        if len(rows) == 1:
            raise
    statistics.halved += 1
    middle = len(rows) // 2
    first, _ = hidden_states_halving(backend, rows[:middle], positions[:middle], statistics, prefix)
    second, _ = hidden_states_halving(backend, rows[middle:], positions[middle:], statistics, prefix)
    return np.concatenate([first, second]), None


class Scorer:
    """Scores a plan on a backend.

    Args:
        backend: The loaded model.
        store: Where finished units are kept and looked up; None keeps nothing.
        processes: Those that share every plan; all must score the same ones.
    """

    def __init__(self, backend: Backend, store: ProgressStore | None = None, processes: Processes = ALONE) -> None:
        self._backend = backend
        self._store = store
        self._processes = processes
        self.statistics = ScoringStatistics()

    def score(
        self,
        plan: Plan,
        sequences: Sequence[ScoredSequence],
        on_progress: Callable[[int], object] = lambda tokens: None,
        project: Projection | None = None,
    ) -> list[Score]:
        """Return a score for every sequence of the plan, in order.

        Args:
            plan: Made from `sequences`.
            sequences: What to score.
            on_progress: Called with the number of tokens just finished (computed, or found in the store).
            project: Scores predictions instead of `Backend.project`: task heads, whose rows then stand for tokens.

        Raises:
            NotFinite: The model gave NaN; what was scored before is stored.
            OutOfMemory: Not even a single row fits, or the projection does not.
        """
        key = plan_fingerprint(plan)
        done = self._together(self._store.scored_units(key) if self._store else {})
        self._key = key
        self._project = project or self._backend.project
        self._on_progress = on_progress
        self._scored: dict[int, Scored] = {}
        self._block = _Block()
        self._last_stored = time.monotonic()
        self.statistics.tokens_computed += plan.tokens_computed
        self.statistics.tokens_shared += plan.tokens_shared
        self.statistics.resumed_units += len(done)
        self._on_progress(sum(unit.tokens for unit in plan.root.units() if unit.number in done))
        mine = share_units(plan.root, self._processes.size, done)[self._processes.rank]
        self._walk(plan.root, None, {unit.number for unit in plan.root.units()} - mine)
        self._flush()
        return _sum_up(plan, done | self._together(self._scored), sequences)

    def _together(self, scored: Mapping[int, Scored]) -> dict[int, Scored]:
        """Return what all processes hold together."""
        if self._processes.size == 1:
            return dict(scored)
        lists = {unit: (logprobs.tolist(), greedy.tolist()) for unit, (logprobs, greedy) in scored.items()}
        return {
            int(unit): (np.array(logprobs, dtype=np.float64), np.array(greedy, dtype=bool))
            for found in self._processes.gather(lists)
            for unit, (logprobs, greedy) in found.items()
        }

    def _walk(self, cut: Cut, before: Prefix | None, done: Collection[int]) -> None:
        """Carry out a cut: its prefix first, then its batches, then the cuts below it, but for units in `done`."""
        if all(unit.number in done for unit in cut.units()):
            return
        prefix = before
        if cut.unit is not None:
            keep = any(unit.number not in done for unit in cut.units() if unit is not cut.unit)
            # A stored prefix is computed again for its cache; its predictions are known and must not be stored twice.
            hidden, sources, prefix = self._compute(cut.unit, before, keep)
            if cut.unit.number not in done:
                self._finish(cut.unit, hidden, sources)
        for unit in cut.batches:
            if unit.number not in done:
                hidden, sources, _ = self._compute(unit, prefix, keep=False)
                self._finish(unit, hidden, sources)
        for below in cut.cuts:
            self._walk(below, prefix, done)

    def _compute(self, unit: Unit, prefix: Prefix | None, keep: bool) -> tuple[np.ndarray, np.ndarray, Prefix | None]:
        """Return the hidden states of a unit's predicted positions, and for each prediction the index of its state."""
        wanted: list[dict[int, int]] = [{} for _ in unit.rows]
        for prediction in unit.predictions:
            wanted[prediction.row].setdefault(prediction.position, 0)
        index = 0
        positions: list[list[int]] = []
        for row in wanted:
            positions.append(sorted(row))
            for position in positions[-1]:
                row[position] = index
                index += 1
        hidden, kept = hidden_states_halving(self._backend, unit.rows, positions, self.statistics, prefix, keep)
        sources = np.array([wanted[p.row][p.position] for p in unit.predictions], dtype=np.int64)
        return hidden, sources, kept

    def _finish(self, unit: Unit, hidden: np.ndarray, sources: np.ndarray) -> None:
        block = self._block
        block.units.append(unit)
        block.sources.append(sources + block.positions)
        block.hidden.append(hidden)
        block.positions += len(hidden)
        block.tokens += unit.tokens
        if block.is_full():
            self._flush()

    def _flush(self) -> None:
        """Project and store the block."""
        block, self._block = self._block, _Block()
        if not block.units:
            return
        predictions = [prediction for unit in block.units for prediction in unit.predictions]
        tokens = np.array([prediction.token for prediction in predictions], dtype=np.int64)
        logprobs, greedy = np.empty(0), np.empty(0, dtype=bool)
        if len(tokens):
            hidden = np.concatenate(block.hidden)
            logprobs, greedy = self._project(hidden, np.concatenate(block.sources), tokens)
            _refuse_not_finite(logprobs, predictions)
        self.statistics.positions_projected += block.positions
        scored = {}
        start = 0
        for unit in block.units:
            end = start + len(unit.predictions)
            scored[unit.number] = (logprobs[start:end], greedy[start:end])
            start = end
        self._scored.update(scored)
        if self._store:
            now = time.monotonic()
            self._store.put_units(self._key, scored)
            self._store.add_seconds(now - self._last_stored)
            self._last_stored = now
        self._on_progress(block.tokens)


def _refuse_not_finite(logprobs: np.ndarray, predictions: Sequence[Prediction]) -> None:
    bad = np.flatnonzero(~np.isfinite(logprobs))
    if len(bad):
        raise NotFinite(predictions[bad[0]].sequence)


def _sum_up(plan: Plan, scored: dict[int, Scored], sequences: Sequence[ScoredSequence]) -> list[Score]:
    totals = np.zeros(len(sequences))
    greedy = np.ones(len(sequences), dtype=bool)
    for unit in plan.root.units():
        logprobs, is_greedy = scored[unit.number]
        for prediction, logprob, best in zip(unit.predictions, logprobs, is_greedy, strict=True):
            totals[prediction.sequence] += logprob
            greedy[prediction.sequence] &= best
    return [Score(float(total), bool(best)) for total, best in zip(totals, greedy, strict=True)]
