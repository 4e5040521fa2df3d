"""What a distillation leaves: settings.json, and answers.jsonl, a line an item, which is appended and never changed."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from harness.data.jsonlines import read_objects
from harness.errors import UserError
from harness.files import write_atomically
from harness.settings import check_same_settings

SETTINGS = "settings.json"
ANSWERS = "answers.jsonl"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Sampling(_Part):
    """How the teacher was asked."""

    api: Literal["chat", "completions"]
    temperature: float
    max_tokens: int
    samples: int
    seed: int  # of the first sample; each one after it has the next
    top_logprobs: int  # most probable tokens asked for at each position; 0: none


class Usage(_Part):
    """What an item cost, as the server counted; 0 where it does not."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
        )


class _Line(_Part):
    key: str  # unique in the file
    task: str
    idx: Any  # of the train document that was asked about, or shown
    document_sha256: str
    prompt_sha256: str
    teacher: str
    sampling: Sampling
    usage: Usage
    cut: bool  # an answer of it ended at max_tokens


class LabelLine(_Line):
    """A train document with the teacher's label.

    `probabilities` stand in the order of the task's labels (RuCoS: of the document's entities) and sum to 1; None where
    the answer names no choice. `rest` is the probability of all that is no choice, where the server tells.
    """

    kind: Literal["label"] = "label"
    gold: int | list[int]  # class index; RuCoS: numbers of the right entities
    probabilities: list[float] | None
    how: Literal["logprobs", "text", "samples"] | None
    rest: float | None = None
    outcome: Literal["answered", "refused", "unparsable"]
    texts: list[str]
    rationale: str | None = None


class DocumentLine(_Line):
    """A document that the teacher wrote: `document` is a row of the task's schema, or None where it was dropped."""

    kind: Literal["paraphrases", "examples"]
    document: dict[str, Any] | None
    dropped: str | None  # why


Line = LabelLine | DocumentLine
_LINE: TypeAdapter[Line] = TypeAdapter(Annotated[Line, Field(discriminator="kind")])


def document_hash(row: Mapping[str, Any]) -> str:
    """SHA-256 of a canonical document, by which its soft label is known to be still its own."""
    return hashlib.sha256(json.dumps(row, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def document_name(task: str, idx: Any) -> str:
    """A document's name across tasks: terra/12, muserc/0-3-17."""
    return f"{task}/{'-'.join(map(str, idx.values())) if isinstance(idx, Mapping) else idx}"


def read_settings(directory: Path) -> dict[str, Any]:
    """What a distillation was asked to do.

    Raises:
        UserError: the directory holds none, or the file is damaged.
    """
    path = directory / SETTINGS
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{directory} holds no {SETTINGS}", "name the --output of rsg-harness distill") from error
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}", "distil to another --output") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path} holds no settings", "distil to another --output")
    return settings


def read_lines(directory: Path) -> Iterator[Line]:
    """All whole lines of a distillation.

    A last line without its end, as a kill leaves it, was never counted as answered and is passed over.

    Raises:
        UserError: a damaged line, which is named.
    """
    path = directory / ANSWERS
    if not path.exists() or _whole_bytes(path) == 0:
        return
    torn = _whole_bytes(path) < path.stat().st_size
    lines = path.read_bytes().count(b"\n") if torn else None
    for number, values in read_objects(path):
        yield _parsed(values, f"{path}:{number}")
        if number == lines:
            return


def _parsed(values: dict[str, Any], place: str) -> Line:
    try:
        return _LINE.validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{place} is damaged: {where}: {first['msg'].lower()}", "delete the line: --resume asks it again"
        ) from error


def _whole_bytes(path: Path) -> int:
    """Bytes up to the end of the last whole line."""
    with path.open("rb") as file:
        position = file.seek(0, os.SEEK_END)
        while position:
            start = max(0, position - 65536)
            file.seek(start)
            newline = file.read(position - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            position = start
    return 0


class AnswerFile:
    """The open answers of a distillation. Use as a context manager.

    A line is written by one call and belongs to the system from then on, so a killed process loses none of them. One
    process at a time has the file.

    Args:
        directory: made if missing.
        settings: what decides the answers; a resumed distillation must have the same.
        resume: whether to go on with what is there.

    Raises:
        UserError: the directory holds something else, or a distillation with other settings, or cannot be written.
    """

    def __init__(self, directory: Path, settings: dict[str, Any], resume: bool) -> None:
        self._path = directory / ANSWERS
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if not (directory / SETTINGS).exists() and any(directory.iterdir()):
                raise UserError(f"{directory} is not empty, and holds no distillation", "name another --output")
            self._file = self._path.open("ab", buffering=0)
        except OSError as error:
            raise UserError(f"cannot write to {directory}: {error.strerror}", "name another --output") from error
        try:
            self._start(directory, settings, resume)
        except BaseException:
            self._file.close()
            raise

    def _start(self, directory: Path, settings: dict[str, Any], resume: bool) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is writing to {directory}", "wait for it, or end it") from error
        whole = _whole_bytes(self._path)
        if whole:
            _agree(directory, settings, resume)
        else:  # nothing was answered yet, so whatever was asked may be asked otherwise
            write_atomically(directory / SETTINGS, json.dumps(settings, ensure_ascii=False, indent=2) + "\n")
        self._file.truncate(whole)

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.fsync(self._file.fileno())
        self._file.close()

    def append(self, line: Line) -> None:
        content = line.model_dump_json().encode() + b"\n"
        try:
            written = self._file.write(content)
        except OSError as error:
            raise UserError(
                f"cannot write {self._path}: {error.strerror}", "free some space and go on with --resume"
            ) from error
        if written != len(content):  # the disk is full: the torn line is cut off by --resume
            raise UserError(f"cannot write {self._path}: no space left", "free some space and go on with --resume")


def _agree(directory: Path, settings: dict[str, Any], resume: bool) -> None:
    if not resume:
        raise UserError(f"{directory} holds a distillation", "go on with --resume, or name another --output")
    hint = "repeat its settings, or name another --output"
    check_same_settings(directory, read_settings(directory), settings, hint)
