"""`rsg-harness sweep`: one model on several backends, each compared with the first."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tabulate import tabulate

from harness.errors import UserError
from harness.evaluation.divergence import chosen_corpus, divergence
from harness.evaluation.divergence_options import DivergenceOptions, check_divergence_options
from harness.evaluation.options import RunOptions, SweepOptions, check_run_options
from harness.evaluation.run import run
from harness.models.options import backend_of
from harness.processes import run_in_subprocess, started_processes
from harness.records.divergence import (
    DIVERGENCE,
    DIVERGENCE_DIR,
    BackendDivergence,
    DivergenceRecord,
    read_divergence,
)
from harness.records.run import RunRecord
from harness.reports.compare import Comparison, compare, verdict
from harness.reports.foreign_rows import metric_text
from harness.reports.tables import backend_text, estimate_text, mebibytes
from harness.tasks import include

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SweepRow:
    """One backend's run.

    Attributes:
        directory: That holds the record.
        record: The record.
        comparison: With the first backend's run; None for the first.
        divergence: From the first backend, on the sweep's corpus; None where there is none.
    """

    directory: Path
    record: RunRecord
    comparison: Comparison | None
    divergence: BackendDivergence | None = None


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
    if options.corpus:
        check_divergence_options(_divergence_options(options, Path()))
        if output := runs[0].output:  # whose name another sweep may have used
            _measured_divergence(_divergence_options(options, output))
    alone = started_processes().size == 1
    rows: list[SweepRow] = []
    for one in runs:
        record, directory = run_in_subprocess(run, one) if alone else run(one)
        if started_processes().is_first:  # which holds the records
            log.info("record: %s", directory)
            rows.append(SweepRow(directory, record, compare(rows[0].directory, directory) if rows else None))
    if rows and options.corpus:
        found = _divergence(options, rows[0].directory)
        rows = [replace(row, divergence=one) for row, one in zip(rows, found.backends, strict=True)]
    return rows


def _divergence_options(options: SweepOptions, directory: Path) -> DivergenceOptions:
    """Return the options of the measurement beside a sweep whose first run has this directory."""
    return DivergenceOptions(
        corpus=options.corpus or "",
        model=options.model,
        backends=options.backends,
        execution=options.execution,
        dtype=options.dtype,
        data=options.data,
        limit=options.corpus_limit,
        seed=options.seed,
        output=Path("results") / DIVERGENCE_DIR / directory.name,
        resume=options.resume,
        command=options.command,
    )


def _divergence(options: SweepOptions, first: Path) -> DivergenceRecord:
    """Measure the backends' divergence, or return what a resumed sweep has measured already."""
    asked = _divergence_options(options, first)
    if measured := _measured_divergence(asked):
        return measured
    assert asked.output is not None
    record, directory = run_in_subprocess(divergence, replace(asked, resume=options.resume and asked.output.exists()))
    log.info("record: %s", directory)
    return record


def _measured_divergence(asked: DivergenceOptions) -> DivergenceRecord | None:
    """Return the divergence that a resumed sweep has measured already; None where there is none yet.

    Raises:
        UserError: There is one of another sweep.
    """
    assert asked.output is not None
    if not (asked.output / DIVERGENCE).exists():
        return None
    record = read_divergence(asked.output / DIVERGENCE)
    found = (tuple(one.backend for one in record.backends), record.corpus.sha256)
    if not asked.resume or found != (asked.backends, chosen_corpus(asked).fingerprint()):
        raise UserError(f"{asked.output} holds the divergence of another sweep", "name another --output")
    return record


def _of_backend(options: SweepOptions, backend: str) -> RunOptions:
    name, arguments = backend_of(backend)
    output = options.output and options.output.with_name("-".join([options.output.name, name, *arguments]))
    resume = output is not None and options.resume and output.exists()
    return replace(options, backend=name, backend_args=arguments, output=output, resume=resume)


def sweep_text(rows: Sequence[SweepRow]) -> str:
    """Format what `rsg-harness sweep` prints: a row a backend, and one a task of lm-eval's and backend."""
    tables = [sweep_table(rows)]
    if rows[0].record.foreign:
        tables.append(_foreign_table(rows))
    return "\n\n".join(tables)


def sweep_table(rows: Sequence[SweepRow]) -> str:
    """Format a row a backend: quality beside the first one's, size and speed."""
    first = rows[0].record
    quality = [f"mean of {len(first.tasks)}", f"beside {first.backend}", "lost / gained answers"] if first.tasks else []
    diverged = ["KL, nats", "same best, %"] if rows[0].divergence else []
    headers = ["backend", "executed by", "weights, MiB", *quality, *diverged, "documents/s"]
    return tabulate([_cells(row) for row in rows], headers=headers, disable_numparse=True)


def _cells(row: SweepRow) -> list[str]:
    record, comparison = row.record, row.comparison
    cells = [backend_text(record.backend, record.model), record.execution, mebibytes(record.model.weights_bytes)]
    if record.tasks:
        cells.append(estimate_text(record.mean, record.mean_stderr))
        cells += _beside(comparison) if comparison else ["", ""]
    if row.divergence:
        one = row.divergence
        first = comparison is None
        cells += ["", ""] if first else [f"{one.kl.value:.5f}", f"{100 * one.same_best.value:.2f}"]
    return [*cells, f"{record.timing.records_per_second:.1f}"]


def _beside(comparison: Comparison) -> list[str]:
    flips = [str(sum(len(getattr(task, way)) for task in comparison.tasks)) for way in ("lost", "gained")]
    return [verdict(comparison.mean_difference, comparison.mean_interval), " / ".join(flips)]


def _foreign_table(rows: Sequence[SweepRow]) -> str:
    """Format the main metric of every task of lm-eval's, backend by backend, beside the first one's."""
    cells = []
    for name, first in rows[0].record.foreign.items():
        for row in rows:
            task = next((one for one in row.comparison.foreign if one.task == name), None) if row.comparison else None
            figures = ["", "", ""]
            if task:
                low, high = (f"{bound:+.4g}" for bound in task.interval)
                figures = [f"{task.difference:+.4g}", f"{low} to {high}", f"{len(task.lost)} / {len(task.gained)}"]
            metric = task.metric if task else first.main
            shown = metric_text(row.record.foreign[name].metrics[metric])
            cells.append([name, metric, row.record.backend, shown, *figures])
    headers = ["lm-eval's task", "metric", "backend", "value", "difference", "95% interval", "lost / gained"]
    return tabulate(cells, headers=headers, disable_numparse=True)
