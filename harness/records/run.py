"""The record of a run: results.json and samples.jsonl, typed and versioned.

Tables and pages are made from these alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from harness.errors import UserError
from harness.files import write_atomically
from harness.records.base import Record, read_record, write_record

SCHEMA_VERSION = 1
RESULTS = "results.json"
SAMPLES = "samples.jsonl"
ENDPOINT = "endpoint"  # backend and execution of a model behind a server


class MetricRecord(Record):
    """A metric between 0 and 1 (MCC: -1 and 1), its standard error and its 95% interval. None: no known answers."""

    value: float | None
    stderr: float | None
    interval: tuple[float, float] | None = None


class ForeignMetricRecord(MetricRecord):
    """A metric of lm-eval's, of any range. The standard error and the interval are ours."""

    aggregation: str  # lm-eval's name of how documents' values become the metric's: mean, perplexity, …
    higher_is_better: bool | None


class TaskRecord(Record):
    """One task of a run."""

    score: float | None  # the task's part of the Russian SuperGLUE score
    documents: int  # for MuSeRC paragraphs
    examples: int  # what the model answered: for MuSeRC answers
    metrics: dict[str, MetricRecord]
    task_file: str  # rsg_terra
    prompt: str
    prompt_sha256: str  # over every rendered prompt and choice
    num_fewshot: int
    split: str
    data_sha256: str  # over the documents of the whole split, before --limit
    truncated: int  # requests cut from the left to fit the model's context
    ties: int  # documents whose two best choices have the same log-probability
    unreadable: int  # generated answers that name no choice
    # Label -> how often it was answered; empty where documents have choices of their own.
    answers: dict[str, int] = Field(default_factory=dict)
    head: str | None = None  # kind of the trained head that answered; None: the language model itself
    warnings: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _has_the_official_metric(self) -> TaskRecord:
        if "rsg" not in self.metrics:
            raise ValueError("metrics: rsg is missing")
        return self


class ForeignTaskRecord(Record):
    """One task in lm-eval's own format."""

    main: str  # the metric that stands for the task: the first that it names
    metrics: dict[str, ForeignMetricRecord]  # a filter's name follows a comma: "exact_match,strict-match"
    documents: int
    output_type: str
    version: str | None
    prompt_sha256: str
    data_sha256: str  # over the documents that were asked
    num_fewshot: int
    truncated: int

    @model_validator(mode="after")
    def _has_its_main_metric(self) -> ForeignTaskRecord:
        if self.main not in self.metrics:
            raise ValueError(f"metrics: {self.main} is missing")
        return self


class GroupRecord(Record):
    """A group of such tasks, aggregated as it says. Standard errors: those of independent tasks."""

    tasks: tuple[str, ...]
    metrics: dict[str, MetricRecord]


class ModelRecord(Record):
    """A model. None: not known, since a server holds it."""

    name: str
    origin: str  # behind a server, its address
    sha256: str | None
    parameters: int | None
    weights: str | None  # "bfloat16", "4-bit, group size 64"
    weights_bytes: int | None

    @property
    def identity(self) -> str:
        """What tells models of the same name apart: the hash, and what is named where there is none."""
        return self.sha256 or self.origin

    @property
    def short_identity(self) -> str:
        """The same for people."""
        return self.sha256[:8] if self.sha256 else self.origin


class EndpointRecord(Record):
    """The server that answered. Its address is without user, password and query."""

    address: str
    apis: tuple[str, ...]  # chat, completions: those that were used


class DataRecord(Record):
    source: str  # mini, hub, official; lm-eval where all tasks are of its format
    description: str
    split: str
    limit: int | None  # documents a task


class TimingRecord(Record):
    """Seconds of wall time. `records_per_second`: documents over `scoring_seconds`, the model's start left out."""

    wall_seconds: float
    load_seconds: float
    scoring_seconds: float
    records_per_second: float


class MemoryRecord(Record):
    """`peak_bytes`: of the whole run. `single_bytes`: after the start and the longest document at batch size 1."""

    peak_bytes: int
    single_bytes: int
    of: str  # "process" or the device whose allocator was asked


class TokenRecord(Record):
    """`computed`: read by the model. `shared`: saved by common prefixes. `padding`: computed in vain."""

    computed: int
    shared: int
    padding: int
    forward_passes: int
    batch_tokens: int
    halved_batches: int


class RunRecord(Record):
    """results.json."""

    schema_version: int = SCHEMA_VERSION
    score: float | None  # mean of the nine tasks' scores; None unless all nine ran
    score_stderr: float | None
    mean: float | None  # of the tasks that ran
    mean_stderr: float | None
    tasks: dict[str, TaskRecord]
    model: ModelRecord
    backend: str
    execution: str
    device: str | None  # None: not known, since a server computes
    dtype: str | None
    chat_template: bool
    data: DataRecord
    timing: TimingRecord
    memory: MemoryRecord | None
    tokens: TokenRecord | None
    seed: int
    date: str  # ISO 8601, UTC
    resumed: bool
    processes: int = 1  # that shared the work; memory is the largest one's
    settings_sha256: str
    versions: dict[str, str]
    machine: dict[str, Any]
    git_commit: str | None
    command: str
    # Tasks and groups in lm-eval's own format; `score` and `mean` leave them out.
    foreign: dict[str, ForeignTaskRecord] = Field(default_factory=dict)
    groups: dict[str, GroupRecord] = Field(default_factory=dict)
    foreign_chat_template: bool = False
    system_instruction: str | None = None
    endpoint: EndpointRecord | None = None  # None: the model ran on this machine
    self_check: float | None = None  # nats a token between our log-probabilities and the library's; None: not made


class SampleRecord(Record):
    """A line of samples.jsonl: one answered example."""

    task: str
    idx: Any
    prediction: Any  # an official label, for RuCoS an entity; None: unreadable
    gold: Any  # the same; None: hidden
    scores: list[float]  # log-probabilities of the choices; empty for generated answers
    text: str | None = None  # the generated answer
    document: str | None = None  # SHA-256 of the document's content
    values: dict[str, Any] = Field(default_factory=dict)  # of lm-eval's tasks: metric -> this document's part in it


def write_run(directory: Path, record: RunRecord, samples: Iterable[SampleRecord]) -> None:
    """Write samples and record; the record last, so that a directory with results.json is complete.

    Raises:
        UserError: A file cannot be written.
    """
    lines = "".join(sample.model_dump_json(exclude_none=False) + "\n" for sample in samples)
    write_atomically(directory / SAMPLES, lines)
    write_record(directory / RESULTS, record)


def read_run(directory: Path) -> RunRecord:
    """Return the record of a run's directory.

    Raises:
        UserError: There is none, or it is damaged or newer than this program.
    """
    return read_record(
        directory / RESULTS,
        RunRecord,
        version=SCHEMA_VERSION,
        missing="name the directory of a finished run",
        hint="run it again",
    )


def read_samples(directory: Path) -> Iterator[SampleRecord]:
    """Yield the samples of a run, line by line.

    Raises:
        UserError: No such file, or a damaged line.
    """
    path = directory / SAMPLES
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield SampleRecord.model_validate_json(line)
                except ValidationError as error:
                    raise UserError(f"{path}:{number} is damaged", "run it again") from error
    except FileNotFoundError as error:
        raise UserError(f"{directory} holds no {SAMPLES}", "name the directory of a finished run") from error
