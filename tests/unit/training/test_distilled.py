"""Distillations as training reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.data import cached_split
from harness.distillation.lines import AnswerFile, Line, document_hash, document_name
from harness.errors import UserError
from harness.training.distilled import numbered, read_distilled, soft_targets
from tests.unit.distillation.test_lines import document_line, label_line

PARAGRAPH = [
    {
        "paragraph": "П",
        "question": "В?",
        "answer": text,
        "idx": {"paragraph": 0, "question": 2, "answer": n},
        "label": 0,
    }
    for n, text in enumerate(("один", "два", "три"))
]


def written(directory: Path, *lines: Line) -> Path:
    with AnswerFile(directory, {}, resume=False) as file:
        for line in lines:
            file.append(line)
    return directory


def labelled(row: dict[str, Any], probabilities: list[float] | None, task: str = "muserc") -> Line:
    return label_line(
        document_name(task, row["idx"]), task=task, idx=row["idx"], document_sha256=document_hash(row),
        probabilities=probabilities,
    )  # fmt: skip


def test_each_row_of_a_paragraph_has_a_label_of_its_own(tmp_path: Path) -> None:
    data = read_distilled([written(tmp_path, labelled(PARAGRAPH[0], [0.25, 0.75]), labelled(PARAGRAPH[2], [1, 0]))])
    soft, stale = soft_targets(data, "muserc", PARAGRAPH, np.array([0, 0, 1, 1, 2, 2]))
    assert (soft.tolist(), stale) == ([0.25, 0.75, 0, 0, 1, 0], 0)
    assert soft.dtype == np.float32


def test_a_document_that_the_teacher_did_not_see_has_no_label(tmp_path: Path) -> None:
    data = read_distilled([written(tmp_path, *(labelled(row, [0.5, 0.5]) for row in PARAGRAPH))])
    changed = [{**PARAGRAPH[0], "question": "Другой?"}, *PARAGRAPH[1:]]
    soft, stale = soft_targets(data, "muserc", changed, np.array([0, 0, 1, 1, 2, 2]))
    assert (soft.tolist(), stale) == ([0, 0, 0.5, 0.5, 0.5, 0.5], 1)
    # Other choices than the teacher had.
    assert soft_targets(data, "muserc", PARAGRAPH[:1], np.array([0, 0, 0])) == (pytest.approx(np.zeros(3)), 1)
    assert soft_targets(data, "terra", PARAGRAPH, np.array([0, 0, 1, 1, 2, 2]))[1] == 0


def test_an_unanswered_question_has_no_label(tmp_path: Path) -> None:
    data = read_distilled([written(tmp_path, labelled(PARAGRAPH[0], None), labelled(PARAGRAPH[1], [0, 1]))])
    assert data.record()["soft labels"] == {"muserc": 1}
    assert soft_targets(data, "muserc", PARAGRAPH[:1], np.array([0, 0]))[0].tolist() == [0, 0]


def test_the_fingerprint_follows_the_lines_and_not_their_order(tmp_path: Path) -> None:
    lines = [labelled(row, [0.5, 0.5]) for row in PARAGRAPH]
    one = read_distilled([written(tmp_path / "one", *lines)])
    other = read_distilled([written(tmp_path / "other", *reversed(lines))])
    fewer = read_distilled([written(tmp_path / "fewer", *lines[:2])])
    assert one.fingerprint == other.fingerprint != fewer.fingerprint


def test_written_documents_are_kept_in_the_schema_and_numbered(tmp_path: Path) -> None:
    row = cached_split("rcb", "train", "mini").documents[0].row()
    kept = document_line("a", row, None).model_copy(update={"task": "rcb"})
    dropped = document_line("b").model_copy(update={"task": "rcb"})
    data = read_distilled([written(tmp_path / "good", kept, dropped)])
    assert data.documents == {"rcb": [row]}
    assert numbered([*data.documents["rcb"], row]) == [{**row, "idx": 0}, {**row, "idx": 1}]
    bad = document_line("a", {**row, "label": 7}, None).model_copy(update={"task": "rcb"})
    with pytest.raises(UserError, match="does not fit rcb"):
        read_distilled([written(tmp_path / "bad", bad)])


def test_what_cannot_be_trained_on_is_refused(tmp_path: Path) -> None:
    one = written(tmp_path / "one", labelled(PARAGRAPH[0], [0.5, 0.5]))
    other = written(tmp_path / "other", labelled(PARAGRAPH[0], [0.1, 0.9]))
    for directories, message in (
        ([tmp_path], "holds no settings.json"),
        ([written(tmp_path / "empty")], "holds no answers"),
        ([one, other], "labels muserc/0-2-0 once more"),
    ):
        with pytest.raises(UserError, match=message):
            read_distilled(directories)
