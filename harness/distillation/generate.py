"""Documents that a teacher wrote: read from its reply, checked against the task's schema and its traps."""

from __future__ import annotations

import json
import re
from typing import Any

from pydantic import ValidationError

from harness.data.canonical import canonical, describe
from harness.distillation.prompts import FIELDS, Item

_TOKEN = re.compile(r"\S+")
_WORDS = re.compile(r"\w+")


class Unusable(ValueError):
    """Why a reply is no document."""


def read_document(reply: str, item: Item, number: int) -> dict[str, Any]:
    """The row of the document in a reply.

    Args:
        reply: of the teacher, one JSON object somewhere in it.
        item: what was asked: the task, the label, and for a paraphrase its source.
        number: the document's idx, replaced by a free one where it is trained on.

    Raises:
        Unusable: in a few words, the same for the same fault, so that the report can count them.
    """
    fields = _object(reply)
    if not item.shots and item.task == "parus":
        fields["question"] = item.row["question"]  # the teacher is shown it in words
    texts = {}
    for name in FIELDS[item.task]:
        value = fields.get(name)
        if not isinstance(value, str) or not _WORDS.search(value):
            raise Unusable(f"no text in the field {name}")
        texts[name] = " ".join(value.split())
    if item.task == "parus" and _plain(texts["choice1"]) == _plain(texts["choice2"]):
        raise Unusable("both choices are the same")
    row: dict[str, Any] = {**texts, "idx": number, "label": item.label}
    if item.task == "rwsd":
        row |= _span_places(texts)
    try:
        return canonical(item.task, row).row()
    except ValidationError as error:
        raise Unusable(f"not in the schema: {describe(error)}") from error


def _object(reply: str) -> dict[str, Any]:
    """The JSON object in a reply, which may stand between other words or in a code block."""
    start, end = reply.find("{"), reply.rfind("}")
    if start < 0 or end < start:
        raise Unusable("no JSON object")
    try:
        found = json.loads(reply[start : end + 1])
        json.dumps(found, ensure_ascii=False).encode("utf-8")  # half a surrogate pair is no character
    except ValueError as error:
        raise Unusable("invalid JSON") from error
    return found


def _span_places(texts: dict[str, str]) -> dict[str, int]:
    """RWSD's token numbers of both spans, which must stand in the text as whole words and not in each other."""
    places = {}
    bounds = []
    for span in ("span1", "span2"):
        found = re.search(rf"(?<!\w){re.escape(texts[f'{span}_text'])}(?!\w)", texts["text"], re.IGNORECASE)
        if found is None:
            raise Unusable(f"{span} is not in the text")
        bounds.append(found.span())
        places[f"{span}_index"] = len(_TOKEN.findall(texts["text"][: found.start()]))
    (start1, end1), (start2, end2) = bounds
    if start1 < end2 and start2 < end1:
        raise Unusable("the spans overlap")
    return places


def _plain(text: str) -> list[str]:
    return _WORDS.findall(text.lower().replace("ё", "е"))
