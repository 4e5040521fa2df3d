"""Task heads over a language model's hidden states: which task has which, and their rows as a vocabulary of their own.

A head's row scores one answer as `hidden · weight + bias`, just as a row of the vocabulary matrix scores a token. So an
answer by a head is asked for like a token: a virtual token, the row's number, follows what the head reads, and the
planner shares prefixes and batches as ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from harness.data import LABELS
from harness.scoring.encoding import ScoredSequence, TextEncoder, cut_prompt, encode_pairs, move_trailing_space

# classification: a row a label, read after the prompt, softmax over the labels
# sigmoid: one row, read after the prompt; the first label has the score 0
# ranking: one row, read after prompt and candidate, softmax over the candidates of a document
# likelihood: no rows: the language model's own log-probability of the candidate, softmax over the candidates
HeadKind = Literal["classification", "sigmoid", "ranking", "likelihood"]
DEFAULT_KINDS: dict[str, HeadKind] = {
    "rcb": "classification",
    "parus": "ranking",
    "muserc": "sigmoid",
    "terra": "classification",
    "russe": "classification",
    "rwsd": "classification",
    "danetqa": "classification",
    "rucos": "ranking",
}
# LiDiRus is a test set that asks what TERRa asks, in TERRa's words and labels.
BORROWED = {"lidirus": "terra"}


def head_of(task: str) -> str:
    """The task whose head answers this task."""
    return BORROWED.get(task, task)


def allowed_kinds(task: str) -> tuple[HeadKind, ...]:
    """Tasks with classes of their own are classified; where candidates differ by document they are ranked."""
    if task in ("parus", "rucos"):
        return ("ranking", "likelihood")
    return ("classification", "sigmoid", "likelihood") if len(LABELS[task]) == 2 else ("classification", "likelihood")


@dataclass(frozen=True)
class HeadLayout:
    """Where the rows of each task's head stand in one matrix.

    Row 0 is the constant score 0, which the first label of a sigmoid head has.

    Attributes:
        kinds: task -> kind of its head.
        starts: task -> number of its first row.
        rows: rows in all.
    """

    kinds: dict[str, HeadKind]
    starts: dict[str, int]
    rows: int

    def row(self, task: str, choice: int) -> int:
        """The row that scores a choice."""
        start, kind = self.starts[task], self.kinds[task]
        if kind == "classification":
            return start + choice
        if kind == "sigmoid":
            return start if choice else 0
        return start

    def rows_of(self, task: str) -> range:
        return range(self.starts[task], self.starts[task] + _row_count(task, self.kinds[task]))


def make_layout(kinds: dict[str, HeadKind]) -> HeadLayout:
    """The layout of these heads, in the order of the dictionary."""
    starts: dict[str, int] = {}
    rows = 1
    for task, kind in kinds.items():
        starts[task] = rows
        rows += _row_count(task, kind)
    return HeadLayout(dict(kinds), starts, rows)


def _row_count(task: str, kind: HeadKind) -> int:
    return {"classification": len(LABELS[task]), "sigmoid": 1, "ranking": 1, "likelihood": 0}[kind]


@dataclass(frozen=True)
class Heads:
    """Trained heads. `weight` float32 [rows, hidden size], `bias` float32 [rows]; row 0 is zero."""

    layout: HeadLayout
    weight: np.ndarray
    bias: np.ndarray

    def project(self, hidden: np.ndarray, sources: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scores of chosen rows; takes the place of `Backend.project`, which see. The flags returned are all False."""
        scores = np.einsum("mh,mh->m", hidden[sources].astype(np.float64), self.weight[rows].astype(np.float64))
        return scores + self.bias[rows], np.zeros(len(rows), dtype=bool)


def log_softmax(scores: Sequence[float]) -> np.ndarray:
    """Log-probabilities of the choices of one document, float64."""
    values = np.asarray(scores, dtype=np.float64)
    return values - np.logaddexp.reduce(values)


def head_sequences(
    encoder: TextEncoder, layout: HeadLayout, task: str, pairs: Sequence[tuple[str, str]], context_length: int
) -> list[ScoredSequence]:
    """The sequences of one question's choices: what the task's head reads, then the head's row as a virtual token.

    Args:
        encoder: of the model's tokenizer.
        layout: of the heads.
        task: short name; its own head answers, or the one it borrows.
        pairs: (context, continuation) of each choice, from the task file.
        context_length: of the model; longer texts lose tokens from the left, but keep their BOS.
    """
    head = head_of(task)
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
