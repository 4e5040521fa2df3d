"""The user's cache directory, where converted and quantised models are kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """RSG_HARNESS_CACHE, else XDG_CACHE_HOME/rsg-harness, else ~/.cache/rsg-harness."""
    if own := os.environ.get("RSG_HARNESS_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "rsg-harness"
