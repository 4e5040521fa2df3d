"""Makes small run records, on disk and in memory, for the tests of what reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from harness.records.run import (
    ENDPOINT,
    DataRecord,
    EndpointRecord,
    MemoryRecord,
    MetricRecord,
    ModelRecord,
    RunRecord,
    SampleRecord,
    TaskRecord,
    TimingRecord,
    TokenRecord,
    write_run,
)
from harness.tasks import RUSSIAN_SUPERGLUE

MIB = 1024**2
# Figures of all nine tasks, no two alike; their mean is 0.5.
NINE = {task: 0.3 + 0.05 * number for number, task in enumerate(RUSSIAN_SUPERGLUE)}
MACHINE = {"system": "Linux x86_64", "processor": "Test Processor", "cores": 2, "memory_bytes": 8 * 1024**3}


def task_record(name: str, figure: float | None, split: str = "validation", **changes: Any) -> TaskRecord:
    """A task with ten documents and a standard error of 0.02."""
    fields: dict[str, Any] = {
        "score": figure,
        "documents": 10,
        "examples": 10,
        "metrics": {"rsg": MetricRecord(value=figure, stderr=None if figure is None else 0.02)},
        "task_file": f"rsg_{name}",
        "prompt": "statement",
        "prompt_sha256": sha256(f"prompt {name}"),
        "num_fewshot": 0,
        "split": "test" if name.endswith("lidirus") else split,
        "data_sha256": sha256(f"data {name}"),
        "truncated": 0,
        "ties": 0,
        "unreadable": 0,
    }
    return TaskRecord(**{**fields, **changes})


def run_record(
    figures: Mapping[str, float | None] = NINE,
    *,
    model: str = "gemma-tiny",
    weights: str = "bfloat16",
    source: str = "official",
    split: str = "validation",
    limit: int | None = None,
    seconds: float = 10.0,
    task_changes: Mapping[str, Any] | None = None,
    **changes: Any,
) -> RunRecord:
    """A run over the tasks of `figures`, ten documents each. `changes` replace fields of the record."""
    tasks = {name: task_record(name, figure, split, **(task_changes or {})) for name, figure in figures.items()}
    documents = sum(task.documents for task in tasks.values())
    fields: dict[str, Any] = {
        "score": None,
        "score_stderr": None,
        "mean": None,
        "mean_stderr": None,
        "tasks": tasks,
        "model": ModelRecord(
            name=model,
            origin=model,
            sha256=sha256(model),
            parameters=1000,
            weights=weights,
            weights_bytes=500 * MIB,
        ),
        "backend": "torch-cpu",
        "execution": "torch",
        "device": "cpu",
        "dtype": "bfloat16",
        "chat_template": False,
        "data": DataRecord(source=source, description=source, split=split, limit=limit),
        "timing": TimingRecord(
            wall_seconds=seconds + 5,
            load_seconds=5.0,
            scoring_seconds=seconds,
            records_per_second=documents / seconds,
        ),
        "memory": MemoryRecord(peak_bytes=900 * MIB, single_bytes=600 * MIB, of="process"),
        "tokens": TokenRecord(
            computed=1000, shared=200, padding=10, forward_passes=20, batch_tokens=1024, halved_batches=0
        ),
        "seed": 1234,
        "date": "2025-01-01T10:00:00+00:00",
        "resumed": False,
        "settings_sha256": sha256("settings"),
        "versions": {"python": "3.11.0"},
        "machine": MACHINE,
        "git_commit": None,
        "command": "rsg-harness run",
    }
    return RunRecord(**{**fields, **changes})


def endpoint_record(address: str, *figures: Any, **changes: Any) -> RunRecord:
    """A run of a model behind a server, of which nothing but names is known."""
    model = ModelRecord(name="large", origin=address, sha256=None, parameters=None, weights=None, weights_bytes=None)
    unknown = dict.fromkeys(("device", "dtype", "memory", "tokens"))
    endpoint = EndpointRecord(address=address, apis=("completions",))
    record = run_record(*figures, backend=ENDPOINT, execution=ENDPOINT, endpoint=endpoint, **unknown, **changes)
    return record.model_copy(update={"model": model})


def write_record(directory: Path, record: RunRecord, samples: Iterable[SampleRecord] = ()) -> Path:
    """The run as `rsg-harness run` leaves it."""
    directory.mkdir(parents=True)
    write_run(directory, record, samples)
    return directory


def samples_of(task: str, answers: Iterable[tuple[Any, Any]]) -> list[SampleRecord]:
    """Samples from pairs of an idx and a prediction; the right answers are hidden."""
    return [SampleRecord(task=task, idx=idx, prediction=answer, gold=None, scores=[]) for idx, answer in answers]


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
