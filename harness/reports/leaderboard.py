"""The leaderboard: rows made from the run records alone.

A row is a model on a backend, asked in one way. Runs that agree in all of that make one row: of each task the newest
run counts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.files import GIB
from harness.records.base import Record, readable
from harness.records.divergence import DivergenceRecord, read_divergences
from harness.records.latency import LatencyRecord, read_latencies
from harness.records.run import (
    RESULTS,
    DataRecord,
    MemoryRecord,
    ModelRecord,
    RunRecord,
    TaskRecord,
    TimingRecord,
    read_run,
)
from harness.reports.foreign_rows import ForeignRow, foreign_rows
from harness.reports.published import reference_rows
from harness.reports.tables import told_apart
from harness.tasks import RUSSIAN_SUPERGLUE
from harness.tasks.metrics import Estimate, mean_estimate

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
# Group of tasks -> how they ask.
GROUPS = {"rsg": "choices by log-probability", "rsg_gen": "generated answers"}


class TaskScore(TaskRecord):
    """A task's record from the newest run that holds it. `score` None: its answers are hidden."""

    stderr: float | None
    run: str  # the directory's name


class RowRun(Record):
    """A run that a row is made from: where, when and at what cost."""

    directory: str
    date: str
    git_commit: str | None
    machine: dict[str, Any]
    seed: int
    documents: int  # of all its tasks
    timing: TimingRecord
    memory: MemoryRecord | None


class Row(Record):
    """A model on a backend, asked in one way."""

    group: str
    name: str  # the model's, with its hash where another one has the same
    model: ModelRecord
    backend: str
    execution: str
    device: str | None
    dtype: str | None
    data: DataRecord
    num_fewshot: int
    chat_template: bool
    system_instruction: str | None
    tasks: dict[str, TaskScore]
    score: float | None  # None unless all nine have a score
    score_stderr: float | None
    score_interval: tuple[float, float] | None
    mean: float | None  # of the tasks that have a score
    mean_stderr: float | None
    records_per_second: float | None  # None: runs on several machines, or runs that asked in the other way as well
    single_bytes: int | None
    peak_bytes: int | None
    is_mlx_by_torch: bool  # the speed and the memory are not MLX's
    runs: tuple[RowRun, ...]


class Leaderboard(Record):
    """leaderboard.json."""

    schema_version: int = SCHEMA_VERSION
    rows: tuple[Row, ...]
    foreign: tuple[ForeignRow, ...]  # of tasks in lm-eval's own format
    reference: tuple[dict[str, Any], ...]
    latency: dict[str, LatencyRecord]  # file in results/latency -> what it holds, the quickest first
    divergence: dict[str, DivergenceRecord]  # directory in results/divergence -> what it holds


def build_leaderboard(results: Path) -> Leaderboard:
    """Return the leaderboard of all records under `results`/runs; damaged ones are logged and left out.

    Raises:
        UserError: There is no readable record.
    """
    runs = _read_runs(results)
    foreign = tuple(foreign_rows((run.name, run.record) for run in runs))
    return Leaderboard(
        rows=tuple(_rows(runs)),
        foreign=foreign,
        reference=tuple(reference_rows()),
        latency=read_latencies(results),
        divergence=read_divergences(results),
    )


@dataclass(frozen=True)
class _Run:
    name: str
    record: RunRecord


@dataclass
class _Draft:
    """A row in the making: base name of a task -> the newest run so far."""

    group: str
    tasks: dict[str, tuple[_Run, TaskRecord]] = field(default_factory=dict)


def _read_runs(results: Path) -> list[_Run]:
    """Return all readable records, oldest first."""
    directories = sorted(path.parent for path in (results / "runs").glob(f"*/{RESULTS}"))
    runs = [_Run(directory.name, record) for directory, record in readable(directories, read_run)]
    if not runs:
        found = f"{results / 'runs'} holds no finished run"
        if directories:
            found = f"none of the {len(directories)} records in {results / 'runs'} can be read"
        raise UserError(found, "`rsg-harness run` makes one; --results names another directory")
    return sorted(runs, key=lambda run: (run.record.date, run.name))


def _rows(runs: Sequence[_Run]) -> list[Row]:
    """Return the rows: best score first, then most tasks, then best mean."""
    drafts: dict[tuple[Any, ...], _Draft] = {}
    for run in runs:
        for name, task in run.record.tasks.items():
            group, base = _group(name), name.removeprefix("gen_")
            if base not in RUSSIAN_SUPERGLUE:
                log.warning("%s: %s is not a task of Russian SuperGLUE and is left out", run.name, name)
                continue
            drafts.setdefault(_key(run.record, task, group), _Draft(group)).tasks[base] = (run, task)
    models = [run.record.model for run in runs if run.record.tasks]
    # Of equal rows the older one first.
    return sorted((_row(draft, models) for draft in drafts.values()), key=_rank)


