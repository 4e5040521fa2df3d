"""`rsg-harness sweep`: one model on several backends, each beside the first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tabulate import tabulate

from harness.errors import UserError
from harness.evaluation.options import RunOptions, check_options
from harness.evaluation.run import run
from harness.files import MIB
from harness.processes import run_apart, started_processes
from harness.records.run import RunRecord
from harness.reports.compare import Comparison, compare, verdict
from harness.reports.tables import estimate_text


@dataclass(frozen=True)
class SweepRow:
    """One backend's run. `comparison`: with the first backend's; None for the first."""

    directory: Path
    record: RunRecord
    comparison: Comparison | None


def sweep(
    options: RunOptions,
    backends: Sequence[str],
    say: Callable[[str], None] = lambda text: None,
    run_one: Callable[[RunOptions], tuple[RunRecord, Path]] = lambda options: run_apart(run, options),
) -> list[SweepRow]:
    """Runs the same evaluation on every backend.

    Args:
        options: of every run but its backend. `output` is what the directories' names start with, a backend's name
            follows; where `resume` is set, finished backends are not run again.
        backends: names, each with its arguments after colons (`mlx-q4:group_size=32`). The first is the one that the
            others are compared with.
        say: told where a record is as soon as it is there.
        run_one: does one run, by itself in a process of its own: a process's peak memory is that of all it ever did.

    Returns:
        A row a backend; none in processes after the first of a launcher.

    Raises:
        UserError: as for `run`; finished backends keep their records.
    """
    if not backends or len(set(backends)) != len(backends):
        raise UserError(f"--backends {','.join(backends)!r} names none, or one twice", "name each backend once")
    if options.split == "test":
        raise UserError("the answers of the test split are hidden: nothing to compare", "leave out --split")
    if options.resume and options.output is None:
        raise UserError("--resume needs to know which sweep", "repeat its --output")
    runs = [_of_backend(options, backend) for backend in backends]
    for one in runs:  # before the first of them takes its time
        check_options(one)
    rows: list[SweepRow] = []
    for one in runs:
        record, directory = run_one(one)
        if started_processes().is_first:  # which holds the records
            say(f"record: {directory}")
            rows.append(SweepRow(directory, record, compare(rows[0].directory, directory) if rows else None))
    return rows


def _of_backend(options: RunOptions, backend: str) -> RunOptions:
    name, *arguments = backend.split(":")
    output = options.output and options.output.with_name("-".join([options.output.name, name, *arguments]))
    resume = output is not None and options.resume and output.exists()
    return replace(options, backend=name, backend_args=tuple(arguments), output=output, resume=resume)


def sweep_table(rows: Sequence[SweepRow]) -> str:
    """What the command prints: a row a backend, and the tasks that really got worse or better."""
    first = rows[0].record
    headers = [
        "backend", "executed by", "weights, MiB", f"mean of {len(first.tasks)}", f"beside {first.backend}",
        "lost / gained answers", "documents/s",
    ]  # fmt: skip
    return tabulate([_cells(row) for row in rows], headers=headers, disable_numparse=True)


def _cells(row: SweepRow) -> list[str]:
    record, comparison = row.record, row.comparison
    beside, flips = "", ""
    if comparison:
        beside = verdict(comparison.mean_difference, comparison.mean_interval)
        flips = " / ".join(str(sum(len(getattr(task, way)) for task in comparison.tasks)) for way in ("lost", "gained"))
    return [
        f"{record.backend} ({record.model.weights})",
        record.execution,
        f"{record.model.weights_bytes / MIB:.0f}",
        estimate_text(record.mean, record.mean_stderr),
        beside,
        flips,
        f"{record.timing.records_per_second:.1f}",
    ]
