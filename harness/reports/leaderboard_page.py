"""The leaderboard's files: a page of Markdown, and JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from tabulate import tabulate

from harness.files import write_atomically
from harness.records.latency import LatencyRecord
from harness.records.run import ENDPOINT
from harness.reports.divergence import divergence_heading, divergence_table
from harness.reports.foreign_rows import foreign_tables
from harness.reports.leaderboard import (
    GROUPS,
    Leaderboard,
    Row,
    RowRun,
    TaskScore,
    build_leaderboard,
    machine_text,
)
from harness.reports.published import REFERENCE_NOTE, reference_cells
from harness.reports.tables import (
    MINI_NOTE,
    backend_text,
    computed_by,
    estimate_text,
    examples_shown,
    mebibytes,
    prompt_changes,
)
from harness.tasks import RUSSIAN_SUPERGLUE, get_task

_TIMED = ("terra", "muserc")  # the short and the long question
NAMES = [get_task(task).title for task in RUSSIAN_SUPERGLUE]
COSTS = ["records/s", "memory at batch size 1, MiB", "peak memory, MiB", "weights, MiB"]
HEADERS = ["model", "backend (weights)", "executed by", *NAMES, "score", *COSTS, "data"]
LEGEND = """\
- Scores: the official metric × 100. LiDiRus: Matthews correlation; RCB: mean of macro F1 and accuracy; MuSeRC: mean of
  F1a and EM; RuCoS: mean of F1 and EM; the others: accuracy. –: did not run. ?: ran, but the answers are hidden.
- Score: mean of the nine, only where all nine ran (leaderboard.json also has the mean of what ran). ±: one
  standard error, from a bootstrap over each task's documents (MuSeRC: paragraphs), the tasks taken as independent.
- Records/s and memory are defined after MOROCCO (Malykh et al. 2021, arXiv:2104.14314). Records/s: documents over the
  seconds of scoring, the model's start subtracted; here over the row's own documents, not MOROCCO's 2000. –: measured
  on several machines, or together with tasks asked in the other way.
