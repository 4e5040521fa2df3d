"""Token sequences to a plan: which prefixes are computed once, which rows go into which batch.

Pure Python on integers; no tensor library. The plan depends only on the sequences and the token budget, so a resumed
run makes the same plan and skips the units that are already scored.

A prefix tree holds what the model reads of every sequence. A node of the tree becomes a *cut* where computing its
prefix once saves enough tokens; everything below is computed in rows that follow the cut's key-value cache.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from adapters.text import common_length
from harness.scoring.encoding import ScoredSequence

# A further forward pass costs about as much as this share of a full batch (some tens of tokens on a CPU, hundreds on a
# device that only large batches fill): a prefix gets a cache of its own if it saves more tokens, and a batch ends
# before it holds more padding.
PASS_COST_SHARE = 1 / 8
# Rows of one batch repeat the keys and values of their prefix: this many prefix tokens a batch token are allowed.
PREFIX_TOKENS_PER_BATCH_TOKEN = 16

# Shared among processes, a prefix and what follows it stay together up to this part of a process's share.
PIECES_PER_PROCESS = 4


@dataclass(frozen=True)
class Prediction:
    """Token `token` of sequence `sequence` is predicted at `position` of its unit's row."""

    row: int
    position: int  # from the row's first token, the prefix not counted
    token: int
    sequence: int


@dataclass(frozen=True)
class Unit:
    """One forward pass: rows that follow one cut's prefix. The smallest piece that is scored and stored as a whole."""

    number: int
    rows: tuple[tuple[int, ...], ...]
    predictions: tuple[Prediction, ...]

    @property
    def tokens(self) -> int:
        """Tokens computed, padding left out."""
        return sum(len(row) for row in self.rows)


@dataclass
class Cut:
    """A prefix computed once (`unit` has its single row; None at the root) and what follows it."""

    unit: Unit | None
    batches: list[Unit] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)

    def units(self) -> Iterator[Unit]:
        """Yield all units of this cut and below, in the order of execution."""
        if self.unit is not None:
            yield self.unit
        yield from self.batches
        for cut in self.cuts:
            yield from cut.units()


@dataclass(frozen=True)
class Plan:
    """The work of a run. `tokens_asked` is what scoring every sequence alone would compute."""

    root: Cut
    sequences: int
    tokens_asked: int

    @property
    def tokens_computed(self) -> int:
        return sum(unit.tokens for unit in self.root.units())

    @property
    def tokens_shared(self) -> int:
        return self.tokens_asked - self.tokens_computed


@dataclass
class PrefixNode:
    """A node of the compressed prefix tree. Its segment spans the depths `start` to `end` of `tokens`."""

    tokens: tuple[int, ...]
    start: int
    end: int
    children: list[PrefixNode] = field(default_factory=list)
    predictions: list[tuple[int, int, int]] = field(default_factory=list)  # (depth that predicts, token, sequence)
    leaves: int = 0


def make_plan(sequences: Sequence[ScoredSequence], batch_tokens: int, share_prefixes: bool = True) -> Plan:
    """Plan the scoring of all sequences.

    Args:
        sequences: From `encode_pairs`.
        batch_tokens: At most this many tokens in a batch, padding included (a longer row goes alone).
        share_prefixes: Whether a prefix may be computed once; False for models whose state cannot be shared.
    """
    tree = prefix_tree(sequences)
    root = _cut(tree, batch_tokens, PASS_COST_SHARE * batch_tokens if share_prefixes else math.inf)
    _number(root)
    return Plan(root, len(sequences), sum(len(sequence.tokens) - 1 for sequence in sequences))


def prefix_tree(sequences: Sequence[ScoredSequence]) -> PrefixNode:
    """Build the tree from sorted sequences: each shares its longest prefix with the one before it."""
    root = PrefixNode((), 0, 0)
    path = [root]
    for index in sorted(range(len(sequences)), key=lambda i: sequences[i].tokens):
        inputs = sequences[index].inputs
        shared = common_length(path[-1].tokens, inputs, path[-1].end)
        while path[-1].start >= shared and len(path) > 1:
            path.pop()
        if path[-1].end > shared:
            _split(path[-1], shared)
        if len(inputs) > shared:
            leaf = PrefixNode(inputs, shared, len(inputs))
            path[-1].children.append(leaf)
            path.append(leaf)
        _place_predictions(path, sequences[index], index)
    _count_leaves(root)
    return root


def _split(node: PrefixNode, depth: int) -> None:
    """Cut the node's segment at `depth`; the lower part becomes its only child."""
    lower = PrefixNode(node.tokens, depth, node.end, node.children, [p for p in node.predictions if p[0] >= depth])
    node.predictions = [p for p in node.predictions if p[0] < depth]
    node.children = [lower]
    node.end = depth
    node.tokens = node.tokens[:depth]


def _place_predictions(path: list[PrefixNode], sequence: ScoredSequence, index: int) -> None:
    for target in range(sequence.continuation_start, len(sequence.tokens)):
        depth = target - 1
        node = next(node for node in reversed(path) if node.start <= depth)
        node.predictions.append((depth, sequence.tokens[target], index))


