"""One split of one task from whichever source the user names, with its fingerprint and what is odd about it."""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from harness.data.hub import load_hub
from harness.data.official import load_official
from harness.data.schema import TASKS, Document
from harness.errors import UserError, nearest_hint

SPLITS = ("train", "validation", "test")
MINI_ROOT = Path(__file__).parent / "mini"

# Examples in train, validation, test of version 1.1, as published. MuSeRC: answers; RuCoS: queries.
OFFICIAL_SIZES: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {
        "lidirus": (0, 0, 1104),
        "rcb": (438, 220, 438),
        "parus": (400, 100, 500),
        "muserc": (11950, 2235, 7614),
        "terra": (2616, 307, 3198),
        "russe": (19845, 8505, 18892),
        "rwsd": (606, 204, 154),
        "danetqa": (1749, 821, 805),
        "rucos": (72193, 7577, 7257),
    }
)
OFFICIAL_MUSERC_PARAGRAPHS = (500, 100, 322)


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
    """Loads a split.

    Args:
        task: one of `TASKS`.
        split: one of `SPLITS`. LiDiRus has a test split only, which "validation" reads too.
        source: "mini", "hub", "hub:PATH" (a directory in the hub's parquet layout) or the path of an unpacked official
            archive.

    Raises:
        UserError: an unknown name, or data that are missing or damaged.
    """
    if task not in TASKS:
        raise UserError(f"no task {task}", nearest_hint(task, TASKS, "tasks"))
    if split not in SPLITS:
        raise UserError(f"no split {split}", nearest_hint(split, SPLITS, "splits"))
    if task == "lidirus":
        if split == "train":
            raise UserError(
                "lidirus is a test set and has no train split", "train on other tasks, terra is the nearest"
            )
        split = "test"
    documents, description = _load(task, split, source)
    warnings = () if source == "mini" else _size_warnings(task, split, documents)
    return Split(task, split, description, documents, fingerprint(documents), warnings)


# For callers that need a split more than once in a process; the files are taken not to change meanwhile.
cached_split = functools.lru_cache(maxsize=32)(load_split)


def _load(task: str, split: str, source: str) -> tuple[tuple[Document, ...], str]:
    if source == "mini":
        if split == "test" and task != "lidirus":
            raise UserError(
                f"the mini set has no test split of {task}",
                "use its validation split, or --data hub or the official archive for the test split",
            )
        return load_official(task, split, MINI_ROOT), "mini"
    if source == "hub":
        return load_hub(task, split)
    if source.startswith("hub:"):
        return load_hub(task, split, _directory(source.removeprefix("hub:"), source))
    root = _directory(source, source)
    return load_official(task, split, root), str(root)


def _directory(path: str, source: str) -> Path:
    """The path as an existing directory."""
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


def _size_warnings(task: str, split: str, documents: Sequence[Document]) -> tuple[str, ...]:
    """One warning a figure that is not the published one."""
    position = SPLITS.index(split)
    figures = [(len(documents), OFFICIAL_SIZES[task][position], "answers" if task == "muserc" else "examples")]
    if task == "muserc":
        paragraphs = len({document_key(document) for document in documents})
        figures.append((paragraphs, OFFICIAL_MUSERC_PARAGRAPHS[position], "paragraphs"))
    return tuple(
        f"{task} {split} has {found} {unit}, the official split {published}: figures compare with nobody else's"
        for found, published, unit in figures
        if found != published
    )


def fingerprint(documents: Iterable[Document]) -> str:
    """SHA-256 (hex) over the canonical documents, a line of JSON with sorted keys each."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(json.dumps(document.row(), sort_keys=True, ensure_ascii=False).encode("utf-8") + b"\n")
    return digest.hexdigest()


def document_key(document: Document | Mapping[str, Any]) -> Hashable:
    """What `--limit` counts and resampling keeps together: MuSeRC's paragraph number, elsewhere the row's own idx."""
    idx = (document if isinstance(document, Mapping) else document.model_dump(include={"idx"}))["idx"]
    if not isinstance(idx, Mapping):
        return idx
    return idx["paragraph"] if "paragraph" in idx else (idx["passage"], idx["query"])
