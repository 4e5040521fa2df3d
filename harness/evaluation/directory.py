"""The directory of a run: a new one, or that of a run to continue, with the settings it must have."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters.registry import BACKENDS, pick_execution
from harness.data import Split
from harness.errors import UserError
from harness.evaluation.options import RunOptions
from harness.files import file_hash
from harness.models.resolve import LocalModel
from harness.processes import Processes
from harness.records import provenance
from harness.records.run import RESULTS, RunRecord, read_run
from harness.scoring.store import ProgressStore
from harness.settings import SETTINGS, agree_on_settings
from harness.tasks.prompts import TASK_DIR, ChosenTask

if TYPE_CHECKING:
    from harness.tasks.foreign import ForeignTasks

RUNS_DIR = Path("results") / "runs"
PROGRESS = "progress.sqlite"
_OTHERS_PROGRESS = "progress-{rank}.sqlite"  # of the processes after the first

log = logging.getLogger(__name__)


def named_directory(options: RunOptions) -> Path | None:
    """Return --output, or the latest unfinished run to resume; None where a new directory is to be made.

    Raises:
        UserError: It holds another run, it cannot be written, or there is no run to resume.
    """
    if options.output is None:
        return _latest_unfinished() if options.resume else None
    if not options.resume and (options.output / RESULTS).exists():
        raise UserError(f"{options.output} already holds a finished run", "name another --output")
    if not options.resume and (options.output / PROGRESS).exists():
        raise UserError(
            f"{options.output} holds an unfinished run", "continue it with --resume, or name another --output"
        )
    _make_writable(options.output)
    return options.output


def new_directory(model: str, backend: str) -> Path:
    """Make a directory named after the time, the model and the backend.

    Raises:
        UserError: It cannot be written.
    """
    stamp = datetime.now(UTC).strftime("%Y-%m-%d-%H%M%S")
    name = f"{stamp}-{_slug(model)}-{backend}"
    number = 1
    while True:
        directory = RUNS_DIR / (name if number == 1 else f"{name}-{number}")
        try:
            RUNS_DIR.mkdir(parents=True, exist_ok=True)
            directory.mkdir()
        except FileExistsError:  # a run that started in the same second has the name
            number += 1
        except OSError as error:
            raise _not_writable(directory, error) from error
        else:
            return directory


def agree_with_run(directory: Path, settings: dict[str, Any]) -> bool:
    """Keep a new run's settings in its directory, or check those of a run to resume. Return whether it is resumed.

    Raises:
        UserError: The run there has other settings.
    """
    resumed = (directory / SETTINGS).exists()
    if not resumed and (directory / PROGRESS).exists():
        raise UserError(
            f"{directory} holds an unfinished run of an older version", "remove it, or name another --output"
        )
    agree_on_settings(directory, settings, resume=resumed, what="run")
    return resumed


def open_store(directory: Path, processes: Processes) -> ProgressStore:
    """Open this process's store. The first process takes over what the others of an earlier start left.

    Raises:
        UserError: A store is damaged, or the directory cannot be written.
    """

    def open_first() -> ProgressStore:
        store = ProgressStore(directory / PROGRESS)
        for left in sorted(directory.glob(_OTHERS_PROGRESS.format(rank="*"))):
            store.absorb(left)
        return store

    store = open_first() if processes.is_first else None
    processes.barrier()  # nobody opens a store that the first process is about to absorb
    if store is None:
        directory.mkdir(parents=True, exist_ok=True)  # on another machine
        store = ProgressStore(directory / _OTHERS_PROGRESS.format(rank=processes.rank))
    return store


def remove_progress(directory: Path) -> None:
    """Remove what only an unfinished run needs, once its record is written."""
    for pattern in (PROGRESS, _OTHERS_PROGRESS.format(rank="*"), SETTINGS):
        for leftover in directory.glob(f"{pattern}*"):
            leftover.unlink(missing_ok=True)  # where processes share the directory, another may be faster


def _make_writable(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _not_writable(directory, error) from error


def _not_writable(directory: Path, error: OSError) -> UserError:
    return UserError(f"cannot write to {directory}: {error.strerror}", "name a writable directory with --output")


def _latest_unfinished() -> Path:
    unfinished = [path.parent for path in RUNS_DIR.glob(f"*/{PROGRESS}") if not (path.parent / RESULTS).exists()]
    if not unfinished:
        raise UserError(f"no unfinished run in {RUNS_DIR}", "name the run's directory with --output DIR --resume")
    return max(unfinished, key=lambda path: (path / PROGRESS).stat().st_mtime)


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-").lower()


def local_settings(options: RunOptions, model: LocalModel) -> dict[str, Any]:
    """Return what decides the results of a model on this machine."""
    return {
        "model": model.fingerprint,
        "backend": options.backend,
        "backend-arg": sorted(options.backend_args),
        "execution": pick_execution(BACKENDS[options.backend], options.execution),
        "dtype": options.dtype,
        "batch-tokens": options.batch_tokens,
    }


def run_settings(
    options: RunOptions,
    model: Mapping[str, Any],
    chosen: list[ChosenTask],
    splits: dict[str, Split],
    foreign: ForeignTasks | None,
) -> dict[str, Any]:
    """Return everything that decides a run's results. A resumed run must have the same.

    Args:
        options: Of the run.
        model: What decides the results of its model.
        chosen: Tasks of ours.
        splits: Their documents.
        foreign: Tasks of lm-eval's.
    """
    return {
        **model,
        "data": {task: split.fingerprint for task, split in splits.items()},
        "tasks": {task.file.full_name: task.prompt for task in chosen},
        "task files": _hash_task_files(chosen),
        "lm-eval tasks": foreign.settings() if foreign else {},
        "split": options.split,
        "limit": options.limit,
        "num-fewshot": options.num_fewshot,
        "system-instruction": options.system_instruction,
        "apply-chat-template": options.apply_chat_template,
        "seed": options.seed,
        "versions": {name: version for name, version in provenance.versions().items() if name != "rsg-harness"},
    }


def _hash_task_files(chosen: list[ChosenTask]) -> str:
    digest = hashlib.sha256((TASK_DIR / "functions.py").read_bytes())
    for task in chosen:
        digest.update(file_hash(task.file.path).encode())
    return digest.hexdigest()


def settings_hash(settings: dict[str, Any]) -> str:
    """Return the SHA-256 that a record keeps of the settings it was made with."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def finished_record(directory: Path, settings: dict[str, Any]) -> RunRecord | None:
    """Return the record of a run that is already finished; None where there is none yet.

    Raises:
        UserError: It was made with other settings.
    """
    if not (directory / RESULTS).exists():
        return None
    record = read_run(directory)
    if record.settings_sha256 != settings_hash(settings):
        raise UserError(f"{directory} holds a finished run with other settings", "name another --output")
    return record
