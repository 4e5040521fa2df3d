"""`rsg-harness sweep`: one model on several backends, each compared with the first."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tabulate import tabulate

from harness.errors import UserError
from harness.evaluation.options import RunOptions, SweepOptions, check_run_options
from harness.evaluation.run import run
from harness.files import MIB
from harness.models.options import backend_of
from harness.processes import run_in_subprocess, started_processes
from harness.records.run import RunRecord
from harness.reports.compare import Comparison, compare, verdict
from harness.reports.tables import estimate_text
from harness.tasks import include

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SweepRow:
    """One backend's run. `comparison`: with the first backend's; None for the first."""

    directory: Path
    record: RunRecord
    comparison: Comparison | None


def sweep(options: SweepOptions) -> list[SweepRow]:
    """Run the same evaluation on every backend, each run in a process of its own.

    A process's peak memory is that of everything it ever did, so runs that share one cannot be told apart. Processes
    of a launcher are bound to each other and stay what they are.

    Args:
        options: `output` is what the directories' names start with; a backend's name follows. Finished backends are
            not run again where `resume` is set. The first backend is the one that the others are compared with.

    Returns:
        A row a backend; none in processes after the first of a launcher.

    Raises:
        UserError: As for `run`; finished backends keep their records.
    """
    backends = options.backends
    if not backends or len(set(backends)) != len(backends):
        raise UserError(f"--backends {','.join(backends)!r} names none, or one twice", "name each backend once")
    if options.split == "test":
        raise UserError("the answers of the test split are hidden: nothing to compare", "leave out --split")
    if options.resume and options.output is None:
        raise UserError("--resume needs to know which sweep", "repeat its --output")
    runs = [_of_backend(options, backend) for backend in backends]
    for one in runs:  # before the first of them takes its time
        check_run_options(one)
    for tasks in options.include_path:
        include(tasks)
    alone = started_processes().size == 1
    rows: list[SweepRow] = []
    for one in runs:
        record, directory = run_in_subprocess(run, one) if alone else run(one)
        if started_processes().is_first:  # which holds the records
            log.info("record: %s", directory)
            rows.append(SweepRow(directory, record, compare(rows[0].directory, directory) if rows else None))
    return rows


def _of_backend(options: SweepOptions, backend: str) -> RunOptions:
    name, arguments = backend_of(backend)
    output = options.output and options.output.with_name("-".join([options.output.name, name, *arguments]))
    resume = output is not None and options.resume and output.exists()
    return replace(options, backend=name, backend_args=arguments, output=output, resume=resume)


def sweep_table(rows: Sequence[SweepRow]) -> str:
    """Format a row a backend: quality beside the first one's, size and speed."""
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
