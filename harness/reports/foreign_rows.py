"""The leaderboard's rows of tasks in lm-eval's own format: a table a group, and one of the tasks by themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.records.base import Record
from harness.records.run import ForeignTaskRecord, GroupRecord, MetricRecord, ModelRecord, RunRecord

# A group of more tasks than this shows its own figures only; leaderboard.json has the tasks'.
MOST_COLUMNS = 12
ALONE = "single tasks"


class ForeignRow(Record):
    """A model on a backend, asked in one way: of each task the newest run."""

    model: ModelRecord
    backend: str
    execution: str
    device: str
    dtype: str
    limit: int | None
    chat_template: bool
    system_instruction: str | None
    tasks: dict[str, ForeignTaskRecord]
    groups: dict[str, GroupRecord]
    runs: tuple[str, ...]  # directories, oldest first


def foreign_rows(runs: Iterable[tuple[str, RunRecord]]) -> list[ForeignRow]:
    """Return the rows of runs, which come oldest first: (name of the directory, record)."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, record in runs:
        if not record.foreign:
            continue
        asked = {
            "backend": record.backend,
            "execution": record.execution,
            "device": record.device,
            "dtype": record.dtype,
            "limit": record.data.limit,
            "chat_template": record.foreign_chat_template,
            "system_instruction": record.system_instruction,
        }
        # Each task's own number of solved examples tells apart what was asked in another way.
        shots = tuple(sorted((task, one.num_fewshot) for task, one in record.foreign.items()))
        key = (record.model.name, record.model.sha256, record.model.weights, *asked.values(), _kind_of(shots))
        row = rows.setdefault(key, {**asked, "tasks": {}, "groups": {}, "runs": []})
        row["model"] = record.model
        row["tasks"] |= record.foreign
        row["groups"] |= record.groups
        row["runs"].append(name)
    return [ForeignRow(**row) for row in rows.values()]


def _kind_of(shots: Sequence[tuple[str, int]]) -> int:
    """Return the number of solved examples that all tasks of a run were asked with; -1 where they differ."""
    numbers = {number for _, number in shots}
    return numbers.pop() if len(numbers) == 1 else -1


def foreign_tables(rows: Sequence[ForeignRow]) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Return title -> headers and cells: a table of every group, then one of the tasks that are in none."""
    groups: dict[str, GroupRecord] = {}
    for row in rows:
        groups |= row.groups
    grouped = {task for group in groups.values() for task in group.tasks}
    tables = {}
    for name, group in groups.items():
        having = [row for row in rows if name in row.groups]
        members = list(group.tasks) if len(group.tasks) <= MOST_COLUMNS else []
        figures = [{metric: metric_text(one) for metric, one in row.groups[name].metrics.items()} for row in having]
        tables[name] = _table(having, figures, members)
    alone = list(dict.fromkeys(task for row in rows for task in row.tasks if task not in grouped))
    having = [row for row in rows if set(alone) & set(row.tasks)]
    if having:
        tables[ALONE] = _table(having, [{} for _ in having], alone)
    return tables


def _table(
    rows: Sequence[ForeignRow], group_cells: Sequence[Mapping[str, str]], tasks: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    of_group = list(dict.fromkeys(metric for cells in group_cells for metric in cells))
    columns: dict[tuple[str, str], str] = {}
    for row in rows:
        for task in tasks:
            if task in row.tasks:
                found = row.tasks[task]
                arrow = {True: " ↑", False: " ↓", None: ""}[found.metrics[found.main].higher_is_better]
                columns.setdefault((task, found.main), f"{task}, {found.main}{arrow}")
    headers = ["model", "backend (weights)", "executed by", *of_group, *columns.values(), "asked"]
    cells = []
    for row, group in zip(rows, group_cells, strict=True):
        figures = [
            metric_text(row.tasks[task].metrics[main]) if task in row.tasks and main in row.tasks[task].metrics else "–"
            for task, main in columns
        ]
        backend = f"{row.backend} ({row.model.weights})"
        executed = ", ".join([row.execution, row.device, row.dtype])
        own = [group.get(metric, "–") for metric in of_group]
        cells.append([row.model.name, backend, executed, *own, *figures, _asked(row)])
    return headers, cells


def metric_text(metric: MetricRecord) -> str:
    """Format a figure of any range with its standard error: `0.5423 ± 0.012`."""
    if metric.value is None:
        return "–"
    return f"{metric.value:.4g}" + (f" ± {metric.stderr:.2g}" if metric.stderr is not None else "")


def _asked(row: ForeignRow) -> str:
    shots = sorted({task.num_fewshot for task in row.tasks.values()} - {0})
    parts = [f"{', '.join(map(str, shots))} examples shown"] if shots else []
    parts += [f"at most {row.limit} documents a task"] if row.limit else []
    parts += ["chat template"] if row.chat_template else []
    parts += ["system instruction"] if row.system_instruction else []
    return "; ".join(parts) or "all documents"
