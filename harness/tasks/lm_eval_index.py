"""An index of lm-eval's own tasks, kept in the cache by lm-eval's version.

lm-eval reads all of its 14,000 task files, for some ten seconds, before it loads one. With the index, naming a task
takes no time: the manager is given entries that know their file.
"""

from __future__ import annotations

import fnmatch
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.files import cache_dir, write_atomically

log = logging.getLogger(__name__)

# Russian letters as they are usually written in names: мера is mera.
_LATIN = str.maketrans(
    {
        "а": "a", "б": "b", "в": "v", "г": "g", "д": "d", "е": "e", "ё": "e", "ж": "zh", "з": "z", "и": "i", "й": "i",
        "к": "k", "л": "l", "м": "m", "н": "n", "о": "o", "п": "p", "р": "r", "с": "s", "т": "t", "у": "u", "ф": "f",
        "х": "kh", "ц": "ts", "ч": "ch", "ш": "sh", "щ": "shch", "ъ": "", "ы": "y", "ь": "", "э": "e", "ю": "yu",
        "я": "ya",
    }
)  # fmt: skip


@dataclass(frozen=True)
class IndexedTask:
    """A name that lm-eval knows.

    Attributes:
        name: As `--tasks` takes it.
        kind: "task", "py_task" (in Python), "group" or "tag".
        path: Its file, relative to lm-eval's tasks; None for a tag.
        tags: Of a task; of a tag, the tasks that have it.
    """

    name: str
    kind: str
    path: str | None
    tags: tuple[str, ...]


def lm_eval_tasks() -> dict[str, IndexedTask]:
    """Return everything that lm-eval knows by name; the first call of a version of lm-eval reads all its files."""
    path = cache_dir() / "lm-eval" / f"tasks-{metadata.version('lm_eval')}.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        log.info("indexing lm-eval's tasks, once")
        found = _read_all()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(found))
        except (OSError, UserError) as error:  # it works without a cache, only slower
            log.warning("the index is not kept: %s", error)
    return {name: IndexedTask(name, kind, file, tuple(tags)) for name, (kind, file, tags) in found.items()}


def _root() -> Path:
    import lm_eval.tasks

    return Path(lm_eval.tasks.__file__).parent


def _read_all() -> dict[str, tuple[str, str | None, list[str]]]:
    from lm_eval.tasks._index import TaskIndex

    root = _root()
    return {
        name: (
            entry.kind.name.lower(),
            None if entry.yaml_path is None else entry.yaml_path.relative_to(root).as_posix(),
            sorted(entry.tags),
        )
        for name, entry in TaskIndex.build([root]).items()
    }


def task_manager(directories: Sequence[Path]) -> Any:
    """Return lm-eval's TaskManager with its own tasks and those of the user's directories, which come first."""
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._index import Entry, Kind

    root = _root()
    manager = TaskManager(include_path=[str(directory) for directory in directories], include_defaults=False)
    for name, task in lm_eval_tasks().items():
        path = None if task.path is None else root / task.path
        manager.task_index.setdefault(name, Entry(name, Kind[task.kind.upper()], path, tags=set(task.tags)))
    return manager


def matching(names: Sequence[str], known: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the known names that these names or patterns (mmlu_*) mean, and those that mean nothing."""
    found: dict[str, None] = {}
    unknown = []
    for name in names:
        meant = [name] if name in known else fnmatch.filter(known, name)
        found |= dict.fromkeys(sorted(meant))
        if not meant:
            unknown.append(name)
    return list(found), unknown


def search(tasks: Mapping[str, IndexedTask], text: str) -> list[IndexedTask]:
    """Return the tasks whose name or directory holds a text, in Latin or Cyrillic letters; the nearest names first."""
    wanted = {text.lower(), text.lower().translate(_LATIN)}

    def place(task: IndexedTask) -> tuple[Any, ...] | None:
        in_name = [task.name.lower().find(one) for one in wanted if one in task.name.lower()]
        if in_name:
            return (0, min(in_name), len(task.name), task.name)
        folder = (task.path or "").rpartition("/")[0].lower()
        return (1, 0, len(task.name), task.name) if any(one in folder for one in wanted) else None

    placed = {task.name: found for task in tasks.values() if (found := place(task)) is not None}
    return [tasks[name] for name in sorted(placed, key=lambda name: placed[name])]
