"""Choosing documents: a limited evaluation sample, and few-shot examples."""

from __future__ import annotations

import itertools
import random
from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

from harness.data.sources import cached_split
from harness.tasks import Row, document_key, get_task
from harness.text import as_json

T = TypeVar("T")


def fewshot_pool(task: str, source: str) -> list[Row]:
    """Return train documents to draw few-shot examples from; a test set borrows those of the task it is answered by."""
    found = get_task(task)
    rows = [document.row() for document in cached_split(found.head_owner, "train", source).documents]
    return [{**{own: row[other] for own, other in found.borrowed_columns.items()}, **row} for row in rows]


def without_documents(task: str, pool: Sequence[Row], rows: Iterable[Row]) -> list[Row]:
    """Return the documents of a pool that do not ask what one of `rows` asks, whatever their idx and split.

    Args:
        task: Whose fields both have.
        pool: Documents.
        rows: Those to leave out.
    """
    names = [field.name for field in get_task(task).fields]

    def asked(row: Row) -> str:
        return as_json([row[name] for name in names])

    left_out = {asked(row) for row in rows}
    return [row for row in pool if asked(row) not in left_out]


def sample_documents(rows: Sequence[Row], limit: int, seed: int) -> list[Row]:
    """Return all rows of `limit` documents, evenly spread: one drawn from each of `limit` equal stretches of the file.

    The order of the file is kept. With a limit at or above the number of documents all rows come back.
    """
    documents = list(dict.fromkeys(document_key(row) for row in rows))
    if limit >= len(documents):
        return list(rows)
    chosen = set(evenly_spread(documents, limit, seed))
    return [row for row in rows if document_key(row) in chosen]


def evenly_spread(values: Sequence[T], limit: int | None, seed: int) -> list[T]:
    """Return one value drawn from each of `limit` equal stretches, in their order; all where there are no more."""
    if limit is None or limit >= len(values):
        return list(values)
    rng = random.Random(seed)
    borders = [round(part * len(values) / limit) for part in range(limit + 1)]
    return [values[rng.randrange(start, end)] for start, end in itertools.pairwise(borders)]


def draw_shots(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """Draw `count` few-shot examples with balanced labels, in an order that the seed fixes.

    Labels take turns, so their numbers differ by at most one; tasks without labels (RuCoS) are drawn at large.
    Of MuSeRC at most one answer a paragraph is drawn, so that no long text is shown twice.

    Raises:
        ValueError: fewer documents than asked for.
    """
    rng = random.Random(seed)
    shuffled = list(rows)
    rng.shuffle(shuffled)
    by_label: dict[Hashable, list[Row]] = {}
    for row in shuffled:
        by_label.setdefault(row.get("label"), []).append(row)
    queues = [by_label[label] for label in sorted(by_label, key=str)]
    rng.shuffle(queues)  # the first one has one more if the number is odd
    shots: list[Row] = []
    seen: set[Hashable] = set()
    while len(shots) < count and any(queues):
        for queue in queues:
            while queue:
                row = queue.pop()
                if document_key(row) not in seen:
                    seen.add(document_key(row))
                    shots.append(row)
                    break
    if len(shots) < count:
        raise ValueError(f"only {len(shots)} documents to draw {count} few-shot examples from")
    shots = shots[:count]
    rng.shuffle(shots)
    return shots
