"""Task heads over a language model's hidden states: their rows as a vocabulary of their own.

A head's row scores one answer as `hidden · weight + bias`, just as a row of the vocabulary matrix scores a token. So an
answer by a head is requested like a token: a virtual token, the row's number, follows what the head reads, and the
planner shares prefixes and batches as ever.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.errors import UserError
from harness.scoring.encoding import ScoredSequence, TextEncoder, cut_prompt, encode_pairs, move_trailing_space
from harness.tasks import HeadKind, get_task
from harness.tasks.prompts import ChosenTask


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
        """Return the row that scores a choice, by any head but a pair head."""
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


def check_prompts(chosen: Iterable[ChosenTask], kinds: Mapping[str, HeadKind]) -> None:
    """Refuse prompts that a task's head cannot answer.

    Args:
        chosen: Tasks and prompts.
        kinds: Task -> kind of its head; the language model answers the others.

    Raises:
        UserError: A pair head with a prompt of one text, or a prompt of two texts without a pair head.
    """
    for one in chosen:
        compares = not one.file.is_generated and kinds.get(get_task(one.file.task).head_owner) == "pair"
        if one.gives_pair == compares:
            continue
        fitting = [name for name in one.file.prompts if dataclasses.replace(one, prompt=name).gives_pair == compares]
        prompt = f"the prompt {one.prompt} of {one.file.name}"
        raise UserError(
            f"{prompt} gives one text, and a pair head compares two"
            if compares
            else f"{prompt} gives two texts, which only a trained pair head compares",
            f"prompts that fit: {', '.join(fitting) or 'none'}",
        )


def pair_scores(rows: Any) -> Any:
    """Return how much the two texts of each question speak for the second label; the first label has the score 0.

    A text's first row says how near another text must be, the others are its features: the score is the sum of what
    both texts allow, less the squared distance of their features. So it is the same in either order.

    Args:
        rows: The rows' scores, numpy or torch [..., 2 texts, rows of the head].

    Returns:
        [...].
    """
    first, second = rows[..., 0, :], rows[..., 1, :]
    distance = ((first[..., 1:] - second[..., 1:]) ** 2).sum(-1)
    return first[..., 0] + second[..., 0] - distance


def choice_scores(kind: HeadKind, scores: Sequence[float]) -> list[float]:
    """Return the scores of one question's choices.

    Args:
        kind: Of the head.
        scores: Of the question's sequences, from `head_sequences`.
    """
    if kind == "pair":
        return [0.0, float(pair_scores(np.reshape(scores, (2, -1))))]
    return list(scores)


def head_sequences(
    encoder: TextEncoder, layout: HeadLayout, task: str, pairs: Sequence[tuple[str, str]], context_length: int
) -> list[ScoredSequence]:
    """Return the sequences of one question: what the task's head reads, then a row as a virtual token.

    There is one for each choice; a pair head has one for each text and row, text by text.

    Args:
        encoder: Of the model's tokenizer.
        layout: Of the heads.
        task: The task's name; its own head answers, or the one it borrows.
        pairs: (context, continuation) of each choice, from the task file; for a pair head, of both texts.
        context_length: Of the model; longer texts lose tokens from the left, but keep their BOS.
    """
    head = get_task(task).head_owner
    kind = layout.kinds[head]
    if kind == "likelihood":
        return encode_pairs(encoder, pairs, context_length)
    sequences = []
    for choice, (context, continuation) in enumerate(pairs):
        text = context + continuation if kind in ("ranking", "pair") else context
        tokens = encoder.encode(move_trailing_space(text, "")[0])
        kept = cut_prompt(tokens, context_length, encoder.bos_id)
        rows = layout.rows_of(head) if kind == "pair" else [layout.row(head, choice)]
        sequences += [ScoredSequence((*kept, row), len(kept), len(tokens) - len(kept)) for row in rows]
    return sequences
