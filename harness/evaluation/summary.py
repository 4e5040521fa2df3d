"""From the outcomes of a run to its record and samples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from adapters.base import Backend, BackendInfo
from harness.data import LABELS, TASKS, Split, document_key
from harness.evaluation.language_model import PlannedModel
from harness.evaluation.options import RunOptions
from harness.evaluation.resume import settings_hash
from harness.models.resolve import LocalModel
from harness.records import provenance
from harness.records.run import (
    DataRecord,
    MemoryRecord,
    MetricRecord,
    ModelRecord,
    RunRecord,
    SampleRecord,
    TaskRecord,
    TimingRecord,
    TokenRecord,
)
from harness.tasks.answers import is_tied
from harness.tasks.metrics import METRICS, Estimate, Item, estimate, has_examples, mean_estimate
from harness.tasks.prompts import ChosenTask
from harness.tasks.rendering import uses_chat_template


@dataclass
class Outcome:
    """What lm-eval gave back of one task: its samples, and the items among them whose answer is known."""

    chosen: ChosenTask
    samples: list[dict[str, Any]]
    items: list[Item] = field(default_factory=list)


@dataclass(frozen=True)
class Costs:
    """What the scoring cost one process, or all that shared a run."""

    processes: int
    scoring_seconds: float  # of the slowest process
    peak_bytes: int  # of the largest
    single_bytes: int  # of the largest
    padding: int
    forward_passes: int
    halved_batches: int


def process_costs(language_model: PlannedModel, scoring_seconds: float) -> Costs:
    """Of this process."""
    statistics = language_model.scorer.statistics
    return Costs(
        processes=1,
        scoring_seconds=scoring_seconds,
        peak_bytes=provenance.peak_memory(language_model.backend)[0],
        single_bytes=language_model.single_bytes,
        padding=statistics.padding,
        forward_passes=statistics.forward_passes,
        halved_batches=statistics.halved,
    )


def total_costs(costs: Sequence[Mapping[str, Any]]) -> Costs:
    """Of all processes together, from the fields of each one's `Costs`."""
    largest = ("scoring_seconds", "peak_bytes", "single_bytes")
    return Costs(**{name: (max if name in largest else sum)(cost[name] for cost in costs) for name in costs[0]})


@dataclass(frozen=True)
class Evaluation:
    """A run that has just ended."""

    options: RunOptions
    settings: dict[str, Any]
    model: LocalModel
    backend: Backend
    language_model: PlannedModel
    splits: dict[str, Split]
    outcomes: list[Outcome]
    timing: TimingRecord
    costs: Costs
    resumed: bool


def count_documents(outcomes: list[Outcome]) -> int:
    return sum(len({document_key(sample["doc"]) for sample in outcome.samples}) for outcome in outcomes)


def _metric_record(found: Estimate | None) -> MetricRecord:
    if found is None:
        return MetricRecord(value=None, stderr=None)
    return MetricRecord(value=found.value, stderr=found.stderr, interval=found.interval)


def _estimates(outcome: Outcome, seed: int) -> dict[str, Estimate | None]:
    """Every metric of a task; None where no answer is known, or no example is in the metric's category."""
    metrics = METRICS[outcome.chosen.file.task]
    if not outcome.items:
        return dict.fromkeys(metrics)
    return {
        name: estimate(metric, outcome.items, seed) if has_examples(metric, outcome.items) else None
        for name, metric in metrics.items()
    }


def _is_generated(outcome: Outcome) -> bool:
    return outcome.chosen.file.group == "rsg_gen"


def _task_record(
    outcome: Outcome,
    estimates: Mapping[str, Estimate | None],
    split: Split,
    language_model: PlannedModel,
    options: RunOptions,
) -> TaskRecord:
    samples = outcome.samples
    prompts = hashlib.sha256()
    for sample in samples:
        prompts.update(json.dumps(sample["arguments"], ensure_ascii=False, default=str).encode() + b"\n")
    scores = [] if _is_generated(outcome) else [_scores(sample) for sample in samples]
    main = estimates["rsg"]
    return TaskRecord(
        score=main.value if main else None,
        documents=len({document_key(sample["doc"]) for sample in samples}),
        examples=len(samples),
        metrics={name: _metric_record(found) for name, found in estimates.items()},
        task_file=outcome.chosen.file.full_name,
        prompt=outcome.chosen.prompt,
        head=language_model.head_kind(outcome.chosen.file.full_name),
        prompt_sha256=prompts.hexdigest(),
        num_fewshot=options.num_fewshot,
        split=split.split,
        data_sha256=split.fingerprint,
        truncated=language_model.truncated[outcome.chosen.file.full_name],
        ties=sum(is_tied(row) for row in scores),
        unreadable=sum(sample["rsg"].prediction is None for sample in samples),
        warnings=split.warnings,
    )