- Memory at batch size 1: after the model's start and one longest document alone. Peak memory: the most that a whole run
  took. Both are the process's memory, or the GPU allocator's where there is one. Weights: their size as stored."""
HEADS = "- †: trained on these tasks; heads of its own answer them (leaderboard.json says which)."
LATENCY_HEADERS = [
    "model", "backend (weights)", "executed by", "short question, p50 / p95, ms", "long question, p50 / p95, ms",
    "questions/s", "first token, ms", "new tokens/s", "start, s", "memory at batch size 1, MiB", "peak memory, MiB",
]  # fmt: skip
LATENCY_NOTE = """\
Made by `pytest --benchmark` on the mini set, each backend in a process of its own. Short: a TERRa pair; long: a MuSeRC
paragraph with one answer; both at batch size 1, from the fields to the answer. Questions/s: TERRa, many at once, at the
best of five batch sizes (MOROCCO's definition). First token: after a prompt of {prompt_tokens} tokens."""
FOREIGN_NOTE = """\
The metrics are lm-eval's, each task by the first that it names; ±: one standard error, of a mean by its formula, of
other metrics by a bootstrap over documents, of a group as of independent tasks."""
DIVERGENCE_NOTE = """\
What a backend does to the model's distribution of the next token, over its whole vocabulary, at every token of a text:
`rsg-harness divergence`. Same best: share of positions where both find the same token the likeliest. Lost / gained:
positions where only the reference, only this backend finds the right token the likeliest. Where the right token's
probability changes, RMS Δp is the root mean square of the change."""
EXECUTED_BY_TORCH = "- \\*: executed by torch: the quality is real, the speed and the memory are not MLX's."


def write_leaderboard(results: Path) -> list[Path]:
    """Write `results`/leaderboard.md and .json and return their paths. The same records give the same bytes.

    Raises:
        UserError: There is no readable record, or the directory cannot be written.
    """
    board = build_leaderboard(results)
    document = json.dumps(board.model_dump(mode="json"), ensure_ascii=False, indent=2) + "\n"
    files = {results / "leaderboard.md": page(board), results / "leaderboard.json": document}
    for path, text in files.items():
        write_atomically(path, text)
    return list(files)


def page(board: Leaderboard) -> str:
    """Return the leaderboard as Markdown."""
    parts = ["# Russian SuperGLUE leaderboard", "Made from the run records by `rsg-harness leaderboard`."]
    measured = list(board.latency.values())
    machines = all_machines(board)
    for is_mini in (False, True):
        for group, how in GROUPS.items():
            rows = [row for row in board.rows if row.group == group and (row.data.source == "mini") == is_mini]
            if rows:
                parts.append(f"## {'Mini set' if is_mini else 'Russian SuperGLUE'}: {how}")
                parts.extend([MINI_NOTE] if is_mini else [])
                parts.extend([_table(HEADERS, [_cells(row, machines) for row in rows]), _caveats(rows)])
    for title, (headers, cells) in foreign_tables(board.foreign).items():
        parts.extend([f"## lm-eval's tasks: {title}", FOREIGN_NOTE, _table(headers, cells)])
    if board.divergence:
        parts.extend(["## Divergence", DIVERGENCE_NOTE])
        for record in board.divergence.values():
            parts.extend([f"{divergence_heading(record)}.", _table(*divergence_table(record))])
    if measured:
        cells = [latency_cells(record, machines) for record in measured]
        parts.extend(["## Latency", latency_note(measured), _table(LATENCY_HEADERS, cells)])
    borrowed = [EXECUTED_BY_TORCH] if any(row.is_mlx_by_torch for row in board.rows) else []
    trained = [HEADS] if any(_has_heads(row) for row in board.rows) else []
    numbered = [f"- Machine{f' {n}' if len(machines) > 1 else ''}: {text}." for n, text in enumerate(machines, 1)]
    parts.extend(
        [
            "## How to read this",
            "\n".join([LEGEND, *trained, *borrowed, *numbered]),
            "## Published figures",
            REFERENCE_NOTE,
            _table(*reference_cells()),
        ]
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    clean = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return tabulate(clean, headers=headers, tablefmt="github", disable_numparse=True)


def _cells(row: Row, machines: Sequence[str]) -> list[str]:
    mark = "*" if row.is_mlx_by_torch else ""
    score = estimate_text(row.score, row.score_stderr)
    speed = "–" if row.records_per_second is None else f"{row.records_per_second:.2f}{mark}"
    memory = [f"{mebibytes(size)}{mark if size else ''}" for size in (row.single_bytes, row.peak_bytes)]
    weights = mebibytes(row.model.weights_bytes)
    scores = [_score(row.tasks.get(task)) for task in RUSSIAN_SUPERGLUE]
    executed = executed_text(row, row.runs, machines)
    backend = backend_text(row.backend, row.model)
    return [_model_name(row), backend, executed, *scores, score, speed, *memory, weights, data_text(row)]


def _model_name(row: Row) -> str:
    """Name the model, with a dagger where trained heads answer."""
    return f"{row.name} †" if _has_heads(row) else row.name


def _has_heads(row: Row) -> bool:
    return any(task.head for task in row.tasks.values())


def latency_cells(record: LatencyRecord, machines: Sequence[str]) -> list[str]:
    """Return a row under LATENCY_HEADERS."""
    timed = [record.latency.get(task) for task in _TIMED]
    one_question = [f"{1000 * one.p50:.0f} / {1000 * one.p95:.0f}" if one else "–" for one in timed]
    return [
        record.model.name,
        backend_text(record.backend, record.model),
        executed_text(record, [record], machines),
        *one_question,
        f"{record.throughput.questions_per_second:.1f}",
        f"{1000 * record.generation.first_token_seconds:.0f}",
        f"{record.generation.tokens_per_second:.1f}",
        f"{record.load_seconds:.1f}",
        mebibytes(record.single_bytes),
        mebibytes(record.peak_bytes),
    ]


def latency_note(records: Sequence[LatencyRecord]) -> str:
    return LATENCY_NOTE.format(prompt_tokens=records[0].generation.prompt_tokens)


def all_machines(board: Leaderboard) -> list[str]:
    """Return every machine that a row or a latency record was measured on, once; none for models behind servers."""
    rows = [row for row in board.rows if row.execution != ENDPOINT]
    runs: list[RowRun | LatencyRecord] = [*board.latency.values(), *(run for row in rows for run in row.runs)]
    return sorted(set(map(machine_text, runs)))


def executed_text(one: Row | LatencyRecord, runs: Sequence[RowRun | LatencyRecord], machines: Sequence[str]) -> str:
    """Say what computed, and on which of the machines, where there are several."""
    found = computed_by(one.model, one.execution, one.device, one.dtype)
    return ", ".join(found if one.execution == ENDPOINT else [*found, *_where(runs, machines)])


def _where(runs: Sequence[RowRun | LatencyRecord], machines: Sequence[str]) -> list[str]:
    """Name the machines by number, where there are several."""
    numbers = sorted({machines.index(machine_text(run)) + 1 for run in runs})
    return [f"machine {' and '.join(map(str, numbers))}"] if len(machines) > 1 else []


def data_text(row: Row) -> str:
    """Say what a row was measured on."""
    limit = [f"at most {row.data.limit} a task"] if row.data.limit else []
    shots = [examples_shown(row.num_fewshot)] if row.num_fewshot else []
    asked = prompt_changes(chat_template=row.chat_template, system_instruction=row.system_instruction)
    return ", ".join([row.data.source, row.data.split, *limit, *shots, *asked])


def _score(task: TaskScore | None) -> str:
    if task is None:
        return "–"
    return "?" if task.score is None else _percent(task.score)


def _percent(value: float | None) -> str:
    return f"{100 * (value or 0):.1f}"


def _caveats(rows: Sequence[Row]) -> str:
    """List the prompts, splits that differ from the official ones, and tasks whose documents differ between rows."""
    lines = [
        "Prompts: "
        + "; ".join(f"{name} {', '.join(found)}" for name, found in _distinct(rows, lambda task: task.prompt))
    ]
    warnings = {warning for row in rows for task in row.tasks.values() for warning in task.warnings}
    lines.extend(f"Beware: {warning}" for warning in sorted(warnings))
    for source, split in sorted({(row.data.source, row.data.split) for row in rows}):
        alike = [row for row in rows if (row.data.source, row.data.split) == (source, split)]
        differing = [name for name, found in _distinct(alike, lambda task: task.data_sha256) if len(found) > 1]
        if differing:
            lines.append(f"The rows' {source} {split} documents differ in {', '.join(differing)}: do not compare these")
    return "\n\n".join(f"{line}." for line in lines)


def _distinct(rows: Sequence[Row], what: Callable[[TaskScore], str]) -> list[tuple[str, list[str]]]:
    """Return the title of each task that ran and its distinct values, in the rows' order."""
    found = [
        (get_task(name).title, [what(row.tasks[name]) for row in rows if name in row.tasks])
        for name in RUSSIAN_SUPERGLUE
    ]
    return [(name, list(dict.fromkeys(values))) for name, values in found if values]
