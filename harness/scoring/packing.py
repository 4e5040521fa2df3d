"""Sequences that share prefixes to one packed sequence: every shared prefix once, branches one after the other.

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
        until: int32 [n], end of the token's subtree: token j is seen by the tokens i with j <= i < until[j].
        predictions: int32 [m, 3], (index into `tokens` that predicts, token predicted, sequence).
        sequences: how many were packed.
    """

    tokens: np.ndarray
    positions: np.ndarray
    until: np.ndarray
    predictions: np.ndarray
    sequences: int

    def __len__(self) -> int:
        return len(self.tokens)


def pack(sequences: Sequence[ScoredSequence]) -> PackedSequence:
    """Packs the inputs of the sequences, and says where each of their continuation tokens is predicted."""
    tokens: list[int] = []
    positions: list[int] = []
    until: list[int] = []
    predictions: list[tuple[int, int, int]] = []

    def add(node: PrefixNode) -> None:
        start = len(tokens)
        tokens.extend(node.tokens[node.start : node.end])
        positions.extend(range(node.start, node.end))
        until.extend([0] * (node.end - node.start))
        predictions.extend((start + depth - node.start, token, index) for depth, token, index in node.predictions)
        for child in node.children:
            add(child)
        until[start : start + node.end - node.start] = [len(tokens)] * (node.end - node.start)

    add(prefix_tree(sequences))
    # By sequence, and within it in the order of the text.
    predictions.sort(key=lambda prediction: (prediction[2], positions[prediction[0]]))
    return PackedSequence(
        np.array(tokens, dtype=np.int32),
        np.array(positions, dtype=np.int32),
        np.array(until, dtype=np.int32),
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
    until: np.ndarray

    def mask(self, window: int | None = None) -> np.ndarray:
        """Who sees whom: bool [rows, 1, longest, longest], True where the query (second last axis) sees the key.

        Args:
            window: a token sees only this many positions, its own included; None: all before it.
        """
        index = np.arange(self.tokens.shape[1])
        seen = (index[None, None, :] <= index[None, :, None]) & (index[None, :, None] < self.until[:, None, :])
        if window is not None:
            seen &= self.positions[:, :, None] - self.positions[:, None, :] < window
        return seen[:, None]


def stack(packed: Sequence[PackedSequence]) -> PackedBatch:
    """A batch of one or more packed sequences."""
    longest = max(map(len, packed))
    index = np.arange(longest)
    tokens = np.zeros((len(packed), longest), dtype=np.int64)
    positions = np.zeros_like(tokens)
    until = np.repeat(index[None] + 1, len(packed), axis=0)
    for row, one in enumerate(packed):
        tokens[row, : len(one)] = one.tokens
        positions[row, : len(one)] = one.positions
        until[row, : len(one)] = one.until
    return PackedBatch(tokens, positions, until)
