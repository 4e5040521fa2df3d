"""Official Russian SuperGLUE v1.1 files: <TASK>/{train,val,test}.jsonl, LiDiRus/LiDiRus.jsonl."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from harness.data.jsonlines import read_objects
from harness.data.unique import with_unique_idx
from harness.errors import UserError
from harness.tasks.document import HIDDEN_LABEL, Document, DocumentFault, LabelError, Row, describe
from harness.tasks.task import Task


def load_official(task: Task, split: str, root: Path) -> tuple[Document, ...]:
    """Return the documents of one split.

    Args:
        task: The task.
        split: One of its splits.
        root: The directory of the unpacked archive.

    Raises:
        UserError: A directory or file is missing or damaged; the message names the file and the line.
    """
    path = _split_path(task, split, root)
    documents = tuple(with_unique_idx(_documents(task, path, split in task.hidden)))
    if not documents:
        raise UserError(f"{path} holds no examples", "unpack the archive again")
    return documents


def _documents(task: Task, path: Path, hidden: bool) -> Iterator[tuple[str, Document]]:
    """Yield the documents of a file with their lines; where the split's labels are hidden, they may be absent."""
    for number, line in read_objects(path):
        try:
            for row in task.read(line):
                yield f"{path}:{number}", task.parse(_with_answer(task, row, hidden))
        except ValidationError as error:
            raise UserError(f"{path}:{number}: {describe(error)}") from error
        except (DocumentFault, LabelError) as error:
            raise UserError(f"{path}:{number}: {error}") from error


def _with_answer(task: Task, row: Row, hidden: bool) -> Row:
    """Return the row with its label as a class index, or with its right choices."""
    name = task.answers or "label"
    if name not in row:
        if not hidden:
            raise DocumentFault(f'no field "{name}"')
        return row | {name: () if task.answers else HIDDEN_LABEL}
    return row if task.answers else row | {"label": task.label_index(row["label"])}


def _split_path(task: Task, split: str, root: Path) -> Path:
    """Return the split's file, which exists."""
    name = task.files[split]
    directory = root / task.title
    path = directory / name
    if path.is_file():
        return path
    if directory.is_dir():
        raise UserError(f"no file {path}", _found(directory, name) or _parquet_hint(root, task.name))
    if not root.is_dir():
        raise UserError(
            f"{root} is not a directory" if root.exists() else f"no directory {root}",
            f"expected the unpacked official archive with {directory.name}/{name}",
        )
    raise UserError(
        f"no directory {directory}",
        _elsewhere(root, directory.name)
        or _parquet_hint(root, task.name)
        or f"expected {directory.name}/{name} in {root}; {_found(root, directory.name) or 'it is empty'}",
    )


def _elsewhere(root: Path, wanted: str) -> str:
    """Hint at the right root where the user named the directory above or below it."""
    if root.resolve().name == wanted:
        return f"name the directory above it: {root.parent}"
    below = sorted(child for child in root.iterdir() if (child / wanted).is_dir())
    return f"did you mean {below[0]}?" if below else ""


def _parquet_hint(root: Path, task: str) -> str:
    if any((root / task).glob("*/*.parquet")):
        return f"it holds the hub's parquet files: say hub:{root}"
    return ""


def _found(directory: Path, wanted: str) -> str:
    """Hint at the names in the directory nearest to the wanted one, or at some of them."""
    names = sorted(child.name for child in directory.iterdir())
    near = difflib.get_close_matches(wanted, names, n=3)
    return f"found there: {', '.join(near or names[:5])}" if names else ""
