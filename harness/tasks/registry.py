"""Which tasks there are: the nine of Russian SuperGLUE, and those that a user adds."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from harness.errors import UserError, nearest_hint
from harness.tasks import danetqa, lidirus, muserc, parus, rcb, rucos, russe, rwsd, terra
from harness.tasks.task import Task

_MODULES = (lidirus, rcb, parus, muserc, terra, russe, rwsd, danetqa, rucos)
_tasks: dict[str, Task] = {module.TASK.name: module.TASK for module in _MODULES}
_directories: list[Path] = []

# Names of the nine, in the order of the official tables.
RUSSIAN_SUPERGLUE: tuple[str, ...] = tuple(_tasks)


def get_task(name: str) -> Task:
    """Return the task of this name.

    Raises:
        UserError: There is none; the nearest names are the hint.
    """
    if name not in _tasks:
        raise UserError(f"no task {name!r}", nearest_hint(name, _tasks, "tasks"))
    return _tasks[name]


def task_names() -> tuple[str, ...]:
    """Return the names of all tasks, the nine first."""
    return tuple(_tasks)


def trainable_tasks() -> tuple[str, ...]:
    """Return the names of the nine tasks without those that are test sets."""
    return tuple(name for name in RUSSIAN_SUPERGLUE if _tasks[name].is_trainable)


def register(task: Task) -> Task:
    """Add a task, and return it.

    Raises:
        UserError: One of the nine has this name.
    """
    if task.name in RUSSIAN_SUPERGLUE:
        raise UserError(f"the task {task.name} exists already", "give your task another name")
    _tasks[task.name] = task
    return task


def include(directory: Path) -> None:
    """Add the tasks of a directory: YAML task files, and Python files that call `register`.

    Other Python files are left to the YAML files of lm-eval that name functions of theirs.

    Raises:
        UserError: No such directory, or a Python file that cannot be loaded.
    """
    directory = directory.expanduser().resolve()
    if not directory.is_dir():
        raise UserError(f"no directory {directory}", "name the directory that holds your task's .yaml and .py")
    if directory in _directories:
        return
    _directories.append(directory)  # first, since a file may include its own directory
    try:
        for path in sorted(directory.glob("*.py")):
            if b"harness.tasks" in path.read_bytes() and b"register(" in path.read_bytes():
                _load(path)
    except UserError:
        _directories.remove(directory)
        raise


def _load(path: Path) -> None:
    spec = importlib.util.spec_from_file_location(f"included_tasks_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    try:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} cannot be loaded: {type(error).__name__}: {error}", "fix the file") from error


def included_directories() -> tuple[Path, ...]:
    """Return the directories that `include` has added."""
    return tuple(_directories)
