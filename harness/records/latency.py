"""Latency records: what `pytest --benchmark` measures of one model on one backend, typed and versioned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from harness.records.base import Record, read_record, readable, write_record
from harness.records.run import ModelRecord

SCHEMA_VERSION = 1


class QuestionLatency(Record):
    """One question at batch size 1, prompt and all: seconds, over so many different questions."""

    p50: float
    p95: float
    questions: int
    tokens: float  # a prompt has on average


class Throughput(Record):
    """Questions a second when many are asked at once, at the best of several batch sizes (MOROCCO's definition)."""

    task: str
    questions: int
    questions_per_second: float
    batch_tokens: int


class Generation(Record):
    """Greedy generation after a prompt. `first_token_seconds`: the prompt read and one token made."""

    prompt_tokens: int
    new_tokens: int
    first_token_seconds: float
    tokens_per_second: float  # after the first


class LatencyRecord(Record):
    """One file of results/latency. Memory in bytes, of a process of its own."""

    schema_version: int = SCHEMA_VERSION
    model: ModelRecord
    backend: str
    execution: str
    device: str
    dtype: str
    load_seconds: float  # from a running Python to the first question, imports and all
    latency: dict[str, QuestionLatency] = Field(min_length=1)  # by task
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
    """Write DIRECTORY/MODEL-BACKEND.json, replacing an older measurement, and return its path.

    Raises:
        UserError: It cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{record.model.name}-{record.backend}.json".replace("/", "-")
    write_record(path, record)
    return path


def read_latencies(results: Path) -> dict[str, LatencyRecord]:
    """Return all records under `results`/latency by file name, the quickest first; damaged ones are left out."""

    def read(path: Path) -> LatencyRecord:
        return read_record(path, LatencyRecord, version=SCHEMA_VERSION, hint="measure again, or delete it")

    found = {path.name: record for path, record in readable(sorted((results / "latency").glob("*.json")), read)}
    return dict(sorted(found.items(), key=lambda pair: min(task.p50 for task in pair[1].latency.values())))
