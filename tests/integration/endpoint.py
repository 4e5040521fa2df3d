"""The command against a server over HTTP, as the tests of `rsg-harness run --endpoint` call it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.records.run import SampleRecord, read_samples
from tests.openai_server import TEACHER, OpenAIServer

Done = subprocess.CompletedProcess[str]
Evaluate = Callable[..., Done]
KEY = "sk-a-key-of-the-tests-0123456789"


def given_to(server: OpenAIServer | str, root: Path, *arguments: str | Path) -> list[str | Path]:
    """Return the command's arguments, with the stand-in's name and the output where none are given."""
    given = list(map(str, arguments))
    defaults = {"--model": TEACHER, "--output": str(root / "out")}
    missing = [part for name, value in defaults.items() if name not in given for part in (name, value)]
    return ["run", "--endpoint", server if isinstance(server, str) else server.url, *missing, *given]


def finished(done: Done) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def refusal(done: Done) -> str:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if "rsg-harness: error:" in line]
    return line


def samples(directory: Path) -> list[SampleRecord]:
    return list(read_samples(directory))


def bodies(server: OpenAIServer, probes: int = 1) -> list[dict[str, Any]]:
    """What was asked after the probes."""
    return server.bodies[probes:]
