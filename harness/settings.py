"""The settings of work that may be interrupted: resumed work must have those that it was started with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.files import write_atomically

SETTINGS = "settings.json"


def agree_on_settings(directory: Path, settings: dict[str, Any], *, resume: bool, what: str) -> None:
    """Check the settings of work and keep those of new work: `check_settings`, then `keep_settings`."""
    check_settings(directory, settings, resume=resume, what=what)
    keep_settings(directory, settings)


def check_settings(directory: Path, settings: dict[str, Any], *, resume: bool, what: str) -> None:
    """Hold the settings of resumed work against the kept ones; new work must find none. Nothing is written.

    Args:
        directory: Of the work.
        settings: Everything that decides the result, as plain JSON values.
        resume: Whether the user wants to continue.
        what: The work in words, for messages: "training run".

    Raises:
        UserError: Unfinished work is in the way, there is none to resume, or its settings differ.
    """
    if not resume:
        if (directory / SETTINGS).exists():
            raise UserError(f"{directory} holds an unfinished {what}", "continue it with --resume, or remove it")
        return
    if not (directory / SETTINGS).exists():
        raise UserError(f"no {what} to resume in {directory}", "leave out --resume, or name its --output")
    check_same_settings(directory, read_settings(directory), settings)


def keep_settings(directory: Path, settings: dict[str, Any]) -> None:
    """Keep the settings of new work in its directory, which is made if missing; those of resumed work stay.

    Raises:
        UserError: The directory cannot be written.
    """
    if (directory / SETTINGS).exists():
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {directory}: {error.strerror}", "name another --output") from error
    write_atomically(directory / SETTINGS, json.dumps(settings, ensure_ascii=False, indent=2) + "\n")


def read_settings(directory: Path) -> dict[str, Any]:
    """Return the settings that work in this directory was started with.

    Raises:
        UserError: The directory holds none, or the file is damaged.
    """
    path = directory / SETTINGS
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{directory} holds no {SETTINGS}", "name the directory of earlier work") from error
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}", "name another --output") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path} holds no settings", "name another --output")
    return settings


def check_same_settings(directory: Path, before: Any, now: Any) -> None:
    """Refuse to continue with other settings.

    Args:
        directory: Of the interrupted work, for the message.
        before: Its settings, as plain JSON values.
        now: The settings asked for.

    Raises:
        UserError: They differ; the message lists where.
    """
    differing = list(setting_differences(before, json.loads(json.dumps(now))))
    if differing:
        raise UserError(
            f"{directory} was started with other settings: {'; '.join(differing)}",
            "repeat its settings, or name another --output",
        )


def setting_differences(before: Any, now: Any, path: str = "") -> Iterator[str]:
    """Yield each place where two trees of plain JSON values differ, with both values, shortened."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in {**before, **now}:
            yield from setting_differences(before.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif before != now:
        was, is_now = (text if len(text) < 30 else f"{text[:12]}…" for text in (str(before), str(now)))
        yield f"{path} ({was}, now {is_now})"
