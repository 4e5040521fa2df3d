"""Official Russian SuperGLUE v1.1 files: <TASK>/{train,val,test}.jsonl, LiDiRus/LiDiRus.jsonl."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from harness.data.canonical import canonical, describe
from harness.data.jsonlines import read_objects
from harness.data.labels import LabelError, official_label
from harness.data.schema import HIDDEN_LABEL, Document, Frozen, Index, Offset
from harness.errors import UserError

DIRECTORIES = MappingProxyType(
    {
        "lidirus": "LiDiRus",
        "rcb": "RCB",
        "parus": "PARus",
        "muserc": "MuSeRC",
        "terra": "TERRa",
        "russe": "RUSSE",
        "rwsd": "RWSD",
        "danetqa": "DaNetQA",
        "rucos": "RuCoS",
    }
)
_FILES = MappingProxyType({"train": "train.jsonl", "validation": "val.jsonl", "test": "test.jsonl"})

Row = dict[str, Any]


def load_official(task: str, split: str, root: Path) -> tuple[Document, ...]:
    """The documents of one split.

    Args:
        task: one of `TASKS`.
        split: "train", "validation" or "test"; LiDiRus has one file for whichever.
        root: the directory of the unpacked archive.

    Raises:
        UserError: a directory or file is missing or damaged; the message names the file and the line.
    """
    path = _split_path(task, split, root)
    hidden = split == "test" and task != "lidirus"
    documents = tuple(_documents(task, path, hidden))
    if not documents:
        raise UserError(f"{path} holds no examples", "unpack the archive again")
    return documents


def _documents(task: str, path: Path, hidden: bool) -> Iterator[Document]:
    """`hidden`: labels may be absent."""
    flatten = _FLATTEN.get(task, _as_it_is)
    for number, line in read_objects(path):
        try:
            for row in flatten(line):
                yield canonical(task, _with_answer(task, row, hidden))
        except ValidationError as error:
            raise UserError(f"{path}:{number}: {describe(error)}") from error
        except _Fault as error:
            raise UserError(f"{path}:{number}: {error}") from error
        except LabelError as error:
            raise UserError(f"{path}:{number}: {error}") from error


class _Fault(ValueError):
    """A fault in a line that is neither a type nor a label."""


def _with_answer(task: str, row: Row, hidden: bool) -> Row:
    """The row with its label as a class index."""
    name = "answers" if task == "rucos" else "label"
    if name not in row:
        if not hidden:
            raise _Fault(f'no field "{name}"')
        return row | {name: () if task == "rucos" else HIDDEN_LABEL}
    return row if task == "rucos" else row | {"label": official_label(task, row["label"])}


# --- from a line to rows -------------------------------------------------------------------------------------------


def _as_it_is(line: Row) -> Iterator[Row]:
    yield line


def _flatten_rcb(line: Row) -> Iterator[Row]:
    # Two train rows have their negation under this key.
    yield {"negation": line.get("no_negation", ""), **line}


class _Target(Frozen):
    span1_text: str
    span2_text: str
    span1_index: int
    span2_index: int


class _WinogradLine(Frozen):
    target: _Target


def _flatten_rwsd(line: Row) -> Iterator[Row]:
    yield line | _WinogradLine.model_validate(line).target.model_dump()


class _Answer(Frozen):
    text: str
    idx: Index
    label: Any = None


class _Question(Frozen):
    question: str
    idx: Index
    answers: list[_Answer]


class _Paragraph(Frozen):
    text: str
    questions: list[_Question]


class _ParagraphLine(Frozen):
    idx: Index
    passage: _Paragraph


def _flatten_muserc(line: Row) -> Iterator[Row]:
    parsed = _ParagraphLine.model_validate(line)
    for question in parsed.passage.questions:
        for answer in question.answers:
            row: Row = {
                "paragraph": parsed.passage.text,
                "question": question.question,
                "answer": answer.text,
                "idx": {"paragraph": parsed.idx, "question": question.idx, "answer": answer.idx},
            }
            if "label" in answer.model_fields_set:
                row["label"] = answer.label
            yield row


class _Entity(Frozen):
    start: Offset
    end: Offset  # exclusive


class _Passage(Frozen):
    text: str
    entities: list[_Entity]


class _GoldAnswer(Frozen):
    text: str


class _Query(Frozen):
    query: str
    idx: Index
    answers: list[_GoldAnswer] | None = None


class _PassageLine(Frozen):
    idx: Index
    passage: _Passage
    qas: list[_Query]


def _flatten_rucos(line: Row) -> Iterator[Row]:
    parsed = _PassageLine.model_validate(line)
    text = parsed.passage.text
    for entity in parsed.passage.entities:
        if not entity.start < entity.end <= len(text):
            raise _Fault(f"entity {entity.start}–{entity.end} is no span of a passage of {len(text)} characters")
    entities = tuple(text[entity.start : entity.end] for entity in parsed.passage.entities)
    for query in parsed.qas:
        row: Row = {
            "passage": text,
            "query": query.query,
            "entities": entities,
            "idx": {"passage": parsed.idx, "query": query.idx},
        }
        if query.answers is not None:
            row["answers"] = tuple(answer.text for answer in query.answers)
        yield row


_FLATTEN: dict[str, Callable[[Row], Iterator[Row]]] = {
    "rcb": _flatten_rcb,
    "rwsd": _flatten_rwsd,
    "muserc": _flatten_muserc,
    "rucos": _flatten_rucos,
}


# --- finding the file ----------------------------------------------------------------------------------------------


def _split_path(task: str, split: str, root: Path) -> Path:
    """The split's file, known to exist."""
    name = "LiDiRus.jsonl" if task == "lidirus" else _FILES[split]
    directory = root / DIRECTORIES[task]
    path = directory / name
    if path.is_file():
        return path
    if directory.is_dir():
        raise UserError(f"no file {path}", _found(directory, name) or _parquet_hint(root, task))
    if not root.is_dir():
        raise UserError(
            f"{root} is not a directory" if root.exists() else f"no directory {root}",
            f"expected the unpacked official archive with {directory.name}/{name}",
        )
    raise UserError(
        f"no directory {directory}",
        _elsewhere(root, directory.name)
        or _parquet_hint(root, task)
        or f"expected {directory.name}/{name} in {root}; {_found(root, directory.name) or 'it is empty'}",
    )


def _elsewhere(root: Path, wanted: str) -> str:
    """The right root, where the user is one step too high or too low."""
    if root.resolve().name == wanted:
        return f"name the directory above it: {root.parent}"
    below = sorted(child for child in root.iterdir() if (child / wanted).is_dir())
    return f"did you mean {below[0]}?" if below else ""


def _parquet_hint(root: Path, task: str) -> str:
    if any((root / task).glob("*/*.parquet")):
        return f"it holds the hub's parquet files: say hub:{root}"
    return ""


def _found(directory: Path, wanted: str) -> str:
    """The names in the directory that are nearest to the wanted one, or some of them if none is near."""
    names = sorted(child.name for child in directory.iterdir())
    near = difflib.get_close_matches(wanted, names, n=3)
    return f"found there: {', '.join(near or names[:5])}" if names else ""
