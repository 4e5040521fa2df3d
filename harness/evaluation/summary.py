"""From the results of a run to its record and samples."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from harness.data import Split
from harness.evaluation.account import Account
from harness.evaluation.answering import AnsweringModel
from harness.evaluation.directory import settings_hash
from harness.evaluation.options import RunOptions, foreign_chat_template
from harness.records import provenance
from harness.records.run import (
    DataRecord,
    ForeignTaskRecord,
    GroupRecord,
    MetricRecord,
    RunRecord,
    SampleRecord,
    TaskRecord,
    TimingRecord,
)
from harness.tasks import RUSSIAN_SUPERGLUE, document_key, get_task
from harness.tasks.answers import is_tied
from harness.tasks.document import content_hash
from harness.tasks.metrics import Estimate, Item, estimate, has_examples, mean_estimate
from harness.tasks.prompts import ChosenTask


@dataclass
class TaskResult:
    """What lm-eval returned for one task: its samples, and the items among them whose answer is known."""

    chosen: ChosenTask
    samples: list[dict[str, Any]]
    items: list[Item] = field(default_factory=list)


@dataclass(frozen=True)
class ForeignResults:
    """What came of the tasks in lm-eval's own format."""

    tasks: dict[str, ForeignTaskRecord] = field(default_factory=dict)
    groups: dict[str, GroupRecord] = field(default_factory=dict)
    samples: list[SampleRecord] = field(default_factory=list)

    @property
    def documents(self) -> int:
        return sum(task.documents for task in self.tasks.values())


@dataclass(frozen=True)
class FinishedRun:
    """A run that has just ended."""

    options: RunOptions
    settings: dict[str, Any]
    language_model: AnsweringModel
    account: Account
    splits: dict[str, Split]
    results: list[TaskResult]
    foreign: ForeignResults
    timing: TimingRecord
    resumed: bool


def count_documents(results: list[TaskResult]) -> int:
    """Return the number of documents that were answered, over all tasks."""
    return sum(len({document_key(sample["doc"]) for sample in result.samples}) for result in results)


def _metric_record(found: Estimate | None) -> MetricRecord:
    if found is None:
        return MetricRecord(value=None, stderr=None)
    return MetricRecord(value=found.value, stderr=found.stderr, interval=found.interval)


def _estimates(result: TaskResult, seed: int) -> dict[str, Estimate | None]:
    """Estimate every metric of a task; None where no answer is known, or no example is in the metric's category."""
    metrics = get_task(result.chosen.file.task).metrics
    if not result.items:
        return dict.fromkeys(metrics)
    return {
        name: estimate(metric, result.items, seed) if has_examples(metric, result.items) else None
        for name, metric in metrics.items()
    }


def _task_record(result: TaskResult, estimates: Mapping[str, Estimate | None], done: FinishedRun) -> TaskRecord:
    samples, file = result.samples, result.chosen.file
    split = done.splits[file.task]
    prompts = hashlib.sha256()
    for sample in samples:
        prompts.update(json.dumps(sample["arguments"], ensure_ascii=False, default=str).encode() + b"\n")
    scores = [] if file.is_generated else [_scores(sample) for sample in samples]
    main = estimates["rsg"]
    return TaskRecord(
        score=main.value if main else None,
        documents=len({document_key(sample["doc"]) for sample in samples}),
        examples=len(samples),
        metrics={name: _metric_record(found) for name, found in estimates.items()},
        task_file=file.full_name,
        prompt=result.chosen.prompt,
        head=None if file.is_generated else done.language_model.head_kind(file.task),
        prompt_sha256=prompts.hexdigest(),
        num_fewshot=done.options.num_fewshot or 0,
        split=split.split,
        data_sha256=split.fingerprint,
        truncated=done.language_model.truncated[file.full_name],
        ties=sum(is_tied(row) for row in scores),
        unreadable=sum(sample["rsg"].prediction is None for sample in samples),
        answers=_answers(file.task, samples),
        warnings=split.warnings,
    )


def _answers(task: str, samples: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Return how often each label was answered."""
    labels = get_task(task).labels
    counts = Counter(sample["rsg"].prediction for sample in samples)
    return {label: counts[number] for number, label in enumerate(labels)}


def _scores(sample: dict[str, Any]) -> list[float]:
    """Return the log-probabilities of the choices."""
    return [float(logprob) for logprob, _ in sample["filtered_resps"]]


def make_record(done: FinishedRun) -> RunRecord:
    """Return the record of a run that has just ended."""
    tasks: dict[str, TaskRecord] = {}
    mains: list[Estimate] = []
    for result in done.results:
        estimates = _estimates(result, done.options.seed)
        tasks[result.chosen.file.name] = _task_record(result, estimates, done)
        if estimates["rsg"] is not None:
            mains.append(estimates["rsg"])
    mean = mean_estimate(mains) if mains else None
    nine = _all_nine(done.results) and len(mains) == len(RUSSIAN_SUPERGLUE)
    return RunRecord(
        score=mean.value if mean and nine else None,
        score_stderr=mean.stderr if mean and nine else None,
        mean=mean.value if mean else None,
        mean_stderr=mean.stderr if mean else None,
        tasks=tasks,
        **done.account.fields,
        chat_template=done.language_model.applies_chat_template,
        data=_data_record(done),
        timing=done.timing,
        seed=done.options.seed,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        resumed=done.resumed,
        processes=done.account.processes,
        settings_sha256=settings_hash(done.settings),
        versions=provenance.versions(),
        machine=provenance.machine(),
        git_commit=provenance.git_commit(),
        command=done.options.command,
        foreign=done.foreign.tasks,
        groups=done.foreign.groups,
        foreign_chat_template=bool(done.foreign.tasks) and foreign_chat_template(done.options),
        system_instruction=done.options.system_instruction,
    )


def _all_nine(results: list[TaskResult]) -> bool:
    """Return whether the run is all nine tasks of one group and nothing else."""
    files = [result.chosen.file for result in results]
    return len({file.group for file in files}) == 1 and {file.task for file in files} == set(RUSSIAN_SUPERGLUE)


def _data_record(done: FinishedRun) -> DataRecord:
    """Say where the documents are from; lm-eval's tasks bring theirs, and have splits of their own."""
    data, limit = done.options.data, done.options.limit
    if not done.results:
        return DataRecord(source="lm-eval", description="each task's own", split="each task's own", limit=limit)
    return DataRecord(
        source=_source_kind(data),
        description=_source_description(data, done.splits),
        split=done.options.split,
        limit=limit,
    )


def _source_kind(data: str) -> str:
    if data == "mini":
        return "mini"
    return "hub" if data == "hub" or data.startswith("hub:") else "official"


def _source_description(data: str, splits: dict[str, Split]) -> str:
    """Return the hub's name and commit; of a directory nothing but its kind, since records are published."""
    if _source_kind(data) == "official":
        return "official files"
    return next(iter(splits.values())).source if data == "hub" else data.partition(":")[0]


def make_samples(results: list[TaskResult]) -> list[SampleRecord]:
    """Return a record of every answered example."""
    records = []
    for result in results:
        file = result.chosen.file
        task = get_task(file.task)
        for sample in result.samples:
            doc = sample["doc"]
            records.append(
                SampleRecord(
                    task=file.name,
                    idx=doc["idx"],
                    prediction=task.named(sample["rsg"].prediction),
                    gold=task.named(task.gold(doc)),
                    scores=[] if file.is_generated else _scores(sample),
                    text=sample["filtered_resps"][0] if file.is_generated else None,
                    document=content_hash(doc),
                )
            )
    return records
