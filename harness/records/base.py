"""Typed, versioned JSON files: how every record is read and written."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.errors import UserError
from harness.files import write_atomically

log = logging.getLogger(__name__)


class Record(BaseModel):
    """A frozen record that knows all of its keys. Infinities are strings, since JSON has no number for them."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


R = TypeVar("R", bound=Record)
# From the values of one schema version to those of the next.
Migration = Callable[[dict[str, Any]], dict[str, Any]]


def write_record(path: Path, record: Record) -> None:
    """Write a record as JSON, whole or not at all.

    Raises:
        UserError: The file cannot be written.
    """
    write_atomically(
        path, json.dumps(record.model_dump(mode="json"), ensure_ascii=False, indent=2, allow_nan=False) + "\n"
    )


def read_record(
    path: Path,
    kind: type[R],
    *,
    version: int,
    version_key: str = "schema_version",
    migrations: Mapping[int, Migration] | None = None,
    missing: str = "",
    hint: str = "",
) -> R:
    """Read a record, migrating one of an older version.

    Args:
        path: The JSON file.
        kind: Its type.
        version: The newest schema version, which `kind` describes.
        version_key: The key that holds the file's version.
        migrations: Version -> how its values become those of the next version.
        missing: What to do where there is no file.
        hint: What to do where it is damaged or newer than this program.

    Raises:
        UserError: No file, a damaged one, or one of an unknown version.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path.parent} holds no {path.name}", missing or hint) from error
    except (ValueError, OSError) as error:
        raise UserError(f"cannot read {path}: {error}", hint) from error
    if not isinstance(values, dict) or version_key not in values:
        raise UserError(f"cannot read {path}: it has no {version_key.replace('_', ' ')}", hint)
    found = values[version_key]
    while found != version and found in (migrations or {}):
        values = (migrations or {})[found](values)
        found = values[version_key]
    if found != version:
        raise UserError(f"{path} has {version_key.replace('_', ' ')} {found}; this program reads {version}", hint)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path} is damaged: {where}: {first['msg']}", hint) from error


def readable(paths: Iterable[Path], read: Callable[[Path], R]) -> Iterator[tuple[Path, R]]:
    """Yield the records that can be read; one damaged file, which is logged, keeps nothing from being made."""
    for path in paths:
        try:
            yield path, read(path)
        except UserError as error:
            log.warning("%s is left out: %s", path, error.message)
