"""results/index.html: the leaderboard as one self-contained page, made from the records alone."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.files import MIB, write_atomically
from harness.records.run import RESULTS
from harness.reports.compare import Comparison, compare, points, verdict
from harness.reports.divergence import divergence_heading, divergence_table
from harness.reports.foreign_rows import foreign_tables
from harness.reports.leaderboard import GROUPS, Leaderboard, Row, build_leaderboard
from harness.reports.leaderboard_page import (
    DIVERGENCE_NOTE,
    EXECUTED_BY_TORCH,
    FOREIGN_NOTE,
    LATENCY_HEADERS,
    LEGEND,
    all_machines,
    data_text,
    executed_text,
    latency_cells,
    latency_note,
)
from harness.reports.published import published
from harness.reports.tables import MINI_NOTE, estimate_text
from harness.tasks import RUSSIAN_SUPERGLUE, get_task

log = logging.getLogger(__name__)

_REFERENCES = {"human": "human benchmark", "majority": "majority heuristic"}


def write_page(results: Path) -> Path:
    """Write `results`/index.html from the records under `results` and return its path.

    Raises:
        UserError: The libraries that draw are not installed, there is no readable record, or the page cannot be
            written.
    """
    try:
        import vl_convert
        from jinja2 import Environment, StrictUndefined

        from harness.reports import charts
    except ImportError as error:
        raise UserError(
            f"the page needs {error.name}, which is not installed", "pip install 'rsg-harness[report]'"
        ) from error
    board = build_leaderboard(results)
    machines = all_machines(board)
    rows = _scored_rows(board)
    log.info("comparing quantised runs with the full ones")
    pairs = _pairs(results, rows)
    known = {row.name: row for row in published()}
    references = {
        task: {name: 100 * known[row].task_score(task) for name, row in _REFERENCES.items()}
        for task in RUSSIAN_SUPERGLUE
    }
    specs = {
        "by-seconds": charts.quality_against("seconds", "seconds a document (logarithmic)"),
        "by-memory": charts.quality_against("memory", "memory at batch size 1, MiB (logarithmic)"),
        "by-weights": charts.quality_against("weights", "weights as stored, MiB (logarithmic)"),
        **{f"task-{task}": charts.task_bars(task, references[task]) for task in RUSSIAN_SUPERGLUE},
        **{f"flips-{number}": charts.flip_bars(pair["pair"]) for number, pair in enumerate(pairs)},
    }
    content = {
        "specs": specs,
        "datasets": {
            "rows": chart_rows(board),
            "scores": list(score_rows(rows)),
            "flips": [flip for pair in pairs for flip in pair["flips"]],
        },
    }
    folder = resources.files("harness.reports") / "page"
    template = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string((folder / "page.html").read_text(encoding="utf-8"))
    text = template.render(
        style=(folder / "page.css").read_text(encoding="utf-8"),
        script=(folder / "page.js").read_text(encoding="utf-8"),
        library=vl_convert.javascript_bundle(),  # type: ignore[call-arg]  # its stub lacks the default
        # "</" would end the script element that holds it.
        content=json.dumps(content, ensure_ascii=False).replace("</", "<\\/"),
        tasks={task: get_task(task).title for task in RUSSIAN_SUPERGLUE},
        table=[_table_row(row, machines) for row in board.rows],
        data=[data for data, _ in Counter(data_text(row) for row in board.rows).most_common()],  # the first is shown
        backends=list(dict.fromkeys(row.backend for row in board.rows)),
        groups=GROUPS,
        pairs=pairs,
        legend=[line.replace("\n  ", " ").removeprefix("- ") for line in LEGEND.split("\n- ")],
        mini_note=MINI_NOTE,
        borrowed=EXECUTED_BY_TORCH.removeprefix("- \\"),
        divergence=[(divergence_heading(one), *divergence_table(one)) for one in board.divergence.values()],
        divergence_note=DIVERGENCE_NOTE.replace("`", ""),
        foreign=[(title, *table) for title, table in foreign_tables(board.foreign).items()],
        foreign_note=FOREIGN_NOTE,
        latency_headers=LATENCY_HEADERS,
        latency_note=latency_note(list(board.latency.values())).replace("`", "") if board.latency else "",
        latency={f"latency/{name}": latency_cells(record, machines) for name, record in board.latency.items()},
    )
    path = results / "index.html"
    write_atomically(path, text)
    return path


def _scored_rows(board: Leaderboard) -> list[Row]:
    """Return the rows that choose by log-probability; generated answers stand in the table only."""
    return [row for row in board.rows if row.group == "rsg"]


def _link(run: str) -> str:
    return f"runs/{run}/{RESULTS}"


def _label(row: Row) -> str:
    """Name backend and model, and the bits of a mixed recipe: bars of the same label would be added up."""
    bits, quantised, _ = (row.model.weights or "").partition("-bit")
    mixed = f" ({bits}-bit)" if quantised and " and " in bits else ""
    return f"{row.backend}{mixed} · {row.name}"


def _row_score(row: Row) -> tuple[float | None, float | None]:
    """Return the score of all nine tasks, else the mean of what ran, with its standard error."""
    return (row.mean, row.mean_stderr) if row.score is None else (row.score, row.score_stderr)


def chart_rows(board: Leaderboard) -> list[dict[str, Any]]:
    """Return the dataset `rows` of the charts: quality and cost of every row that has both."""
    machines = all_machines(board)
    found: list[dict[str, Any]] = []
    names = list(dict.fromkeys(row.name for row in _scored_rows(board)))
    for row in _scored_rows(board):
        score, stderr = _row_score(row)
        weights = row.model.weights_bytes
        if score is None or not row.records_per_second or not row.single_bytes or not weights:
            continue
        margin = 1.96 * (stderr or 0)
        low, high = row.score_interval or (score - margin, score + margin)
        found.append(
            {
                "label": _label(row),
                "number": names.index(row.name) + 1,
                "model": f"{names.index(row.name) + 1} {row.name}",
                "backend": row.backend,
                "data": data_text(row),
                "executed": executed_text(row, row.runs, machines),
                "borrowed": row.is_mlx_by_torch,
                "score": 100 * score,
                "low": 100 * low,
                "high": 100 * high,
                "seconds": 1 / row.records_per_second,
                "memory": row.single_bytes / MIB,
                "weights": weights / MIB,
                "link": _link(row.runs[-1].directory),
            }
        )
    for cost in ("seconds", "memory", "weights"):
        for one in found:
            one[f"front_{cost}"] = not any(
                other["data"] == one["data"] and other["score"] >= one["score"] and other[cost] < one[cost]
                for other in found
            )
    return found


def score_rows(rows: Iterable[Row]) -> Iterable[dict[str, Any]]:
    """Yield the dataset `scores` of the charts: every task of every row."""
    for row in rows:
        for task, found in row.tasks.items():
            if found.score is not None:
                low, high = found.metrics["rsg"].interval or (found.score, found.score)
                yield {
                    "label": _label(row),
                    "backend": row.backend,
                    "data": data_text(row),
                    "task": task,
                    "score": 100 * found.score,
                    "low": 100 * low,
                    "high": 100 * high,
                    "link": _link(found.run),
                }


def _pairs(results: Path, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Compare every MLX row with the PyTorch row of the same model that was asked the same."""
    found = []
    for row in rows:
        full = next((other for other in rows if other.backend.startswith("torch") and _asks_alike(other, row)), None)
        if full is None or not row.backend.startswith("mlx"):
            continue
        runs = full.runs[-1].directory, row.runs[-1].directory
        try:
            comparison = compare(results / "runs" / runs[0], results / "runs" / runs[1])
        except UserError:
            continue  # runs of other prompts or documents; their rows still stand in the table
        if not comparison.tasks:
            continue  # their newest runs have other tasks
        found.append(_pair(row, comparison, runs))
    return found


