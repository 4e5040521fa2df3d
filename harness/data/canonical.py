"""Raw columns -> canonical documents. Both loaders end here, so official files and the hub give the same documents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from harness.data import text
from harness.data.labels import short
from harness.data.schema import DOCUMENTS, RUSSE, RWSD, Document, RuCoS, TERRa


def canonical(task: str, fields: Mapping[str, Any]) -> Document:
    """Validates the columns of one example and mends what is known to be wrong with them.

    Args:
        task: one of `TASKS`.
        fields: columns by their hub names; the label as a class index, -1 if hidden; RuCoS's lists as tuples.

    Raises:
        ValidationError: a column is missing or of a wrong type; `describe` words it.
    """
    document = DOCUMENTS[task].model_validate({name.replace("-", "_"): value for name, value in fields.items()})
    clean = _CLEAN.get(task)
    return clean(document) if clean else document


def describe(error: ValidationError) -> str:
    """The first thing that is wrong, in a line."""
    first = error.errors(include_url=False, include_context=False)[0]
    *parents, field = (f"[{part}]" if isinstance(part, int) else part for part in first["loc"] or ("line",))
    where = f" in {'.'.join(parents).replace('.[', '[')}" if parents else ""
    if first["type"] == "missing":
        return f'no field "{field}"{where}'
    message = first["msg"][:1].lower() + first["msg"][1:]
    return f'field "{field}"{where}: {message}, not {short(first["input"])}'


def _clean_terra(document: Any) -> TERRa:
    return document.model_copy(
        update={
            "premise": text.unwrap_csv_quotes(document.premise),
            "hypothesis": text.unwrap_csv_quotes(document.hypothesis),
        }
    )


def _clean_russe(document: Any) -> RUSSE:
    start1, end1 = text.word_bounds(document.sentence1, document.start1, document.end1, document.word)
    start2, end2 = text.word_bounds(document.sentence2, document.start2, document.end2, document.word)
    return document.model_copy(update={"start1": start1, "end1": end1, "start2": start2, "end2": end2})


def _clean_rwsd(document: Any) -> RWSD:
    return document.model_copy(
        update={
            "span1_start": text.find_span(document.text, document.span1_text, document.span1_index),
            "span2_start": text.find_span(document.text, document.span2_text, document.span2_index),
        }
    )


def _clean_rucos(document: Any) -> RuCoS:
    return document.model_copy(
        update={
            "entities": text.clean_entities(document.entities, document.passage),
            "answers": text.clean_entities(document.answers, document.passage),
        }
    )


_CLEAN: dict[str, Callable[[Any], Document]] = {
    "terra": _clean_terra,
    "russe": _clean_russe,
    "rwsd": _clean_rwsd,
    "rucos": _clean_rucos,
}
