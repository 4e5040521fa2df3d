"""The leaderboard's rows of tasks in lm-eval's own format: a table a group, and one of the tasks by themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.records.base import Record
from harness.records.run import ForeignTaskRecord, GroupRecord, MetricRecord, ModelRecord, RunRecord
from harness.reports.tables import backend_text, computed_by, examples_shown, prompt_changes, told_apart

# A group of more tasks than this shows its own figures only; leaderboard.json has the tasks'.
MOST_COLUMNS = 12
ALONE = "single tasks"


class GroupResult(Record):
    """A group's figures, and its tasks' as they were in the same run."""

    metrics: dict[str, MetricRecord]
    tasks: dict[str, ForeignTaskRecord]


class ForeignRow(Record):
    """A model on a backend, asked in one way: of each group, and of each task by itself, the newest run."""

    model: ModelRecord
    backend: str
    execution: str
    device: str | None
    dtype: str | None
    limit: int | None
    chat_template: bool
    system_instruction: str | None
    tasks: dict[str, ForeignTaskRecord]
    groups: dict[str, GroupResult]
    runs: tuple[str, ...]  # directories, oldest first


def foreign_rows(runs: Iterable[tuple[str, RunRecord]]) -> list[ForeignRow]:
    """Return the rows of runs, which come oldest first: (name of the directory, record)."""
    rows: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
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
        shots = {task: one.num_fewshot for task, one in record.foreign.items()}
        alike = rows.setdefault((record.model.name, record.model.identity, record.model.weights, *asked.values()), [])
        # Each task has its own number of solved examples: a run joins the row that knows no other number.
        row = next((row for row in alike if all(row["shots"].get(task, n) == n for task, n in shots.items())), None)
        if row is None:
            row = {**asked, "shots": {}, "tasks": {}, "groups": {}, "runs": []}
            alike.append(row)
        row["model"] = record.model
        row["shots"] |= shots
        row["groups"] |= {group: _group_result(found, record) for group, found in record.groups.items()}
        grouped = {task for found in record.groups.values() for task in found.tasks}
        row["tasks"] |= {task: found for task, found in record.foreign.items() if task not in grouped}
        row["runs"].append(name)
    return [
        ForeignRow(**{key: value for key, value in row.items() if key != "shots"})
        for alike in rows.values()
        for row in alike
    ]


def _group_result(group: GroupRecord, record: RunRecord) -> GroupResult:
    return GroupResult(metrics=group.metrics, tasks={task: record.foreign[task] for task in group.tasks})


def foreign_tables(rows: Sequence[ForeignRow]) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Return title -> headers and cells: a table of every group, then one of the tasks asked by themselves."""
    models = [row.model for row in rows]
    tables = {}
    for name in dict.fromkeys(group for row in rows for group in row.groups):
        having = [row for row in rows if name in row.groups]
        results = [row.groups[name] for row in having]
        members = dict.fromkeys(task for result in results for task in result.tasks)
        columns = list(members) if len(members) <= MOST_COLUMNS else []
        figures = [{metric: metric_text(one) for metric, one in result.metrics.items()} for result in results]
        tables[name] = _table(having, models, figures, [result.tasks for result in results], columns)
    having = [row for row in rows if row.tasks]
    if having:
        columns = list(dict.fromkeys(task for row in having for task in row.tasks))
        tables[ALONE] = _table(having, models, [{} for _ in having], [row.tasks for row in having], columns)
    return tables


def _table(
    rows: Sequence[ForeignRow],
    models: Sequence[ModelRecord],
    group_cells: Sequence[Mapping[str, str]],
    found: Sequence[Mapping[str, ForeignTaskRecord]],
    tasks: Sequence[str],
) -> tuple[list[str], list[list[str]]]:
    """Return headers and cells.

    Args:
        rows: Of the table.
        models: Of all rows, by which names are told apart.
        group_cells: Metric -> figure of the group, for each row.
        found: The tasks' records, for each row.
        tasks: Those that have a column.
    """
    of_group = list(dict.fromkeys(metric for cells in group_cells for metric in cells))
    columns: dict[tuple[str, str], str] = {}
    for records in found:
        for task in tasks:
            if task in records:
                main = records[task].main
                arrow = {True: " ↑", False: " ↓", None: ""}[records[task].metrics[main].higher_is_better]
                columns.setdefault((task, main), f"{task}, {main}{arrow}")
    headers = ["model", "backend (weights)", "executed by", *of_group, *columns.values(), "asked"]
    cells = []
    for row, group, records in zip(rows, group_cells, found, strict=True):
        figures = [
            metric_text(records[task].metrics[main]) if task in records and main in records[task].metrics else "–"
            for task, main in columns
        ]
        backend = backend_text(row.backend, row.model)
        executed = ", ".join(computed_by(row.model, row.execution, row.device, row.dtype))
        own = [group.get(metric, "–") for metric in of_group]
        cells.append([told_apart(row.model, models), backend, executed, *own, *figures, _asked(row, records)])
    return headers, cells


def metric_text(metric: MetricRecord) -> str:
    """Format a figure of any range with its standard error: `0.5423 ± 0.012`."""
    if metric.value is None:
        return "–"
    return f"{metric.value:.4g}" + (f" ± {metric.stderr:.2g}" if metric.stderr is not None else "")


def _asked(row: ForeignRow, tasks: Mapping[str, ForeignTaskRecord]) -> str:
    shots = {task: found.num_fewshot for task, found in tasks.items()}
    parts = []
    if len(set(shots.values())) > 1:
        named = [f"{task} {number}" for task, number in shots.items() if number]
        parts.append(f"examples shown: {', '.join(named)}" if len(named) <= MOST_COLUMNS else "examples shown")
    elif number := next(iter(shots.values()), 0):
        parts.append(examples_shown(number))
    parts += [f"at most {row.limit} documents a task"] if row.limit else []
    parts += prompt_changes(chat_template=row.chat_template, system_instruction=row.system_instruction)
    return "; ".join(parts) or "all documents"
