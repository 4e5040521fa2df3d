"""The files of a distillation: settings.json, and answers.jsonl, whose lines are appended and never changed."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from harness.data.jsonlines import read_objects
from harness.errors import UserError
from harness.records.base import Record
from harness.settings import SETTINGS, agree_on_settings

ANSWERS = "answers.jsonl"


class TeacherSampling(Record):
    """How the teacher was asked."""

    api: Literal["chat", "completions"]
    temperature: float
    max_tokens: int
    samples: int
    seed: int  # of the first sample; each further sample has the next seed
    top_logprobs: int  # most probable tokens asked for at each position; 0: none


class Usage(Record):
    """Tokens that a question cost, as the server counted them; 0 where it does not."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
        )


class _Line(Record):
    key: str  # unique in the file
    task: str
    idx: Any  # of the train document that was asked about, or shown
    document_sha256: str
    prompt_sha256: str
    teacher: str
    sampling: TeacherSampling
    usage: Usage
    cut: bool  # one of the answers ended at max_tokens


class LabelLine(_Line):
    """A train document with the teacher's label.

    Attributes:
        gold: The class index; for a task whose documents have choices of their own, the numbers of the right ones.
        probabilities: Of the labels or choices in their order, summing to 1; None where the answer names none.
        how: Whether they come from log-probabilities, from one answer's text or from the shares of several answers.
        rest: Probability of everything that is no choice; None where the server does not tell.
        outcome: Whether there is an answer, and if not, why.
        texts: The answers.
        rationale: The explanation before the answer.
    """

    kind: Literal["label"] = "label"
    gold: int | list[int]
    probabilities: list[float] | None
    how: Literal["logprobs", "text", "samples"] | None
    rest: float | None = None
    outcome: Literal["answered", "refused", "unparsable"]
    texts: list[str]
    rationale: str | None = None


class DocumentLine(_Line):
    """A document that the teacher wrote: a row of the task's schema, or the reason why it was dropped."""

    kind: Literal["paraphrases", "examples"]
    document: dict[str, Any] | None
    dropped: str | None


Line = LabelLine | DocumentLine
_LINE: TypeAdapter[Line] = TypeAdapter(Annotated[Line, Field(discriminator="kind")])


def document_hash(row: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a document, by which training knows that a soft label still belongs to it."""
    return hashlib.sha256(json.dumps(row, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def document_name(task: str, idx: Any) -> str:
    """Return a document's name across tasks: terra/12, muserc/0-3-17."""
    return f"{task}/{'-'.join(map(str, idx.values())) if isinstance(idx, Mapping) else idx}"


def read_lines(directory: Path) -> Iterator[Line]:
    """Yield all whole lines of a distillation.

    A last line without its line end, which a kill may leave, is skipped: it was never counted as answered.

    Raises:
        UserError: A line is damaged; the message has its number.
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
    """Return the number of bytes up to the end of the last whole line."""
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

    A line is written by one system call, so a killed process loses none. Only one process at a time can open the file.

    Args:
        directory: Made if missing.
        settings: Everything that decides the answers; a resumed distillation must have the same.
        resume: Whether to continue what is there.

    Raises:
        UserError: The directory holds something else, or a distillation with other settings, or cannot be written.
    """

    def __init__(self, directory: Path, settings: dict[str, Any], resume: bool) -> None:
        self._path = directory / ANSWERS
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if not (directory / SETTINGS).exists() and any(path != self._path for path in directory.iterdir()):
                raise UserError(f"{directory} is not empty and holds no distillation", "name another --output")
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
        if whole and not resume:
            raise UserError(f"{directory} holds a distillation", "continue it with --resume, or name another --output")
        if not whole:  # nothing was answered yet, so the settings may change
            (directory / SETTINGS).unlink(missing_ok=True)
        agree_on_settings(directory, settings, resume=whole > 0, what="distillation")
        self._file.truncate(whole)

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.fsync(self._file.fileno())
        self._file.close()

    def append(self, line: Line) -> None:
        """Write a line.

        Raises:
            UserError: The disk is full.
        """
        content = line.model_dump_json().encode() + b"\n"
        hint = "free some space and continue with --resume"
        try:
            written = self._file.write(content)
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {error.strerror}", hint) from error
        if written != len(content):  # the disk is full; --resume cuts the torn line off
            raise UserError(f"cannot write {self._path}: no space left", hint)
