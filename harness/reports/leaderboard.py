"""results/leaderboard.md and leaderboard.json, made from the run records alone.

A row is a model on a backend, asked in one way. Runs that agree in all of that make one row: of each task the newest
run counts. Speed and memory follow MOROCCO (Malykh et al. 2021, https://arxiv.org/abs/2104.14314).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from tabulate import tabulate

from harness.data import TASKS
from harness.data.official import DIRECTORIES as OFFICIAL_NAMES
from harness.errors import UserError
from harness.evaluation.metrics import Estimate, mean_estimate
from harness.evaluation.record import (
    RESULTS,
    DataRecord,
    MemoryRecord,
    ModelRecord,
    RunRecord,
    TaskRecord,
    TimingRecord,
    read_record,
    write_atomically,
)
from harness.reports.published import REFERENCE_NOTE, reference_cells, reference_rows
from harness.reports.tables import MIB

SCHEMA_VERSION = 1
# Group of tasks -> how they ask.
GROUPS = {"rsg": "choices by log-probability", "rsg_gen": "generated answers"}
GIB = 1024**3


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TaskFigure(TaskRecord):
    """A task's record from the newest run that holds it. `score` None: its answers are hidden."""

    stderr: float | None
    run: str  # the directory's name


class RowRun(_Model):
    """A run that a row is made from: where, when and at what cost."""

    directory: str
    date: str
    git_commit: str | None
    machine: dict[str, Any]
    seed: int
    documents: int  # of all its tasks
    timing: TimingRecord
    memory: MemoryRecord


class Row(_Model):
    """A model on a backend, asked in one way."""

    group: str
    model: ModelRecord
    backend: str
    execution: str
    device: str
    dtype: str
    data: DataRecord
    num_fewshot: int
    chat_template: bool
    tasks: dict[str, TaskFigure]
    score: float | None  # None unless all nine have a figure
    score_stderr: float | None
    score_interval: tuple[float, float] | None
    mean: float | None  # of the tasks that have a figure
    mean_stderr: float | None
    records_per_second: float | None  # None: runs on several machines, or runs that asked in the other way as well
    single_bytes: int | None
    peak_bytes: int | None
    is_mlx_by_torch: bool  # the speed and the memory are not MLX's
    runs: tuple[RowRun, ...]


class Leaderboard(_Model):
    """leaderboard.json."""

    schema_version: int = SCHEMA_VERSION
    rows: tuple[Row, ...]
    reference: tuple[dict[str, Any], ...]


def write_leaderboard(results: Path) -> list[Path]:
    """Makes both files anew from the records under `results`/runs. The same records give the same bytes.

    Returns:
        The files written.

    Raises:
        UserError: there is no readable record, or the directory cannot be written.
    """
    board = build_leaderboard(results)
    document = json.dumps(board.model_dump(mode="json"), ensure_ascii=False, indent=2) + "\n"
    files = {results / "leaderboard.md": _page(board), results / "leaderboard.json": document}
    for path, text in files.items():
        write_atomically(path, text)
    return list(files)


def build_leaderboard(results: Path) -> Leaderboard:
    """The leaderboard of all records under `results`/runs; damaged ones are named on stderr and left out.

    Raises:
        UserError: there is no readable record.
    """
    return Leaderboard(rows=tuple(_rows(_read_runs(results))), reference=tuple(reference_rows()))


# --- from records to rows ------------------------------------------------------------------------------------------


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
    """All readable records, oldest first."""
    directories = sorted(path.parent for path in (results / "runs").glob(f"*/{RESULTS}"))
    runs = []
    for directory in directories:
        try:
            runs.append(_Run(directory.name, read_record(directory)))
        except UserError as error:
            _warn(f"{directory.name} is left out: {error.message}")
    if not runs:
        found = f"{results / 'runs'} holds no finished run"
        if directories:
            found = f"none of the {len(directories)} records in {results / 'runs'} can be read"
        raise UserError(found, "`rsg-harness run` makes one; --results names another directory")
    return sorted(runs, key=lambda run: (run.record.date, run.name))


def _warn(text: str) -> None:
    print(f"rsg-harness: warning: {text}", file=sys.stderr)


def _rows(runs: Sequence[_Run]) -> list[Row]:
    """Best score first, then most tasks, then best mean."""
    drafts: dict[tuple[Any, ...], _Draft] = {}
    for run in runs:
        for name, task in run.record.tasks.items():
            group, base = _group(name), name.removeprefix("gen_")
            if base not in TASKS:
                _warn(f"{run.name}: {name} is no task of Russian SuperGLUE and is left out")
                continue
            drafts.setdefault(_key(run.record, task, group), _Draft(group)).tasks[base] = (run, task)
    return sorted((_row(draft) for draft in drafts.values()), key=_rank)  # of equal rows the older one first


def _group(task: str) -> str:
    return "rsg_gen" if task.startswith("gen_") else "rsg"


