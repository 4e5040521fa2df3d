"""The directory of a run, and whether a run that was started there may go on."""

from __future__ import annotations

import hashlib
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from adapters.registry import BACKENDS, pick_execution
from harness.data import Split
from harness.errors import UserError
from harness.evaluation.options import RunOptions
from harness.models.resolve import LocalModel
from harness.processes import Processes
from harness.records import provenance
from harness.records.run import RESULTS, RunRecord, read_record
from harness.scoring.store import ProgressStore
from harness.settings import setting_differences
from harness.tasks.prompts import TASK_DIR, ChosenTask

RUNS_DIR = Path("results") / "runs"
PROGRESS = "progress.sqlite"
_OTHERS_PROGRESS = "progress-{rank}.sqlite"  # of the processes after the first


def named_directory(options: RunOptions) -> Path | None:
    """--output, or the latest unfinished run to resume; None where a new directory is to be made.

    Raises:
        UserError: it holds another run, or cannot be written, or there is none to resume.
    """
    if options.output is None:
        return _latest_unfinished() if options.resume else None
    if not options.resume and (options.output / RESULTS).exists():
        raise UserError(f"{options.output} already holds a finished run", "name another --output")
    if not options.resume and (options.output / PROGRESS).exists():
        raise UserError(f"{options.output} holds an unfinished run", "go on with --resume, or name another --output")
    _make_writable(options.output)
    return options.output


def new_directory(model: LocalModel, backend: str) -> Path:
    stamp = datetime.now(UTC).strftime("%Y-%m-%d-%H%M%S")
    directory = RUNS_DIR / f"{stamp}-{_slug(model.name)}-{backend}"
    _make_writable(directory)
    return directory


def open_store(directory: Path, processes: Processes) -> ProgressStore:
    """This process's store. The first one takes over what others of an earlier start left.

    Raises:
        UserError: a store is damaged, or the directory cannot be written.
    """

    def open_first() -> ProgressStore:
        store = ProgressStore(directory / PROGRESS)
        for left in sorted(directory.glob(_OTHERS_PROGRESS.format(rank="*"))):
            store.absorb(left)
        return store

    store = open_first() if processes.is_first else None
    processes.wait()  # nobody opens a store that the first one is about to absorb
    if store is None:
        directory.mkdir(parents=True, exist_ok=True)  # on another machine
        store = ProgressStore(directory / _OTHERS_PROGRESS.format(rank=processes.rank))
    return store


def remove_stores(directory: Path) -> None:
    """After the record is written."""
    for pattern in (PROGRESS, _OTHERS_PROGRESS.format(rank="*")):
        for leftover in directory.glob(f"{pattern}*"):
            leftover.unlink(missing_ok=True)  # where processes share the directory, another may be faster


def _make_writable(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"cannot write to {directory}: {error.strerror}", "name a directory that can be written with --output"
        ) from error


def _latest_unfinished() -> Path:
    unfinished = [path.parent for path in RUNS_DIR.glob(f"*/{PROGRESS}") if not (path.parent / RESULTS).exists()]
    if not unfinished:
        raise UserError(f"no unfinished run in {RUNS_DIR}", "name the run's directory with --output DIR --resume")
    return max(unfinished, key=lambda path: (path / PROGRESS).stat().st_mtime)


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-").lower()


def run_settings(
    options: RunOptions, model: LocalModel, chosen: list[ChosenTask], splits: dict[str, Split]
) -> dict[str, Any]:
    """Everything that decides a run's figures. A resumed run must have the same."""
    return {
        "model": model.fingerprint,
        "backend": options.backend,
        "backend-arg": sorted(options.backend_args),
        "execution": pick_execution(BACKENDS[options.backend], options.execution),
        "dtype": options.dtype,
        "data": {task: split.fingerprint for task, split in splits.items()},
        "tasks": {task.file.full_name: task.prompt for task in chosen},
        "task files": _hash_task_files(chosen),
        "split": options.split,
        "limit": options.limit,
        "num-fewshot": options.num_fewshot,
        "apply-chat-template": options.apply_chat_template,
        "batch-tokens": options.batch_tokens,
        "seed": options.seed,
        "versions": {name: version for name, version in provenance.versions().items() if name != "rsg-harness"},
    }


def _hash_task_files(chosen: list[ChosenTask]) -> str:
    digest = hashlib.sha256((TASK_DIR / "functions.py").read_bytes())
    for task in chosen:
        digest.update(task.file.path.read_bytes())
    return digest.hexdigest()


def settings_hash(settings: dict[str, Any]) -> str:
    """SHA-256 that a record keeps of the settings it was made with."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def finished_record(directory: Path, settings: dict[str, Any]) -> RunRecord | None:
    """The record of a run that is already finished; None where there is none yet.

    Raises:
        UserError: it was made with other settings.
    """
    if not (directory / RESULTS).exists():
        return None
    record = read_record(directory)
    if record.settings_sha256 != settings_hash(settings):
        raise UserError(f"{directory} holds a finished run with other settings", "name another --output")
    return record


def agree_on_settings(store: ProgressStore, settings: dict[str, Any], directory: Path) -> bool:
    """True if the store holds a run with these settings; a new store takes them.

    Raises:
        UserError: it holds a run with others.
    """
    before = store.settings()
    if before is None:
        store.put_settings(settings)
        return False
    differing = list(setting_differences(before, settings))
    if differing:
        raise UserError(
            f"{directory} holds a run with other settings: {'; '.join(differing)}",
            "repeat its settings, or name another --output",
        )
    return True
