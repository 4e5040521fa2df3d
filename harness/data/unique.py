"""Every example has an idx of its own: samples, comparisons and limits find it by that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pydantic import BaseModel

from harness.errors import UserError
from harness.tasks.document import Document
from harness.text import as_json


def with_unique_idx(placed: Iterable[tuple[str, Document]]) -> Iterator[Document]:
    """Yield documents as they come.

    Args:
        placed: Each with the place that it was read from.

    Raises:
        UserError: An idx comes a second time; both places are named.
    """
    places: dict[str, str] = {}
    for place, document in placed:
        idx = as_json(document.row()["idx"] if isinstance(document.idx, BaseModel) else document.idx)
        if idx in places:
            raise UserError(f"{place}: idx {idx} stands in {places[idx]} too", "give every example an idx of its own")
        places[idx] = place
        yield document