def _key(record: RunRecord, task: TaskRecord, group: str) -> tuple[Any, ...]:
    """What runs must agree in to make one row."""
    model, data = record.model, record.data
    return (
        (model.name, model.sha256, model.weights),
        (record.backend, record.execution, record.device, record.dtype),
        (data.source, data.split, data.limit),
        (group, task.num_fewshot, record.chat_template),
    )


def _rank(row: Row) -> tuple[float, ...]:
    best_first = [-2.0 if value is None else value for value in (row.score, row.mean)]
    return -best_first[0], -len(_estimates(row.tasks.values())), -best_first[1]


def _row(draft: _Draft) -> Row:
    tasks = {name: _task_figure(*draft.tasks[name]) for name in TASKS if name in draft.tasks}
    runs = sorted(
        {run.name: run for run, _ in draft.tasks.values()}.values(), key=lambda run: (run.record.date, run.name)
    )
    newest = runs[-1].record
    estimates = _estimates(tasks.values())
    mean = mean_estimate(estimates) if estimates else None
    score = mean if len(estimates) == len(TASKS) else None
    return Row(
        group=draft.group,
        model=newest.model,
        backend=newest.backend,
        execution=newest.execution,
        device=newest.device,
        dtype=newest.dtype,
        data=newest.data,
        num_fewshot=next(iter(draft.tasks.values()))[1].num_fewshot,
        chat_template=newest.chat_template,
        tasks=tasks,
        score=score.value if score else None,
        score_stderr=score.stderr if score else None,
        score_interval=score.interval if score else None,
        mean=mean.value if mean else None,
        mean_stderr=mean.stderr if mean else None,
        records_per_second=_speed(runs, draft.group),
        # 0 where it was not measured: generated answers, resumed runs.
        single_bytes=max(run.record.memory.single_bytes for run in runs) or None,
        peak_bytes=max(run.record.memory.peak_bytes for run in runs) or None,
        is_mlx_by_torch=newest.execution == "torch" and newest.backend.startswith("mlx"),
        runs=tuple(_row_run(run) for run in runs),
    )


def _task_figure(run: _Run, task: TaskRecord) -> TaskFigure:
    main = task.metrics.get("rsg")
    return TaskFigure(**task.model_dump(), stderr=main.stderr if main else None, run=run.name)


def _row_run(run: _Run) -> RowRun:
    record = run.record
    documents = sum(task.documents for task in record.tasks.values())
    kept = record.model_dump(include=set(RowRun.model_fields))
    return RowRun(directory=run.name, documents=documents, **kept)


def _estimates(figures: Iterable[TaskFigure]) -> list[Estimate]:
    """The tasks that have a figure. Their own intervals do not enter the mean's."""
    return [
        Estimate(figure.score, figure.stderr or 0.0, (figure.score, figure.score))
        for figure in figures
        if figure.score is not None
    ]


def _speed(runs: Sequence[_Run], group: str) -> float | None:
    """Documents over seconds of scoring, of all runs together."""
    costs = [_row_run(run) for run in runs]
    asked = {_group(name) for run in runs for name in run.record.tasks}
    seconds = sum(cost.timing.scoring_seconds for cost in costs)
    if len({_machine(cost) for cost in costs}) > 1 or asked != {group} or not seconds:
        return None
    return sum(cost.documents for cost in costs) / seconds


# --- the page ------------------------------------------------------------------------------------------------------
NAMES = [OFFICIAL_NAMES[task] for task in TASKS]
COSTS = ["records/s", "memory at batch size 1, MiB", "peak memory, MiB", "weights, MiB"]
HEADERS = ["model", "backend (weights)", "executed by", *NAMES, "score", *COSTS, "data"]
MINI_NOTE = "The mini set is this project's own and small: it shows that all works, not how good a model is."
LEGEND = """\
- Figures: the official metric × 100. LiDiRus: Matthews correlation; RCB: mean of macro F1 and accuracy; MuSeRC: mean of
  F1a and EM; RuCoS: mean of F1 and EM; the others: accuracy. –: did not run. ?: ran, but the answers are hidden.
- Score: mean of the nine figures, only where all nine ran (leaderboard.json also has the mean of what ran). ±: one
  standard error, from a bootstrap over each task's documents (MuSeRC: paragraphs), the tasks taken as independent.
- Records/s and memory are defined after MOROCCO (Malykh et al. 2021, arXiv:2104.14314). Records/s: documents over the
  seconds of scoring, the model's start subtracted; here over the row's own documents, not MOROCCO's 2000. –: measured
  on several machines, or together with tasks asked in the other way.
- Memory at batch size 1: after the model's start and one longest document alone. Peak memory: the most that a whole run
  took. Both are the process's memory, or the GPU allocator's where there is one. Weights: their size as stored."""
BORROWED = "- \\*: executed by torch: the quality is real, the speed and the memory are not MLX's."


