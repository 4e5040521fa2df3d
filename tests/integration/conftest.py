from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny_gemma import make_tiny_gemma

Command = Callable[..., subprocess.CompletedProcess[str]]
# Matrices as small as the tiny model's only wait for a second thread. Runs that are compared bit by bit need the same.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
RSG_HARNESS = str(Path(sys.executable).with_name("rsg-harness"))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random Gemma-3 with a context long enough for the mini set's character-like tokens."""
    return make_tiny_gemma(tmp_path_factory.mktemp("models") / "tiny-gemma", max_position_embeddings=4096)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """This process's environment with a cache of its own and no data directory."""
    kept = {name: value for name, value in os.environ.items() if name != "RSG_DATA"}
    return {**kept, "RSG_HARNESS_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", **ONE_THREAD}


@pytest.fixture
def rsg_harness(tmp_path: Path, environment: dict[str, str]) -> Command:
    """Runs the installed command in a directory of its own."""

    def call(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [RSG_HARNESS, *map(str, arguments)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            **options,  # type: ignore[call-overload]
        )

    return call
