"""The settings of work that may be interrupted: it goes on only with the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.errors import UserError


def check_same_settings(directory: Path, before: Any, now: Any, hint: str) -> None:
    """Refuses to go on with other settings.

    Args:
        directory: of the interrupted work.
        before, now: its settings, and those asked for, as plain JSON values.
        hint: what to do.

    Raises:
        UserError: they differ; says where.
    """
    differing = list(setting_differences(before, now))
    if differing:
        raise UserError(f"{directory} was started with other settings: {'; '.join(differing)}", hint)


def setting_differences(before: Any, now: Any, path: str = "") -> Iterator[str]:
    """Where two trees of plain JSON values differ, each place with both values, shortened."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in {**before, **now}:
            yield from setting_differences(before.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif before != now:
        was, is_now = (text if len(text) < 30 else f"{text[:12]}…" for text in (str(before), str(now)))
        yield f"{path} ({was}, now {is_now})"
