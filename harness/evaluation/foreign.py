"""Run tasks in lm-eval's own format, and record what came of them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from adapters.base import library_errors
from harness.evaluation.answering import AnsweringModel
from harness.quiet import quiet_libraries
from harness.records.run import ForeignMetricRecord, ForeignTaskRecord, GroupRecord, MetricRecord, SampleRecord
from harness.tasks.aggregation import aggregation_name, find_aggregation, mean, resampled
from harness.tasks.document import content_hash
from harness.tasks.foreign import ForeignTasks, seed_generators
from harness.tasks.metrics import BOOTSTRAP_SAMPLES, Z_95


def evaluate_foreign(
    language_model: AnsweringModel,
    foreign: ForeignTasks,
    *,
    apply_chat_template: bool = False,
    system_instruction: str | None = None,
) -> dict[str, Any]:
    """Let lm-eval render, score and judge; return its results without standard errors."""
    from lm_eval.evaluator import evaluate

    seed_generators()
    with quiet_libraries(), library_errors("a task failed", "what was scored is kept: --resume"):
        found = evaluate(
            lm=language_model,
            task_dict={"tasks": foreign.tasks, "groups": foreign.groups, "group_map": {}},
            samples=dict(foreign.documents),
            bootstrap_iters=0,
            apply_chat_template=apply_chat_template,
            fewshot_as_multiturn=True,
            system_instruction=system_instruction,
        )
    assert found is not None
    return found


def task_records(
    found: Mapping[str, Any], foreign: ForeignTasks, truncated: Mapping[str, int], seed: int
) -> dict[str, ForeignTaskRecord]:
    """Return a record of every task, from lm-eval's results."""
    return {
        name: _task_record(task, found["results"][name], found["samples"][name], foreign.sha256[name], truncated, seed)
        for name, task in foreign.tasks.items()
    }


def _task_record(
    task: Any,
    results: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]],
    sha256: str,
    truncated: Mapping[str, int],
    seed: int,
) -> ForeignTaskRecord:
    prompts = hashlib.sha256()
    for sample in samples:
        prompts.update(json.dumps(sample["arguments"], ensure_ascii=False, default=str).encode() + b"\n")
    declared = list(task.aggregation())
    metrics = {}
    for key, value in sorted(_figures(results), key=lambda figure: _place(figure[0].partition(",")[0], declared)):
        metric, _, kept = key.partition(",")
        aggregate = task.aggregation().get(metric, mean)
        values = [sample[metric] for sample in samples if sample["filter"] == kept and metric in sample]
        stderr, interval = spread(value, values, aggregate, seed)
        metrics[_metric_name(key)] = ForeignMetricRecord(
            value=_finite(value),
            stderr=stderr,
            interval=interval,
            aggregation=aggregation_name(aggregate),
            higher_is_better=task.higher_is_better().get(metric),
        )
    return ForeignTaskRecord(
        main=next(iter(metrics)),
        metrics=metrics,
        documents=len({sample["doc_id"] for sample in samples}),
        output_type=task.OUTPUT_TYPE,
        version=None if task.VERSION is None else str(task.VERSION),
        prompt_sha256=prompts.hexdigest(),
        data_sha256=sha256,
        num_fewshot=task.get_config("num_fewshot") or 0,
        truncated=truncated[task.task_name],
    )


def group_records(
    found: Mapping[str, Any], foreign: ForeignTasks, tasks: Mapping[str, ForeignTaskRecord]
) -> dict[str, GroupRecord]:
    """Return a record of every group; its value is lm-eval's aggregate."""
    records = {}
    for name, group in foreign.groups.items():
        members = [task.task_name for task in group.get_all_tasks()]
        weights = {config.metric: config.weight_by_size for config in group.aggregate_metric_list or ()}
        metrics = {}
        for key, value in _figures(found.get("groups", {}).get(name, {})):
            having = [member for member in members if _metric_name(key) in tasks[member].metrics]
            by_size = weights.get(key.partition(",")[0], True)
            sizes = [found["results"][member]["sample_len"] if by_size else 1 for member in having]
            stderr = _group_stderr([tasks[member].metrics[_metric_name(key)] for member in having], sizes)
            low_high = None
            if stderr is not None and math.isfinite(value):
                low_high = (value - Z_95 * stderr, value + Z_95 * stderr)
            metrics[_metric_name(key)] = MetricRecord(value=_finite(value), stderr=stderr, interval=low_high)
        records[name] = GroupRecord(tasks=tuple(members), metrics=metrics)
    return records


