"""Task heads over a language model's hidden states: their rows as a vocabulary of their own.

A head's row scores one answer as `hidden · weight + bias`, just as a row of the vocabulary matrix scores a token. So an
answer by a head is requested like a token: a virtual token, the row's number, follows what the head reads, and the
planner shares prefixes and batches as ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.scoring.encoding import ScoredSequence, TextEncoder, cut_prompt, encode_pairs, move_trailing_space
from harness.tasks import HeadKind, get_task


@dataclass(frozen=True)
class HeadLayout:
    """Where the rows of each task's head stand in one matrix.

    Row 0 is the constant score 0, which the first label of a sigmoid head has.

    Attributes:
        kinds: Task -> kind of its head.
        starts: Task -> number of its first row.
        rows: Number of rows of all heads.
    """

    kinds: dict[str, HeadKind]
    starts: dict[str, int]
    rows: int

    def row(self, task: str, choice: int) -> int:
        """Return the row that scores a choice."""
        start, kind = self.starts[task], self.kinds[task]
        if kind == "classification":
            return start + choice
        if kind == "sigmoid":
            return start if choice else 0
        return start

    def rows_of(self, task: str) -> range:
        """Return the rows of a task's head."""
        return range(self.starts[task], self.starts[task] + get_task(task).head_rows(self.kinds[task]))


def make_layout(kinds: dict[str, HeadKind]) -> HeadLayout:
    """Lay out these heads in the order of the dictionary."""
    starts: dict[str, int] = {}
    rows = 1
    for task, kind in kinds.items():
        starts[task] = rows
        rows += get_task(task).head_rows(kind)
    return HeadLayout(dict(kinds), starts, rows)


@dataclass(frozen=True)
class Heads:
    """Trained heads. `weight` float32 [rows, hidden size], `bias` float32 [rows]; row 0 is zero."""

    layout: HeadLayout
    weight: np.ndarray
    bias: np.ndarray

    def project(self, hidden: np.ndarray, sources: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Score chosen rows, with the arguments and results of `Backend.project`; the flags are all False."""
        scores = np.einsum("mh,mh->m", hidden[sources].astype(np.float64), self.weight[rows].astype(np.float64))
        return scores + self.bias[rows], np.zeros(len(rows), dtype=bool)


def log_softmax(scores: Sequence[float]) -> np.ndarray:
    """Return the log-probabilities of the choices of one document, float64."""
    values = np.asarray(scores, dtype=np.float64)
    return values - np.logaddexp.reduce(values)


def head_sequences(
    encoder: TextEncoder, layout: HeadLayout, task: str, pairs: Sequence[tuple[str, str]], context_length: int
) -> list[ScoredSequence]:
    """Return the sequences of one question's choices: what the task's head reads, then its row as a virtual token.

    Args:
        encoder: Of the model's tokenizer.
        layout: Of the heads.
        task: The task's name; its own head answers, or the one it borrows.
        pairs: (context, continuation) of each choice, from the task file.
        context_length: Of the model; longer texts lose tokens from the left, but keep their BOS.
    """
    head = get_task(task).head_owner
    kind = layout.kinds[head]
    if kind == "likelihood":
        return encode_pairs(encoder, pairs, context_length)
    sequences = []
    for choice, (context, continuation) in enumerate(pairs):
        text = context + continuation if kind == "ranking" else context
        tokens = encoder.encode(move_trailing_space(text, "")[0])
        kept = cut_prompt(tokens, context_length, encoder.bos_id)
        sequences.append(ScoredSequence((*kept, layout.row(head, choice)), len(kept), len(tokens) - len(kept)))
    return sequences