def _group(task: str) -> str:
    return "rsg_gen" if task.startswith("gen_") else "rsg"


def _key(record: RunRecord, task: TaskRecord, group: str) -> tuple[Any, ...]:
    """Return what runs must agree in to make one row."""
    model, data = record.model, record.data
    return (
        (model.name, model.identity, model.weights),
        (record.backend, record.execution, record.device, record.dtype),
        (data.source, data.split, data.limit),
        (group, task.num_fewshot, record.chat_template, record.system_instruction),
    )


def _rank(row: Row) -> tuple[float, ...]:
    best_first = [-2.0 if value is None else value for value in (row.score, row.mean)]
    return -best_first[0], -len(_estimates(row.tasks.values())), -best_first[1]


def _row(draft: _Draft, models: Sequence[ModelRecord]) -> Row:
    tasks = {name: _task_score(*draft.tasks[name]) for name in RUSSIAN_SUPERGLUE if name in draft.tasks}
    runs = sorted(
        {run.name: run for run, _ in draft.tasks.values()}.values(), key=lambda run: (run.record.date, run.name)
    )
    newest = runs[-1].record
    estimates = _estimates(tasks.values())
    mean = mean_estimate(estimates) if estimates else None
    score = mean if len(estimates) == len(RUSSIAN_SUPERGLUE) else None
    memories = [run.record.memory for run in runs if run.record.memory]
    return Row(
        group=draft.group,
        name=told_apart(newest.model, models),
        model=newest.model,
        backend=newest.backend,
        execution=newest.execution,
        device=newest.device,
        dtype=newest.dtype,
        data=newest.data,
        num_fewshot=next(iter(draft.tasks.values()))[1].num_fewshot,
        chat_template=newest.chat_template,
        system_instruction=newest.system_instruction,
        tasks=tasks,
        score=score.value if score else None,
        score_stderr=score.stderr if score else None,
        score_interval=score.interval if score else None,
        mean=mean.value if mean else None,
        mean_stderr=mean.stderr if mean else None,
        records_per_second=_speed(runs, draft.group),
        # 0 where it was not measured: generated answers, resumed runs.
        single_bytes=max((memory.single_bytes for memory in memories), default=0) or None,
        peak_bytes=max((memory.peak_bytes for memory in memories), default=0) or None,
        is_mlx_by_torch=newest.execution == "torch" and newest.backend.startswith("mlx"),
        runs=tuple(_row_run(run) for run in runs),
    )


def _task_score(run: _Run, task: TaskRecord) -> TaskScore:
    main = task.metrics.get("rsg")
    return TaskScore(**task.model_dump(), stderr=main.stderr if main else None, run=run.name)


def _row_run(run: _Run) -> RowRun:
    record = run.record
    documents = sum(task.documents for task in record.tasks.values())
    kept = record.model_dump(include=set(RowRun.model_fields))
    return RowRun(directory=run.name, documents=documents, **kept)


def _estimates(tasks: Iterable[TaskScore]) -> list[Estimate]:
    """Return the estimates of the tasks that have a score; the mean ignores their own intervals."""
    return [
        Estimate(task.score, task.stderr or 0.0, (task.score, task.score)) for task in tasks if task.score is not None
    ]


def _speed(runs: Sequence[_Run], group: str) -> float | None:
    """Return documents over seconds of scoring, of all runs together; None where they asked something else too."""
    costs = [_row_run(run) for run in runs]
    asked = {_group(name) for run in runs for name in run.record.tasks}
    asked |= {"lm-eval" for run in runs if run.record.foreign}
    seconds = sum(cost.timing.scoring_seconds for cost in costs)
    if len({machine_text(cost) for cost in costs}) > 1 or asked != {group} or not seconds:
        return None
    return sum(cost.documents for cost in costs) / seconds


def machine_text(run: RowRun | LatencyRecord) -> str:
    """Describe the machine of a run in one line."""
    known = run.machine
    memory = f"{(known.get('memory_bytes') or 0) / GIB:.0f} GiB"
    processors = [*([known["gpu"]] if "gpu" in known else []), known.get("processor") or "unknown processor"]
    return ", ".join([*processors, f"{known.get('cores')} cores", memory, str(known.get("system"))])