def _count_leaves(root: PrefixNode) -> None:
    stack = [(root, False)]
    while stack:
        node, done = stack.pop()
        if done:
            node.leaves = sum(child.leaves for child in node.children) or 1
        else:
            stack.append((node, True))
            stack.extend((child, False) for child in node.children)


@dataclass
class _Row:
    """A path of nodes from a cut down to a leaf, with the predictions that this row makes."""

    tokens: tuple[int, ...]
    predictions: list[tuple[int, int, int]]


def _cut(node: PrefixNode, batch_tokens: int, least_saved: float, base: int = 0) -> Cut:
    """Make `node` a cut: its prefix (tokens after depth `base`) is computed once."""
    unit = None
    if node.end > base:
        unit = _unit([_Row(node.tokens[base : node.end], node.predictions)], base)
    cut = Cut(unit)
    rows: list[_Row] = []
    for child in node.children:
        _collect(child, [], node.end, batch_tokens, least_saved, rows, cut)
    cut.batches = [_unit(batch, node.end) for batch in _batches(rows, node.end, batch_tokens)]
    return cut


def _collect(
    node: PrefixNode,
    carried: list[tuple[int, int, int]],
    base: int,
    batch_tokens: int,
    least_saved: float,
    rows: list[_Row],
    cut: Cut,
) -> None:
    """Turn the subtree below a cut into rows, or into further cuts where that saves `least_saved` tokens.

    `carried`: predictions of the nodes between the cut and this one that no row makes yet; the first row to pass makes
    them, the others only read the same tokens.
    """
    predictions = carried + node.predictions
    if (node.end - base) * (node.leaves - 1) >= least_saved:
        whole = PrefixNode(node.tokens, base, node.end, node.children, predictions, node.leaves)
        cut.cuts.append(_cut(whole, batch_tokens, least_saved, base))
    elif not node.children:
        rows.append(_Row(node.tokens[base : node.end], predictions))
    else:
        for child in node.children:
            _collect(child, predictions, base, batch_tokens, least_saved, rows, cut)
            predictions = []


def _batches(rows: list[_Row], prefix_length: int, batch_tokens: int) -> Iterator[list[_Row]]:
    """Batch rows of like length, the longest first, so that a lack of memory shows at once."""
    prefix_budget = batch_tokens * PREFIX_TOKENS_PER_BATCH_TOKEN
    batch: list[_Row] = []
    padding = 0
    for row in sorted(rows, key=lambda row: -len(row.tokens)):
        if batch:
            longest = len(batch[0].tokens)
            size = len(batch) + 1
            padding += longest - len(row.tokens)
            if (
                size * longest > batch_tokens
                or size * prefix_length > prefix_budget
                or padding > PASS_COST_SHARE * batch_tokens
            ):
                yield batch
                batch, padding = [], 0
        batch.append(row)
    if batch:
        yield batch


def _unit(rows: list[_Row], base: int) -> Unit:
    predictions = tuple(
        Prediction(number, depth - base, token, sequence)
        for number, row in enumerate(rows)
        for depth, token, sequence in row.predictions
    )
    return Unit(-1, tuple(row.tokens for row in rows), predictions)


def _number(root: Cut) -> None:
    """Number the units in the order of execution."""
    count = 0

    def numbered(unit: Unit) -> Unit:
        nonlocal count
        count += 1
        return Unit(count - 1, unit.rows, unit.predictions)

    stack = [root]
    while stack:
        cut = stack.pop()
        if cut.unit is not None:
            cut.unit = numbered(cut.unit)
        cut.batches = [numbered(unit) for unit in cut.batches]
        stack.extend(reversed(cut.cuts))


def share_units(root: Cut, size: int, done: Collection[int]) -> list[set[int]]:
    """Share the units that are not done among processes, balanced by tokens, prefix groups together.

    A cut goes to one process as a whole, unless it is more than a fair share: then what follows its prefix is shared,
    and each process computes the prefix for itself.

    Args:
        root: of the plan.
        size: number of processes.
        done: numbers of the units that need no computing.

    Returns:
        For each process the numbers of its units; together all that are not done, none twice.
    """
    total = sum(unit.tokens for unit in root.units() if unit.number not in done)
    pieces: list[list[Unit]] = []

    def collect(cut: Cut) -> None:
        waiting = [unit for unit in cut.units() if unit.number not in done]
        if cut is not root and sum(unit.tokens for unit in waiting) <= total / size / PIECES_PER_PROCESS:
            pieces.append(waiting)
            return
        own = [] if cut.unit is None else [cut.unit]
        pieces.extend([unit] for unit in [*own, *cut.batches] if unit.number not in done)
        for below in cut.cuts:
            collect(below)

    collect(root)
    shares: list[set[int]] = [set() for _ in range(size)]
    loads = [0] * size
    for piece in sorted(pieces, key=lambda units: -sum(unit.tokens for unit in units)):
        lightest = loads.index(min(loads))
        loads[lightest] += sum(unit.tokens for unit in piece)
        shares[lightest] |= {unit.number for unit in piece}
    return shares