def _group_stderr(parts: Sequence[MetricRecord], sizes: Sequence[int]) -> float | None:
    """Return the standard error of a mean of independent tasks, weighted by these sizes."""
    known = [part.stderr for part in parts if part.stderr is not None]
    if not known or len(known) < len(parts):
        return None
    return float(np.linalg.norm(np.array(sizes) / sum(sizes) * known))


def sample_records(found: Mapping[str, Any], foreign: ForeignTasks) -> Iterator[SampleRecord]:
    """Yield a record of every answered document."""
    for name, task in foreign.tasks.items():
        by_document: dict[int, list[Mapping[str, Any]]] = {}
        for sample in found["samples"][name]:  # one a document and filter
            by_document.setdefault(sample["doc_id"], []).append(sample)
        for number, samples in by_document.items():
            answers = samples[0]["filtered_resps"]
            if "acc_mutual_info" in task.aggregation():  # lm-eval adds each choice without its context
                answers = answers[: len(answers) // 2]
            chosen = task.OUTPUT_TYPE == "multiple_choice"
            scores = [float(logprob) for logprob, _ in answers] if chosen else []
            generated = task.OUTPUT_TYPE == "generate_until"
            yield SampleRecord(
                task=name,
                idx=number,
                prediction=int(np.argmax(scores)) if scores else None,
                gold=_plain(samples[0]["target"]),
                scores=scores,
                text=_text(answers[0]) if generated else None,
                document=content_hash(samples[0]["doc"]),
                values={
                    _metric_name(f"{metric},{sample['filter']}"): _plain(sample[metric])
                    for sample in samples
                    for metric in sample["metrics"]
                },
            )


def _text(answer: Any) -> str:
    return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False, default=str)


def _plain(value: Any) -> Any:
    """Return a value as JSON has it, numpy's numbers as Python's."""
    return json.loads(json.dumps(value, default=lambda one: one.tolist() if hasattr(one, "tolist") else str(one)))


def _figures(results: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield (metric and filter, value) of lm-eval's results of one task or group."""
    for key, value in results.items():
        metric, comma, _ = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, int | float | np.number):
            yield key, float(value)


def _place(metric: str, declared: Sequence[str]) -> int:
    """Return the place of a metric in its task's list; those that one function adds to its result come last."""
    return declared.index(metric) if metric in declared else len(declared)


def _metric_name(key: str) -> str:
    """Return lm-eval's "acc,none" as "acc"; other filters stay: "exact_match,strict-match"."""
    return key.removesuffix(",none")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def spread(
    value: float, values: Sequence[Any], aggregate: Callable[..., Any], seed: int
) -> tuple[float | None, tuple[float, float] | None]:
    """Return the standard error and the 95% interval of a metric; None where they cannot be told.

    A mean's are of the normal distribution; those of lm-eval's other aggregations of a bootstrap over documents. What a
    task brought along may load a model at every call, and has none, as in lm-eval.
    """
    if len(values) < 2 or not math.isfinite(value):
        return None, None
    if aggregation_name(aggregate) == "mean":
        if not all(isinstance(one, int | float | np.number | np.bool_) for one in values):
            return None, None
        stderr = float(np.std(np.asarray(values, dtype=float), ddof=1) / math.sqrt(len(values)))
        return stderr, (value - Z_95 * stderr, value + Z_95 * stderr)
    if find_aggregation(aggregation_name(aggregate)) is not aggregate:
        return None, None
    draws = resampled(values, aggregate, seed, BOOTSTRAP_SAMPLES)
    if draws is None:
        return None, None
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(draws.std(ddof=1)), (float(low), float(high))