def _page(board: Leaderboard) -> str:
    parts = ["# Russian SuperGLUE leaderboard", "Made from the run records by `rsg-harness leaderboard`."]
    machines = sorted({_machine(run) for row in board.rows for run in row.runs})
    for is_mini in (False, True):
        for group, how in GROUPS.items():
            rows = [row for row in board.rows if row.group == group and (row.data.source == "mini") == is_mini]
            if rows:
                parts.append(f"## {'Mini set' if is_mini else 'Russian SuperGLUE'}: {how}")
                parts.extend([MINI_NOTE] if is_mini else [])
                parts.extend([_table(HEADERS, [_cells(row, board, machines) for row in rows]), _caveats(rows)])
    borrowed = [BORROWED] if any(row.is_mlx_by_torch for row in board.rows) else []
    numbered = [f"- Machine{f' {n}' if len(machines) > 1 else ''}: {text}." for n, text in enumerate(machines, 1)]
    parts.extend(
        [
            "## How to read this",
            "\n".join([LEGEND, *borrowed, *numbered]),
            "## Published figures",
            REFERENCE_NOTE,
            _table(*reference_cells()),
        ]
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    clean = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return tabulate(clean, headers=headers, tablefmt="github", disable_numparse=True)


def _cells(row: Row, board: Leaderboard, machines: Sequence[str]) -> list[str]:
    mark = "*" if row.is_mlx_by_torch else ""
    score = "–" if row.score is None else f"{_percent(row.score)} ± {_percent(row.score_stderr)}"
    speed = "–" if row.records_per_second is None else f"{row.records_per_second:.2f}{mark}"
    memory = [f"{_mebibytes(size)}{mark if size else ''}" for size in (row.single_bytes, row.peak_bytes)]
    weights = _mebibytes(row.model.weights_bytes)
    figures = [_figure(row.tasks.get(task)) for task in TASKS]
    executed = ", ".join([row.execution, row.device, row.dtype, *_where(row, machines)])
    backend = f"{row.backend} ({row.model.weights})"
    return [_model_name(row, board), backend, executed, *figures, score, speed, *memory, weights, _data(row)]


def _model_name(row: Row, board: Leaderboard) -> str:
    """With the start of its hash where several models have this name."""
    hashes = {other.model.sha256 for other in board.rows if other.model.name == row.model.name}
    return row.model.name if len(hashes) == 1 else f"{row.model.name} ({row.model.sha256[:8]})"


def _where(row: Row, machines: Sequence[str]) -> list[str]:
    """The machines by number, where there are several."""
    numbers = sorted({machines.index(_machine(run)) + 1 for run in row.runs})
    return [f"machine {' and '.join(map(str, numbers))}"] if len(machines) > 1 else []


def _machine(run: RowRun) -> str:
    known = run.machine
    memory = f"{(known.get('memory_bytes') or 0) / GIB:.0f} GiB"
    return ", ".join(
        [known.get("processor") or "unknown processor", f"{known.get('cores')} cores", memory, str(known.get("system"))]
    )


def _data(row: Row) -> str:
    limit = [f"at most {row.data.limit} a task"] if row.data.limit else []
    shots = [f"{row.num_fewshot} examples shown"] if row.num_fewshot else []
    return ", ".join(
        [row.data.source, row.data.split, *limit, *shots, *(["chat template"] if row.chat_template else [])]
    )


def _figure(task: TaskFigure | None) -> str:
    if task is None:
        return "–"
    return "?" if task.score is None else _percent(task.score)


def _percent(value: float | None) -> str:
    return f"{100 * (value or 0):.1f}"


def _mebibytes(size: int | None) -> str:
    return f"{size / MIB:.0f}" if size else "–"


def _caveats(rows: Sequence[Row]) -> str:
    """The prompts, and where rows of one table were not asked the same."""
    lines = [
        "Prompts: "
        + "; ".join(f"{name} {', '.join(found)}" for name, found in _distinct(rows, lambda task: task.prompt))
    ]
    for source, split in sorted({(row.data.source, row.data.split) for row in rows}):
        alike = [row for row in rows if (row.data.source, row.data.split) == (source, split)]
        differing = [name for name, found in _distinct(alike, lambda task: task.data_sha256) if len(found) > 1]
        if differing:
            lines.append(f"The rows' {source} {split} documents differ in {', '.join(differing)}: do not compare these")
    return "\n\n".join(f"{line}." for line in lines)


def _distinct(rows: Sequence[Row], what: Callable[[TaskFigure], str]) -> list[tuple[str, list[str]]]:
    """Official name of each task that ran -> the distinct values, in the rows' order."""
    found = [(OFFICIAL_NAMES[name], [what(row.tasks[name]) for row in rows if name in row.tasks]) for name in TASKS]
    return [(name, list(dict.fromkeys(values))) for name, values in found if values]