def _scores(sample: dict[str, Any]) -> list[float]:
    """Log-probabilities of the choices."""
    return [float(logprob) for logprob, _ in sample["filtered_resps"]]


def model_record(model: LocalModel, info: BackendInfo) -> ModelRecord:
    return ModelRecord(
        name=model.name,
        origin=model.origin,
        sha256=model.fingerprint,
        parameters=info.parameters,
        weights=info.weights,
        weights_bytes=info.weights_bytes,
    )


def make_record(done: Evaluation) -> RunRecord:
    """The record of a run that has just ended."""
    tasks: dict[str, TaskRecord] = {}
    mains: list[Estimate] = []
    for outcome in done.outcomes:
        estimates = _estimates(outcome, done.options.seed)
        file = outcome.chosen.file
        tasks[file.name] = _task_record(outcome, estimates, done.splits[file.task], done.language_model, done.options)
        if estimates["rsg"] is not None:
            mains.append(estimates["rsg"])
    mean = mean_estimate(mains) if mains else None
    nine = _all_nine(done.outcomes) and len(mains) == len(TASKS)
    info, statistics, costs = done.backend.info, done.language_model.scorer.statistics, done.costs
    return RunRecord(
        score=mean.value if mean and nine else None,
        score_stderr=mean.stderr if mean and nine else None,
        mean=mean.value if mean else None,
        mean_stderr=mean.stderr if mean else None,
        tasks=tasks,
        model=model_record(done.model, info),
        backend=info.name,
        execution=info.execution,
        device=info.device,
        dtype=info.dtype,
        chat_template=uses_chat_template(done.backend.tokenizer, done.options.apply_chat_template),
        data=DataRecord(
            source=_source_kind(done.options.data),
            description=_source_description(done.options.data, done.splits),
            split=done.options.split,
            limit=done.options.limit,
        ),
        timing=done.timing,
        memory=MemoryRecord(
            peak_bytes=costs.peak_bytes,
            single_bytes=costs.single_bytes,
            of=provenance.peak_memory(done.backend)[1],
        ),
        tokens=TokenRecord(
            computed=statistics.tokens_computed + done.language_model.generated_prompt_tokens,
            shared=statistics.tokens_shared,
            padding=costs.padding,
            forward_passes=costs.forward_passes,
            batch_tokens=done.language_model.batch_tokens,
            halved_batches=costs.halved_batches,
        ),
        seed=done.options.seed,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        resumed=done.resumed,
        processes=costs.processes,
        settings_sha256=settings_hash(done.settings),
        versions=provenance.versions(),
        machine=provenance.machine(),
        git_commit=provenance.git_commit(),
        command=done.options.command,
    )


def _all_nine(outcomes: list[Outcome]) -> bool:
    """True if the run is all nine tasks of one group and nothing else."""
    files = [outcome.chosen.file for outcome in outcomes]
    return len({file.group for file in files}) == 1 and {file.task for file in files} == set(TASKS)


def _source_kind(data: str) -> str:
    if data == "mini":
        return "mini"
    return "hub" if data == "hub" or data.startswith("hub:") else "official"


def _source_description(data: str, splits: dict[str, Split]) -> str:
    """For the hub its name and commit; for a directory nothing but its kind, since records are published."""
    if _source_kind(data) == "official":
        return "official files"
    return next(iter(splits.values())).source if data == "hub" else data.partition(":")[0]


def make_samples(outcomes: list[Outcome]) -> list[SampleRecord]:
    records = []
    for outcome in outcomes:
        task = outcome.chosen.file.task
        for sample in outcome.samples:
            doc = sample["doc"]
            generated = _is_generated(outcome)
            records.append(
                SampleRecord(
                    task=outcome.chosen.file.name,
                    idx=doc["idx"],
                    prediction=_label(task, sample["rsg"].prediction),
                    gold=list(doc["answers"]) or None if task == "rucos" else _label(task, doc["label"]),
                    scores=[] if generated else _scores(sample),
                    text=sample["filtered_resps"][0] if generated else None,
                )
            )
    return records


def _label(task: str, answer: Any) -> Any:
    """A label's index as the official file spells it; hidden and unreadable ones as None."""
    if answer is None or answer == -1:
        return None
    return answer if task == "rucos" else LABELS[task][answer]
