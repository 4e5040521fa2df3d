"""Latency records: what `pytest --benchmark` measures of one model on one backend, typed and versioned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.errors import UserError
from harness.records.run import ModelRecord, write_atomically

SCHEMA_VERSION = 1


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class QuestionLatency(_Model):
    """One question at batch size 1, prompt and all: seconds, over so many different questions."""

    p50: float
    p95: float
    questions: int
    tokens: float  # a prompt has on average


class Throughput(_Model):
    """Questions a second when many are asked at once, at the best of several batch sizes (MOROCCO's definition)."""

    task: str
    questions: int
    questions_per_second: float
    batch_tokens: int


class Generation(_Model):
    """Greedy generation after a prompt. `first_token_seconds`: the prompt read and one token made."""

    prompt_tokens: int
    new_tokens: int
    first_token_seconds: float
    tokens_per_second: float  # after the first


class LatencyRecord(_Model):
    """One file of results/latency. Memory in bytes, of a process of its own."""

    schema_version: int = SCHEMA_VERSION
    model: ModelRecord
    backend: str
    execution: str
    device: str
    dtype: str
    load_seconds: float  # from a running Python to the first question, imports and all
    latency: dict[str, QuestionLatency]  # by task
    throughput: Throughput
    generation: Generation
    single_bytes: int  # peak after start and the questions at batch size 1
    peak_bytes: int  # of everything
    memory_of: str
    date: str
    versions: dict[str, str]
    machine: dict[str, Any]
    git_commit: str | None


def write_latency(directory: Path, record: LatencyRecord) -> Path:
    """Writes DIRECTORY/MODEL-BACKEND.json, the newest measurement in place of an older one.

    Raises:
        UserError: it cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{record.model.name}-{record.backend}.json".replace("/", "-")
    write_atomically(path, json.dumps(record.model_dump(mode="json"), ensure_ascii=False, indent=2) + "\n")
    return path


def read_latencies(results: Path) -> dict[str, LatencyRecord]:
    """All records under `results`/latency by file name, the quickest first.

    Raises:
        UserError: a file is damaged or of another version.
    """
    found: dict[str, LatencyRecord] = {}
    for path in sorted((results / "latency").glob("*.json")):
        try:
            found[path.name] = LatencyRecord.model_validate_json(path.read_text(encoding="utf-8"))
        except (ValidationError, ValueError) as error:
            raise UserError(f"{path} is not a latency record of this version", "measure anew or delete it") from error
    return dict(sorted(found.items(), key=lambda pair: min(task.p50 for task in pair[1].latency.values())))
