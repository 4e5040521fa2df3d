"""The record of a divergence: how far a model's next-token distributions move on other backends."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from harness.records.base import Record, read_record, readable, write_record
from harness.records.run import ModelRecord

SCHEMA_VERSION = 1
DIVERGENCE = "divergence.json"
DIVERGENCE_DIR = Path("divergence")  # below the results


class Estimated(Record):
    """A figure with its 95% interval, bootstrapped over the blocks of the corpus."""

    value: float
    interval: tuple[float, float]


class CorpusRecord(Record):
    """The texts. Every token but the first of a block is a position."""

    name: str
    sha256: str
    blocks: int
    characters: int
    positions: int


class BackendDivergence(Record):
    """One backend beside the reference, over all positions; natural logarithms.

    Attributes:
        model: The model as it is stored for this backend.
        backend: Its name, with arguments as --backends takes them.
        execution: What computed.
        dtype: Of the computation.
        bits_per_character: −log₂ of the probability of the texts, over their characters.
        kl: Mean of KL(reference ‖ backend) over the whole vocabulary, nats.
        kl_percentile_99_9: Its 99.9th percentile.
        kl_largest: Its largest value.
        same_best: Share of positions where both find the same token the likeliest.
        probability_rms: Root mean square of the change of the right token's probability.
        lost, gained: Positions where only the reference, only this backend finds the right token the likeliest.
        seconds: Wall time of this backend's passes.
    """

    model: ModelRecord
    backend: str
    execution: str
    device: str
    dtype: str
    bits_per_character: Estimated
    kl: Estimated
    kl_percentile_99_9: float
    kl_largest: float
    same_best: Estimated
    probability_rms: float
    lost: int
    gained: int
    seconds: float


class DivergenceRecord(Record):
    """divergence.json. The first of `backends` is the reference beside itself."""

    schema_version: int = SCHEMA_VERSION
    corpus: CorpusRecord
    backends: tuple[BackendDivergence, ...] = Field(min_length=1)
    seed: int
    date: str  # ISO 8601, UTC
    versions: dict[str, str]
    machine: dict[str, object]
    git_commit: str | None
    command: str


def write_divergence(path: Path, record: DivergenceRecord) -> None:
    """Write the record, whole or not at all.

    Raises:
        UserError: The file cannot be written.
    """
    write_record(path, record)


def read_divergence(path: Path) -> DivergenceRecord:
    """Return a record.

    Raises:
        UserError: There is none, or it is damaged.
    """
    return read_record(path, DivergenceRecord, version=SCHEMA_VERSION, hint="measure it again")


def read_divergences(results: Path) -> dict[str, DivergenceRecord]:
    """Return all records under `results`/divergence by directory; damaged ones are logged and left out."""
    paths = sorted((results / DIVERGENCE_DIR).glob(f"*/{DIVERGENCE}"))
    return {path.parent.name: record for path, record in readable(paths, read_divergence)}
