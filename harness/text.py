"""Small helpers for texts that people read."""

from __future__ import annotations

import json
from typing import Any


def short(value: Any, limit: int = 60) -> str:
    """Return the value as JSON on one line, cut to `limit` characters."""
    # Half a surrogate pair, which JSON can spell, must not break the printing of the very message about it.
    text = as_json(value).encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= limit else text[:limit] + "…"


def as_json(value: Any) -> str:
    """Return the value as JSON text; what JSON cannot hold by its repr."""
    return json.dumps(value, ensure_ascii=False, default=repr)
