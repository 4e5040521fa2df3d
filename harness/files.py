"""Files that appear whole or not at all, file hashes, and the user's cache directory."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from harness.errors import UserError

MIB = 1024**2
GIB = 1024**3

log = logging.getLogger(__name__)


def cache_dir() -> Path:
    """Return the cache: RSG_HARNESS_CACHE, else XDG_CACHE_HOME/rsg-harness, else ~/.cache/rsg-harness."""
    if own := os.environ.get("RSG_HARNESS_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "rsg-harness"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all: a temporary file, fsync, rename.

    Raises:
        UserError: The disk is full or the directory cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}", "free some space or name another --output") from error


@contextlib.contextmanager
def whole_directory(
    target: Path, hint: str = "free some space, or name another --output", exist_ok: bool = False
) -> Iterator[Path]:
    """Yield an empty scratch directory that becomes `target` when the block ends without an error.

    Its files reach the disk before the rename, so a directory under its final name is complete. An existing empty
    `target` is replaced.

    Args:
        target: The directory to make.
        hint: What the user can do if it cannot be written.
        exist_ok: Keep a `target` that another process has made meanwhile, instead of raising.

    Raises:
        UserError: The disk is full, `target` exists, or its parent cannot be written.
    """
    scratch: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        yield scratch
        for file in scratch.rglob("*"):
            if file.is_file():
                _sync(file)
        scratch.chmod(0o755)
        try:
            scratch.rename(target)
        except OSError:
            if not (exist_ok and target.is_dir() and any(target.iterdir())):
                raise
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}", hint) from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def whole_file(target: Path, hint: str = "free some space, or name another --output") -> Iterator[Path]:
    """Yield the path of an empty scratch file that becomes `target` when the block ends without an error.

    Args:
        target: The file to make.
        hint: What the user can do if it cannot be written.

    Raises:
        UserError: The disk is full, or the file's directory cannot be written.
    """
    scratch: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}-", dir=target.parent)
        os.close(descriptor)
        scratch = Path(name)
        yield scratch
        _sync(scratch)
        scratch.chmod(0o644)
        scratch.rename(target)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}", hint) from error
    finally:
        if scratch is not None:
            scratch.unlink(missing_ok=True)


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cached_directory(name: str, make: Callable[[Path], None], announcement: str) -> Path:
    """Return the directory `name` of the cache; `make` fills it the first time.

    Args:
        name: Path below the cache, such as `models/gguf-0123456789abcdef`.
        make: Called with an empty directory.
        announcement: Logged before `make` is called, which may take minutes.

    Raises:
        UserError: No room, or the cache cannot be written.
    """
    target = cache_dir() / name
    if not target.is_dir():
        log.info("%s", announcement)
        hint = "free some space, or set RSG_HARNESS_CACHE to a directory that can be written"
        with whole_directory(target, hint, exist_ok=True) as scratch:
            make(scratch)
    return target


def file_hash(file: Path) -> str:
    """Return the file's SHA-256, cached in this process by path, size and modification time.

    Raises:
        OSError: The file cannot be read.
    """
    status = file.stat()
    return _hash_of(file, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _hash_of(file: Path, size: int, modified: int) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def remembered_hash(file: Path) -> str:
    """Return a large file's SHA-256, kept in the cache by path, size and modification time."""
    status = file.resolve().stat()
    key = hashlib.sha256(f"{file.resolve()} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()
    kept = cache_dir() / "hashes" / key
    with contextlib.suppress(OSError):
        remembered = kept.read_text()
        if len(remembered) == 64:  # not a file that a full disk left empty
            return remembered
    value = file_hash(file)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, value)
    except (OSError, UserError):
        log.warning("cannot keep the hash of %s in %s", file.name, kept.parent)
    return value
