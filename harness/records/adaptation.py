"""The record of an adapted vocabulary: adaptation.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.records.base import Record, read_record, write_record

SCHEMA_VERSION = 1
ADAPTATION = "adaptation.json"


class PretrainingRecord(Record):
    """How long and how fast the model was trained on; a step is one batch."""

    row_steps: int  # in which only the new tokens' rows learn
    lora_steps: int  # after them, in which LoRA learns too
    batch_tokens: int
    sequence_tokens: int
    row_learning_rate: float
    lora_learning_rate: float
    max_gradient_norm: float
    seed: int


class AdaptationSettings(Record):
    """Everything that decides an adaptation; a resumed one must have the same."""

    model: str  # fingerprint
    corpora: dict[str, str]  # name -> fingerprint
    new_tokens: int
    prune: bool
    min_count: int
    training: PretrainingRecord


class TextMetrics(Record):
    """A model's metrics on some texts. Words are what white space separates."""

    bits_per_character: float  # −log2 of the texts' probability over their characters
    tokens_per_word: float
    characters_per_second: float  # scored, on the machine of the record


class HeldOutRecord(Record):
    """Metrics on held-out texts of the first corpus. `before_training`: None without continued pre-training."""

    before: TextMetrics
    before_training: TextMetrics | None
    after: TextMetrics


class BaseModelRecord(Record):
    name: str  # as the user named it
    origin: str


class RowsRecord(Record):
    """Rows of the vocabulary matrix."""

    before: int
    kept: int
    new: int


class BytesRecord(Record):
    before: int
    after: int


class AdaptationRecord(AdaptationSettings):
    """adaptation.json."""

    schema_version: int = SCHEMA_VERSION
    base_model: BaseModelRecord
    rows: RowsRecord
    weights_bytes: BytesRecord
    held_out: HeldOutRecord
    versions: dict[str, str]
    machine: dict[str, Any]
    git_commit: str | None
    command: str


def write_adaptation(directory: Path, record: AdaptationRecord) -> None:
    """Write adaptation.json into the directory of the adapted model."""
    write_record(directory / ADAPTATION, record)


def read_adaptation(directory: Path) -> AdaptationRecord:
    """Return the record of an adapted model.

    Raises:
        UserError: The directory holds none, or it is damaged.
    """
    return read_record(
        directory / ADAPTATION,
        AdaptationRecord,
        version=SCHEMA_VERSION,
        missing="name a directory that rsg-harness adapt wrote",
        hint="copy the model again",
    )
