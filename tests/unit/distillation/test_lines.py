"""The lines of a distillation: what is whole stays, what is torn goes, what differs is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.distillation.lines import (
    ANSWERS,
    AnswerFile,
    DocumentLine,
    LabelLine,
    Line,
    TeacherSampling,
    Usage,
    document_hash,
    document_name,
    read_lines,
)
from harness.errors import UserError
from harness.settings import SETTINGS

SAMPLING = TeacherSampling(api="chat", temperature=0, max_tokens=24, samples=1, seed=1, top_logprobs=20)
COMMON: dict[str, Any] = {
    "task": "terra", "idx": 0, "document_sha256": "d", "prompt_sha256": "p", "teacher": "t", "sampling": SAMPLING,
    "usage": Usage(prompt_tokens=3, completion_tokens=1), "cut": False,
}  # fmt: skip


def label_line(key: str, text: str = "да", **changes: Any) -> LabelLine:
    values = {**COMMON, "gold": 0, "probabilities": [0.25, 0.75], "how": "logprobs", "rest": 0.1, "outcome": "answered"}
    return LabelLine(**{**values, "key": key, "texts": [text], **changes})


def document_line(key: str, document: dict[str, Any] | None = None, dropped: str | None = "invalid JSON") -> Line:
    return DocumentLine(**COMMON, key=key, kind="examples", document=document, dropped=dropped)


def refused(directory: Path, settings: dict[str, Any], resume: bool) -> str:
    with pytest.raises(UserError) as caught, AnswerFile(directory, settings, resume):
        pass
    return caught.value.message


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_line_comes_back_whatever_the_teacher_said(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    directory = tmp_path_factory.mktemp("lines")
    lines: list[Line] = [label_line("a", text), document_line("b"), document_line("c", {"text": text}, None)]
    with AnswerFile(directory, {}, resume=False) as file:
        for line in lines:
            file.append(line)
    assert list(read_lines(directory)) == lines


def test_every_cut_of_the_file_keeps_its_whole_lines_and_takes_new_ones(tmp_path: Path) -> None:
    with AnswerFile(tmp_path / "whole", {}, resume=False) as file:
        for key in "abc":
            file.append(label_line(key, "да" * 40))
    content = (tmp_path / "whole" / ANSWERS).read_bytes()
    for length in range(0, len(content), 37):
        directory = tmp_path / str(length)
        directory.mkdir()
        (directory / SETTINGS).write_text("{}")
        (directory / ANSWERS).write_bytes(content[:length])
        kept = content[:length].count(b"\n")
        assert [line.key for line in read_lines(directory)] == list("abc")[:kept]
        with AnswerFile(directory, {}, resume=True) as file:
            file.append(label_line("new"))
        assert [line.key for line in read_lines(directory)] == [*list("abc")[:kept], "new"]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    with AnswerFile(tmp_path, {}, resume=False) as file:
        file.append(label_line("a"))
    path = tmp_path / ANSWERS
    path.write_bytes(path.read_bytes() + b'{"kind": "label"}\n')
    with pytest.raises(UserError, match=r"answers\.jsonl:2 is damaged: label\.key: field required"):
        list(read_lines(tmp_path))
    path.write_bytes(b"what\n" + path.read_bytes())
    with pytest.raises(UserError, match=r"answers\.jsonl:1"):
        list(read_lines(tmp_path))


def test_a_distillation_goes_on_only_when_told_to_and_with_its_own_settings(tmp_path: Path) -> None:
    settings = {"teacher": "one", "sampling": {"temperature": 0.0}}
    with AnswerFile(tmp_path, settings, resume=False) as file:
        file.append(label_line("a"))
    assert "holds a distillation" in refused(tmp_path, settings, resume=False)
    other = {"teacher": "one", "sampling": {"temperature": 0.7}}
    assert "sampling.temperature (0.0, now 0.7)" in refused(tmp_path, other, resume=True)
    with AnswerFile(tmp_path, settings, resume=True) as file:
        file.append(label_line("b"))
    assert [line.key for line in read_lines(tmp_path)] == ["a", "b"]


def test_a_start_that_got_no_answer_stands_in_nobodys_way(tmp_path: Path) -> None:
    with AnswerFile(tmp_path, {"teacher": "misspelt"}, resume=False):
        pass
    with AnswerFile(tmp_path, {"teacher": "right"}, resume=False) as file:
        file.append(label_line("a"))
    assert json.loads((tmp_path / SETTINGS).read_text()) == {"teacher": "right"}


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert "is not empty" in refused(tmp_path, {}, resume=False)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_two_processes_do_not_write_at_once(tmp_path: Path) -> None:
    with AnswerFile(tmp_path, {}, resume=False):
        assert "another process is writing" in refused(tmp_path, {}, resume=True)
    with AnswerFile(tmp_path, {}, resume=True):
        pass


def test_a_place_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot write" in refused(tmp_path / "file" / "out", {}, resume=False)


def test_names_and_hashes_of_documents() -> None:
    assert document_name("terra", 12) == "terra/12"
    assert document_name("muserc", {"paragraph": 0, "question": 3, "answer": 17}) == "muserc/0-3-17"
    assert document_hash({"b": 1, "a": "я"}) == document_hash({"a": "я", "b": 1}) != document_hash({"a": "ю", "b": 1})
