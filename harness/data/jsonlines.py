"""Reads a .jsonl file line by line and says precisely what is wrong with it."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from harness.errors import UserError
from harness.text import short


def read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers (from 1) and the JSON objects on them; blank lines are passed over.

    A line ends at "\\n" alone: JSON strings may contain U+2028 and its like, at which `str.splitlines` would cut.
    A byte order mark and CRLF are tolerated. The file is never held in memory as a whole.

    Raises:
        UserError: the file cannot be read, is empty, not UTF-8, not JSON, or ends in the middle of a line.
    """
    try:
        with path.open("rb") as file:
            empty = True
            for number, line in enumerate(file, start=1):
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                if not line.strip():
                    continue
                empty = False
                yield number, _parse(line, f"{path}:{number}", file)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if empty:
        raise UserError(f"{path} is empty", "expected one JSON object a line; unpack the archive again")


def _parse(line: bytes, place: str, rest: BinaryIO) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        # A file cut within a letter ends too early for UTF-8 as well.
        if error.reason == "unexpected end of data":
            raise _truncated(place) from error
        raise UserError(
            f"{place}: not UTF-8 (byte {error.start + 1} of the line is 0x{line[error.start]:02x})",
            "the official files are UTF-8; convert the file or unpack the archive again",
        ) from error
    except (ValueError, RecursionError) as error:
        if not rest.read().strip():
            raise _truncated(place) from error
        reason = getattr(error, "msg", "nested too deeply")
        raise UserError(f"{place}: invalid JSON: {reason} at column {getattr(error, 'colno', 1)}") from error
    if b"\\ud" in line.lower() and not _is_unicode(value):
        raise UserError(f"{place}: a string holds half a surrogate pair (\\ud800 to \\udfff), which is no character")
    if not isinstance(value, dict):
        raise UserError(f"{place}: expected a JSON object, not {short(value)}")
    return value


def _is_unicode(value: Any) -> bool:
    """JSON can spell half a surrogate pair; such a string can neither be printed nor tokenised."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _truncated(place: str) -> UserError:
    return UserError(
        f"{place}: the last line is not valid JSON: the file looks truncated",
        "download or unpack it again",
    )
