"""Pack sequences that share prefixes into one: every shared prefix once, branches one after the other.

A MuSeRC paragraph with its questions and answers, or a RuCoS passage with its entities, is computed as one row: a token
sees only the tokens on its own branch, and has the position that it has in its own sequence. So hidden states are those
of the sequences computed alone (tree attention, as in Medusa, https://arxiv.org/abs/2401.10774).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.scoring.encoding import ScoredSequence
from harness.scoring.plan import PrefixNode, prefix_tree


@dataclass(frozen=True)
class PackedSequence:
    """The prefix tree of some sequences, depth first.

    Attributes:
        tokens: int32 [n].
        positions: int32 [n], place of the token in its own sequence.
        subtree_end: int32 [n]; token j is seen by the tokens i with j <= i < subtree_end[j].
        predictions: int32 [m, 3], (index into `tokens` that predicts, token predicted, sequence).
        sequences: how many were packed.
    """

    tokens: np.ndarray
    positions: np.ndarray
    subtree_end: np.ndarray
    predictions: np.ndarray
    sequences: int

    def __len__(self) -> int:
        return len(self.tokens)


def pack(sequences: Sequence[ScoredSequence]) -> PackedSequence:
    """Pack the inputs of the sequences, and note where each of their continuation tokens is predicted."""
    tokens: list[int] = []
    positions: list[int] = []
    subtree_end: list[int] = []
    predictions: list[tuple[int, int, int]] = []

    def add(node: PrefixNode) -> None:
        start = len(tokens)
        tokens.extend(node.tokens[node.start : node.end])
        positions.extend(range(node.start, node.end))
        subtree_end.extend([0] * (node.end - node.start))
        predictions.extend((start + depth - node.start, token, index) for depth, token, index in node.predictions)
        for child in node.children:
            add(child)
        subtree_end[start : start + node.end - node.start] = [len(tokens)] * (node.end - node.start)

    add(prefix_tree(sequences))
    # By sequence, and within it in the order of the text.
    predictions.sort(key=lambda prediction: (prediction[2], positions[prediction[0]]))
    return PackedSequence(
        np.array(tokens, dtype=np.int32),
        np.array(positions, dtype=np.int32),
        np.array(subtree_end, dtype=np.int32),
        np.array(predictions, dtype=np.int32).reshape(-1, 3),
        len(sequences),
    )


@dataclass(frozen=True)
class PackedBatch:
    """Packed sequences side by side, padded on the right. int64 arrays [rows, longest].

    A padding token sees nothing but itself and is seen by nothing, so no row of the mask is empty.
    """

    tokens: np.ndarray
    positions: np.ndarray
    subtree_end: np.ndarray

    def mask(self, window: int | None = None) -> np.ndarray:
        """Return who sees whom: bool [rows, 1, longest, longest], True where the query (second last axis) sees the key.

        Args:
            window: a token sees only this many positions, its own included; None: all before it.
        """
        index = np.arange(self.tokens.shape[1])
        seen = (index[None, None, :] <= index[None, :, None]) & (index[None, :, None] < self.subtree_end[:, None, :])
        if window is not None:
            seen &= self.positions[:, :, None] - self.positions[:, None, :] < window
        return seen[:, None]


def stack(packed: Sequence[PackedSequence]) -> PackedBatch:
    """Put one or more packed sequences in a batch."""
    longest = max(map(len, packed))
    index = np.arange(longest)
    tokens = np.zeros((len(packed), longest), dtype=np.int64)
    positions = np.zeros_like(tokens)
    subtree_end = np.repeat(index[None] + 1, len(packed), axis=0)
    for row, one in enumerate(packed):
        tokens[row, : len(one)] = one.tokens
        positions[row, : len(one)] = one.positions
        subtree_end[row, : len(one)] = one.subtree_end
    return PackedBatch(tokens, positions, subtree_end)
