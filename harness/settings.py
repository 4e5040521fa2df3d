"""The settings of work that may be interrupted: it goes on only with the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def setting_differences(before: Any, now: Any, path: str = "") -> Iterator[str]:
    """Where two trees of plain JSON values differ, each place with both values, shortened."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in {**before, **now}:
            yield from setting_differences(before.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif before != now:
        was, is_now = (text if len(text) < 30 else f"{text[:12]}…" for text in (str(before), str(now)))
        yield f"{path} ({was}, now {is_now})"
