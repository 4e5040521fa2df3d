"""The schema that every task's documents share.

Column names are the hub's (hyphens as underscores), labels are the hub's class indices. A label of -1 (RuCoS: no
answers) is hidden: the document belongs to a test split.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from harness.text import short

HIDDEN_LABEL = -1
Row = dict[str, Any]


def _whole_number(value: Any) -> Any:
    """LiDiRus writes its idx as a string of digits."""
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        return int(value)
    return value


def _not_empty(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty")
    return text


Index = Annotated[int, BeforeValidator(_whole_number), Field(ge=0)]
Offset = Annotated[int, Field(ge=0)]  # characters from the start of the text
Choice = Annotated[str, AfterValidator(_not_empty)]  # something that can be answered
BinaryLabel = Literal[-1, 0, 1]


class Strict(BaseModel):
    """Strict about types; ignores unknown columns, since official files carry more than the tasks need."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class Document(Strict):
    """One example of one task."""

    idx: Any

    def row(self) -> Row:
        """Return plain values by column: lists for tuples, a dict for a nested idx."""
        return self.model_dump(mode="json")


class DocumentFault(ValueError):
    """A fault in an example that is neither a type nor a label."""


class LabelError(ValueError):
    """A label that the task does not have."""


def describe(error: ValidationError) -> str:
    """Describe the first fault in one line."""
    first = error.errors(include_url=False, include_context=False)[0]
    *parents, field = (f"[{part}]" if isinstance(part, int) else part for part in first["loc"] or ("line",))
    where = f" in {'.'.join(parents).replace('.[', '[')}" if parents else ""
    if first["type"] == "missing":
        return f'no field "{field}"{where}'
    if first["type"] == "value_error":
        return f'field "{field}"{where} {first["msg"].removeprefix("Value error, ")}'
    message = first["msg"][:1].lower() + first["msg"][1:]
    return f'field "{field}"{where}: {message}, not {short(first["input"])}'


def document_key(document: Document | Mapping[str, Any]) -> Hashable:
    """Return what `--limit` counts and the bootstrap draws: MuSeRC's paragraph, elsewhere the row's own idx."""
    idx = (document if isinstance(document, Mapping) else document.model_dump(include={"idx"}))["idx"]
    if not isinstance(idx, Mapping):
        return idx
    return idx["paragraph"] if "paragraph" in idx else tuple(idx.values())


def content_hash(document: Any) -> str:
    """Return the SHA-256 of a document's content, whatever order its keys have."""
    return hashlib.sha256(json.dumps(document, sort_keys=True, ensure_ascii=False, default=str).encode()).hexdigest()
