"""Distillations as training reads them: soft labels of train documents, and documents that a teacher wrote."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from harness.distillation.lines import LabelLine, document_hash, document_name, read_lines
from harness.errors import UserError
from harness.settings import read_settings
from harness.tasks import Row, get_task


@dataclass(frozen=True)
class SoftLabel:
    """A teacher's label of the document with this hash."""

    document_sha256: str
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class DistilledData:
    """What some distillations hold.

    Attributes:
        teachers: The models that answered.
        soft: A document's name -> its label.
        documents: Task -> rows that a teacher wrote.
        fingerprint: SHA-256 over all lines, whatever their order.
    """

    teachers: tuple[str, ...]
    soft: Mapping[str, SoftLabel]
    documents: Mapping[str, Sequence[Row]]
    fingerprint: str

    def record(self) -> dict[str, Any]:
        """Return what a resumed training must have in common with the first, and what a checkpoint records."""
        return {
            "fingerprint": self.fingerprint,
            "teachers": list(self.teachers),
            "soft labels": dict(Counter(name.partition("/")[0] for name in self.soft)),
            "documents": {task: len(rows) for task, rows in self.documents.items()},
        }


def read_distilled(directories: Sequence[Path]) -> DistilledData:
    """Read distillations.

    Raises:
        UserError: One is damaged or has no lines, or two label the same document.
    """
    teachers: dict[str, None] = {}
    soft: dict[str, SoftLabel] = {}
    documents: dict[str, list[Row]] = {}
    hashes: list[str] = []
    for directory in directories:
        read_settings(directory)
        before = len(hashes)
        for line in read_lines(directory):
            teachers[line.teacher] = None
            hashes.append(hashlib.sha256(line.model_dump_json().encode()).hexdigest())
            if isinstance(line, LabelLine):
                name = document_name(line.task, line.idx)
                if name in soft:
                    raise UserError(
                        f"{directory} labels {name} once more", "name only one distillation with labels of a task"
                    )
                if line.probabilities is not None:
                    soft[name] = SoftLabel(line.document_sha256, tuple(line.probabilities))
            elif line.document is not None:
                documents.setdefault(line.task, []).append(_checked(line.task, line.document, directory))
        if len(hashes) == before:
            raise UserError(f"{directory} holds no answers", "finish it with rsg-harness distill --resume")
    fingerprint = hashlib.sha256("".join(sorted(hashes)).encode()).hexdigest()
    return DistilledData(tuple(teachers), soft, documents, fingerprint)


def _checked(task: str, row: Row, directory: Path) -> Row:
    """Return a written document by the schema of its task."""
    try:
        return get_task(task).document.model_validate(row).row()
    except (ValidationError, UserError) as error:
        raise UserError(f"{directory}: a written document does not fit {task}", "delete its line") from error


def numbered(rows: Sequence[Row]) -> list[Row]:
    """Return written documents with an idx of their own."""
    return [{**row, "idx": number} for number, row in enumerate(rows)]


def soft_targets(data: DistilledData, task: str, rows: Sequence[Row], questions: np.ndarray) -> tuple[np.ndarray, int]:
    """Return a training example's soft labels.

    Args:
        data: The teacher's labels.
        task: The task's name.
        rows: Of the document, one per question.
        questions: The number of each choice's question, int64 [choices].

    Returns:
        (The teacher's probability of each choice, float32 [choices], zeros in a question without a label;
        number of labels left out because the document is no longer the one that the teacher saw).
    """
    found = np.zeros(len(questions), dtype=np.float32)
    stale = 0
    for number, row in enumerate(rows):
        label = data.soft.get(document_name(task, row["idx"]))
        if label is None:
            continue
        choices = questions == number
        if label.document_sha256 != document_hash(row) or len(label.probabilities) != choices.sum():
            stale += 1
            continue
        found[choices] = label.probabilities
    return found, stale
