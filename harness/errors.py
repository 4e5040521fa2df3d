"""Errors that a user can cause and fix. Everything else is a bug and shows its traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from adapters.base import UserError

__all__ = ["UserError", "nearest_hint"]

MOST_LISTED = 100


def nearest_hint(name: str, known: Iterable[str], what: str) -> str:
    """`did you mean …?` with the nearest of the known names, or, where none is near, all of them if they are few."""
    names = list(known)
    near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"{what}: {', '.join(names)}" if len(names) <= MOST_LISTED else what
