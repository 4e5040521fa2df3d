"""SHA-256 of files, read no oftener than needed."""

from __future__ import annotations

import functools
import hashlib
import sys
from pathlib import Path

from harness.cache import cache_dir


def file_hash(file: Path) -> str:
    """SHA-256 of a file, which is read once in a process unless its size or time changes.

    Raises:
        OSError: it cannot be read.
    """
    status = file.stat()
    return _hash_of(file, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _hash_of(file: Path, size: int, changed: int) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def remembered_hash(file: Path) -> str:
    """SHA-256 of a large file, kept in the cache under its path, size and time of change."""
    status = file.resolve().stat()
    key = hashlib.sha256(f"{file.resolve()} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()
    kept = cache_dir() / "hashes" / key
    try:
        return kept.read_text()
    except OSError:
        pass
    value = file_hash(file)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(value)
    except OSError:
        print(f"rsg-harness: cannot remember the hash of {file.name} in {kept.parent}", file=sys.stderr)
    return value