def _asks_alike(one: Row, other: Row) -> bool:
    keys = [
        (row.model.identity, row.data, row.num_fewshot, row.chat_template, row.system_instruction)
        for row in (one, other)
    ]
    return keys[0] == keys[1]


def _pair(row: Row, comparison: Comparison, runs: tuple[str, str]) -> dict[str, Any]:
    pair = f"{_label(row)} ({data_text(row)})"
    return {
        "pair": pair,
        "backend": row.backend,
        "data": data_text(row),
        "verdict": verdict(comparison.mean_difference, comparison.mean_interval),
        "links": [_link(run) for run in runs],
        "command": f"rsg-harness compare results/runs/{runs[0]} results/runs/{runs[1]} --flips 5",
        "flips": [{**flip, "backend": row.backend, "data": data_text(row)} for flip in flip_rows(comparison, pair)],
    }


def flip_rows(comparison: Comparison, pair: str) -> list[dict[str, Any]]:
    """Return the dataset `flips` of the charts: answers lost (a negative share) and gained, by task.

    Args:
        comparison: of a full and a quantised run.
        pair: what the chart calls them.
    """
    return [
        {
            "pair": pair,
            "task": get_task(task.task.removeprefix("gen_")).title,
            "way": way,
            "answers": len(answers),
            "of": task.answers,
            "share": sign * 100 * len(answers) / task.answers,
            "points": points(task.difference),
        }
        for task in comparison.tasks
        for way, answers, sign in (("lost", task.lost, -1), ("gained", task.gained, 1))
    ]


def _table_row(row: Row, machines: Sequence[str]) -> dict[str, Any]:
    score, stderr = row.score, row.score_stderr
    tasks = {}
    for task, found in row.tasks.items():
        interval = found.metrics["rsg"].interval
        spread = f"95%: {100 * interval[0]:.1f} to {100 * interval[1]:.1f}" if interval else ""
        tasks[task] = {
            "value": found.score,
            "text": "?" if found.score is None else f"{100 * found.score:.1f}",
            "title": ", ".join(part for part in (spread, f"{found.documents} documents", found.prompt) if part),
            "link": _link(found.run),
        }
    return {
        "model": row.name,
        "heads": any(found.head for found in row.tasks.values()),
        "backend": row.backend,
        "weights_type": row.model.weights or "not known",
        "executed": executed_text(row, row.runs, machines),
        "borrowed": row.is_mlx_by_torch,
        "group": GROUPS[row.group],
        "data": data_text(row),
        "is_mini": row.data.source == "mini",
        "tasks": tasks,
        "score": score,
        "score_text": estimate_text(score, stderr),
        "speed": row.records_per_second,
        "single": row.single_bytes and row.single_bytes / MIB,
        "weights": row.model.weights_bytes and row.model.weights_bytes / MIB,
        "link": _link(row.runs[-1].directory),
    }
