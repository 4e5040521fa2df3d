"""One split of one task from whichever source the user names, with its fingerprint and what is odd about it."""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.data.hub import load_hub
from harness.data.official import load_official
from harness.errors import UserError, nearest_hint
from harness.tasks import SPLITS, Document, Task, document_key, get_task

MINI_ROOT = Path(__file__).parent / "mini"
WRITTEN_ROOT = Path(__file__).parent / "written"


@dataclass(frozen=True)
class Split:
    """One split as loaded."""

    task: str
    split: str  # "train", "validation", "test"; LiDiRus is always "test"
    source: str  # for the record: "mini", "hub:<path>", the hub's name and commit, or the official directory
    documents: tuple[Document, ...]
    fingerprint: str
    warnings: tuple[str, ...]


def load_split(task: str, split: str, source: str) -> Split:
    """Load a split.

    Args:
        task: The task's name.
        split: One of `SPLITS`. A test set (LiDiRus) has one split, which "validation" reads too.
        source: "mini", "hub", "hub:PATH" (a directory in the hub's parquet layout), the path of an unpacked official
            archive, or "written" (train documents written for this project).

    Raises:
        UserError: An unknown name, or data that are missing or damaged.
    """
    found = get_task(task)
    if split not in SPLITS:
        raise UserError(f"no split {split}", nearest_hint(split, SPLITS, "splits"))
    split = found.split(split)
    documents, description = _load(found, split, source)
    warnings = () if source in ("mini", "written") else _size_warnings(found, split, documents)
    return Split(task, split, description, documents, fingerprint(documents), warnings)


# For callers that need a split more than once in a process; the files are taken not to change meanwhile.
cached_split = functools.lru_cache(maxsize=32)(load_split)


def _load(task: Task, split: str, source: str) -> tuple[tuple[Document, ...], str]:
    if source == "mini":
        if split in task.hidden:
            raise UserError(
                f"the mini set has no test split of {task.name}",
                "use its validation split, or --data hub or the official archive for the test split",
            )
        return load_official(task, split, MINI_ROOT), "mini"
    if source == "written":
        if not (WRITTEN_ROOT / task.title / task.files.get(split, "")).is_file():
            held = sorted(path.name for path in WRITTEN_ROOT.iterdir() if path.is_dir())
            raise UserError(f"no {split} documents of {task.name} are written", f"there are some of {', '.join(held)}")
        return load_official(task, split, WRITTEN_ROOT), "written"
    if source == "hub":
        return load_hub(task, split)
    if source.startswith("hub:"):
        return load_hub(task, split, _directory(source.removeprefix("hub:"), source))
    root = _directory(source, source)
    return load_official(task, split, root), str(root)


def _directory(path: str, source: str) -> Path:
    """Return the path as an existing directory."""
    directory = Path(path).expanduser()
    if path and directory.is_dir():
        return directory
    if path and directory.exists():
        raise UserError(f"the data source {source} is a file", "unpack the archive and name its directory")
    beside = [str(directory.with_name(child.name)) for child in directory.parent.glob("*/")] if path else []
    near = difflib.get_close_matches(source, ["mini", "hub"], n=1) or difflib.get_close_matches(str(directory), beside)
    raise UserError(
        f"no data source {source!r}",
        (f"did you mean {near[0]}? " if near else "")
        + "It is mini, hub, hub:PATH or the path of the unpacked official archive",
    )


def _size_warnings(task: Task, split: str, documents: Sequence[Document]) -> tuple[str, ...]:
    """Return a warning for each count that differs from the published one."""
    counts = [(len(documents), task.sizes.get(split), "answers" if task.clusters else "examples")]
    if task.clusters:
        counts.append((len({document_key(document) for document in documents}), task.clusters[split], "paragraphs"))
    return tuple(
        f"{task.name} {split} has {found} {unit}, the official split {published}: scores are not comparable with "
        "published ones"
        for found, published, unit in counts
        if published is not None and found != published
    )


def fingerprint(documents: Iterable[Document]) -> str:
    """Return the SHA-256 (hex) over the documents, a line of JSON with sorted keys each."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(json.dumps(document.row(), sort_keys=True, ensure_ascii=False).encode("utf-8") + b"\n")
    return digest.hexdigest()
