"""Documents to training examples: rendered by the task file, encoded, packed, with their right choices."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.models.chat import Template
from harness.models.heads import HeadLayout, head_sequences
from harness.scoring.encoding import ScoredSequence, TextEncoder
from harness.scoring.packing import PackedSequence, pack
from harness.tasks import Row, Task, document_key
from harness.tasks.rendering import render_document

# Sequences lose tokens of their passages alone, by `max_tokens`; nothing is cut from the left.
_UNLIMITED = 1 << 30


@dataclass(frozen=True)
class Example:
    """One document (for MuSeRC a paragraph with all its answers), as one packed sequence.

    For a pair head it is several documents that compare the same texts.

    Attributes:
        task: The task's name.
        docs: The rows of the document, one per question (MuSeRC: one per answer).
        packed: Its sequences from `head_sequences`, question by question.
        questions: The number of each choice's question, int64 [choices].
        right: Whether each choice is a right one, bool [choices].
        cut: Tokens dropped from the passage.
        soft: A teacher's probability of each choice, float32 [choices], zeros in a question without a soft label; None
            where the document has none.
    """

    task: str
    docs: tuple[Row, ...]
    packed: PackedSequence
    questions: np.ndarray
    right: np.ndarray
    cut: int = 0
    soft: np.ndarray | None = None


@dataclass(frozen=True)
class Encoding:
    """How rendered documents become token sequences.

    Attributes:
        encoder: Of the base model's tokenizer.
        template: The chat template and whether it is applied.
        layout: Of the heads.
        max_tokens: A longer sequence loses tokens from the end of its passage.
    """

    encoder: TextEncoder
    template: Template
    layout: HeadLayout
    max_tokens: int


def make_examples(task: Task, renderer: Any, rows: Iterable[Row], encoding: Encoding) -> list[Example]:
    """Return the examples of a task's documents, in their order.

    Args:
        task: The task.
        renderer: lm-eval's task object with the chosen prompt.
        rows: The documents' rows.
        encoding: How they become token sequences.
    """
    if encoding.layout.kinds[task.name] == "pair":
        documents = _documents_of_shared_texts(renderer, list(rows), encoding)
    else:
        by_key: dict[Hashable, list[Row]] = {}
        for row in rows:
            by_key.setdefault(document_key(row), []).append(row)
        documents = list(by_key.values())
    return [_example(task, renderer, docs, encoding) for docs in documents]


def _documents_of_shared_texts(renderer: Any, rows: Sequence[Row], encoding: Encoding) -> list[list[Row]]:
    """Return the documents of a pair head in groups whose texts, each counted once, have at most `max_tokens` tokens.

    A group grows from a document by those that share one of its texts.
    """
    texts = [
        [
            context + text
            for context, text in (request.args for request in render_document(renderer, row, encoding.template))
        ]
        for row in rows
    ]
    comparing: dict[str, list[int]] = {}
    for number, pair in enumerate(texts):
        for text in pair:
            comparing.setdefault(text, []).append(number)
    lengths = {text: len(encoding.encoder.encode(text)) for text in comparing}
    groups: list[list[Row]] = []
    waiting = dict.fromkeys(range(len(rows)))
    while waiting:
        group: list[int] = []
        held: set[str] = set()
        queue = deque([next(iter(waiting))])
        while queue:
            number = queue.popleft()
            new = set(texts[number]) - held
            if number not in waiting or (group and sum(lengths[text] for text in held | new) > encoding.max_tokens):
                continue
            del waiting[number]
            group.append(number)
            held |= new
            queue.extend(other for text in texts[number] if text in new for other in comparing[text])
        groups.append([rows[number] for number in group])
    return groups


def _example(task: Task, renderer: Any, docs: list[Row], encoding: Encoding) -> Example:
    questions = _encoded(task, renderer, docs, encoding)
    whole = longest = _longest(questions)
    excess = 0
    while longest > encoding.max_tokens and task.passage and excess < whole:
        # More than one round where the prompt does not show all of a passage's text (RuCoS's marks).
        excess += longest - encoding.max_tokens
        shortened = [_shortened(doc, task.passage, excess, encoding.encoder) for doc in docs]
        questions = _encoded(task, renderer, shortened, encoding)
        longest = _longest(questions)
    pair = encoding.layout.kinds[task.name] == "pair"
    right = [
        task.right_choices(doc, 2 if pair else len(question)) for doc, question in zip(docs, questions, strict=True)
    ]
    return Example(
        task=task.name,
        docs=tuple(docs),
        packed=pack([sequence for question in questions for sequence in question]),
        questions=np.repeat(np.arange(len(docs), dtype=np.int64), [len(choices) for choices in right]),
        right=np.array([is_right for choices in right for is_right in choices], dtype=bool),
        cut=whole - longest,
    )


def _encoded(task: Task, renderer: Any, docs: Sequence[Row], encoding: Encoding) -> list[list[ScoredSequence]]:
    """Return the sequences of each document's choices."""
    rendered = [[request.args for request in render_document(renderer, doc, encoding.template)] for doc in docs]
    return [head_sequences(encoding.encoder, encoding.layout, task.name, pairs, _UNLIMITED) for pairs in rendered]


def _longest(questions: Sequence[Sequence[ScoredSequence]]) -> int:
    return max(len(sequence.tokens) for question in questions for sequence in question)


def _shortened(doc: Row, field: str, excess: int, encoder: TextEncoder) -> Row:
    """Return the document with at least `excess` tokens fewer in its passage, cut from the end at a space."""
    text = doc[field]
    tokens = len(encoder.encode(text))
    share = max(0.0, 1 - (excess + 1) / tokens)
    while share > 0 and tokens - len(encoder.encode(text[: int(len(text) * share)])) < excess:
        share -= 0.02
    kept = text[: max(0, int(len(text) * share))]
    return {**doc, field: kept.rsplit(" ", 1)[0]}
