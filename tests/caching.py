"""A cache in a directory of the test's own, for what adapters convert."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from adapters.base import CachedDirectory
from harness.files import whole_directory


def cached_in(root: Path) -> CachedDirectory:
    """As `harness.files.cached_directory`, below `root`."""

    def cached(name: str, make: Callable[[Path], None], announcement: str) -> Path:
        target = root / name
        if not target.is_dir():
            with whole_directory(target, exist_ok=True) as scratch:
                make(scratch)
        return target

    return cached
