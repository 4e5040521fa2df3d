"""Two runs over the same documents: did the second really get better or worse? The statistics are in paired.py."""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tabulate import tabulate

from harness.errors import UserError
from harness.records.run import ForeignTaskRecord, RunRecord, SampleRecord, TaskRecord, read_run, read_samples
from harness.reports.paired import (
    Pair,
    TaskComparison,
    comparable_metric,
    compare_foreign_task,
    compare_own_task,
    holm,
    interval_of,
)
from harness.reports.tables import backend_text, computed_by

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Comparison:
    """Two runs. `mean`: the mean over the compared tasks, whose p-value is not corrected: it is one test.

    `foreign`: the tasks in lm-eval's own format, each by its `comparable_metric`, which may be a perplexity.
    """

    before: RunRecord
    after: RunRecord
    tasks: tuple[TaskComparison, ...]
    foreign: tuple[TaskComparison, ...]
    mean_before: float | None  # None: none of the tasks is of Russian SuperGLUE
    mean_after: float | None
    mean_interval: tuple[float, float]
    left_out: tuple[str, ...]  # tasks that only one of the runs has, or whose metrics only the task can compute

    @property
    def mean_difference(self) -> float:
        return (self.mean_after or 0.0) - (self.mean_before or 0.0)


def compare(before: Path, after: Path, seed: int = 0, *, across_prompts: bool = False) -> Comparison:
    """Compare two run directories.

    Args:
        before, after: directories of finished runs over the same documents and prompts.
        seed: of the bootstrap.
        across_prompts: Whether the prompts may differ, as those of two trained models do: then each model is compared
            as it was asked.

    Raises:
        UserError: no records, no task in common, other documents or prompts, or hidden answers.
    """
    records = read_run(before), read_run(after)
    shared = [task for task in records[0].tasks if task in records[1].tasks]
    metrics = {
        task: comparable_metric(record, records[1].foreign[task])
        for task, record in records[0].foreign.items()
        if task in records[1].foreign
    }
    foreign = [task for task, metric in metrics.items() if metric]
    if not shared and not foreign:
        raise UserError(f"{before} and {after} have no task in common", "compare runs over the same tasks")
    for task in shared:
        _refuse_if_unlike(task, records[0].tasks[task], records[1].tasks[task], OWN_SETTINGS)
        if not across_prompts:
            _refuse_if_unlike(task, records[0].tasks[task], records[1].tasks[task], PROMPTS, ACROSS_PROMPTS)
        if records[0].tasks[task].score is None:
            raise UserError(f"the answers of {task} are hidden in this split", "compare runs over the validation split")
    for task in foreign:
        _refuse_if_unlike(task, records[0].foreign[task], records[1].foreign[task], FOREIGN_SETTINGS)
        if not across_prompts:
            _refuse_if_unlike(task, records[0].foreign[task], records[1].foreign[task], PROMPTS[1:], ACROSS_PROMPTS)
    samples = _by_task(before, [*shared, *foreign]), _by_task(after, [*shared, *foreign])
    found, draws = [], []
    for task in shared:
        comparison, differences = compare_own_task(task, _pairs(task, samples[0][task], samples[1][task]), seed)
        found.append(comparison)
        draws.append(differences)
    for task in foreign:
        pairs = _pairs(task, samples[0][task], samples[1][task])
        compared_task = compare_foreign_task(task, records[0].foreign[task], str(metrics[task]), pairs, seed)
        found += [compared_task] if compared_task else []
    corrected = holm([comparison.p for comparison in found])
    compared = [replace(comparison, p_holm=p) for comparison, p in zip(found, corrected, strict=True)]
    tasks = tuple(compared[: len(shared)])
    mean_before = float(np.mean([task.before for task in tasks])) if tasks else None
    mean_after = float(np.mean([task.after for task in tasks])) if tasks else None
    # Tasks are independent, so one draw of each makes a draw of the mean.
    rng = np.random.default_rng(seed)
    shuffled = np.mean([rng.permutation(differences) for differences in draws], axis=0) if draws else np.zeros(1)
    done = {comparison.task for comparison in found}
    left_out = tuple(
        dict.fromkeys(task for record in records for task in (*record.tasks, *record.foreign) if task not in done)
    )
    return Comparison(
        *records, tasks, tuple(compared[len(shared) :]), mean_before, mean_after, interval_of(shuffled), left_out
    )


# What two runs must have in common: how it is called, its field in the task's record.
FOREIGN_SETTINGS = (
    ("documents", "data_sha256"),
    ("numbers of documents", "documents"),
    ("main metrics", "main"),
)
OWN_SETTINGS = (("documents", "data_sha256"), ("splits", "split"), ("numbers of documents", "documents"))
PROMPTS = (("prompts", "prompt"), ("rendered prompts", "prompt_sha256"))
ACROSS_PROMPTS = "compare runs made alike, or each model as it was asked: --across-prompts"


def _refuse_if_unlike(
    task: str,
    before: TaskRecord | ForeignTaskRecord,
    after: TaskRecord | ForeignTaskRecord,
    settings: Sequence[tuple[str, str]],
    hint: str = "compare runs made alike",
) -> None:
    for what, key in settings:
        values = getattr(before, key), getattr(after, key)
        if values[0] != values[1]:
            shown = " and ".join(str(value)[:12] for value in values)
            raise UserError(f"the runs have different {what} in {task} ({shown})", hint)


def _by_task(directory: Path, tasks: Sequence[str]) -> dict[str, list[SampleRecord]]:
    """Return task -> its samples, in the order of the file.

    Raises:
        UserError: A task of the record has no samples.
    """
    found: dict[str, list[SampleRecord]] = {}
    for sample in read_samples(directory):
        found.setdefault(sample.task, []).append(sample)
    lost = [task for task in tasks if task not in found]
    if lost:
        raise UserError(f"{directory} is damaged: its samples lack {', '.join(lost)}", "run it again")
    return found


def _pairs(task: str, before: Sequence[SampleRecord], after: Sequence[SampleRecord]) -> list[Pair]:
    """Return the two runs' samples of each example: of the same idx and content.

    Runs of older versions kept no hash of the content; there the idx alone decides.

    Raises:
        UserError: The runs have other examples, or one of them has two that nothing tells apart.
    """
    hashed = all(sample.document for sample in (*before, *after))

    def keyed(samples: Sequence[SampleRecord]) -> dict[Hashable, SampleRecord]:
        return {
            (sample.document if hashed else None, json.dumps(sample.idx, sort_keys=True)): sample for sample in samples
        }

    sides = keyed(before), keyed(after)
    if sides[0].keys() != sides[1].keys() or len(sides[0]) != len(before) or len(sides[1]) != len(after):
        raise UserError(f"the runs' samples of {task} are not of the same examples", "compare runs made alike")
    return [(sides[0][key], sides[1][key]) for key in sides[0]]


def verdict(difference: float, interval: tuple[float, float], p: float | None = None) -> str:
    """Put a difference in words, in points: `no loss shown: −0.4 points, interval −1.6 to +0.8`.

    Args:
        difference, interval: as shares.
        p: corrected; None: the interval alone decides.
    """
    is_real = (interval[0] > 0 or interval[1] < 0) and (p is None or p < SIGNIFICANT)
    if is_real:
        word = "better" if difference > 0 else "worse"
    elif difference == 0 and interval == (0.0, 0.0):
        word = "the same"
    else:
        word = "no loss shown" if difference <= 0 else "no gain shown"
    low, high = (points(bound) for bound in interval)
    return f"{word}: {points(difference)} points, interval {low} to {high}"


def points(share: float) -> str:
    """Format a difference × 100 with its sign: +1.2, −0.4, 0.0."""
    text = f"{100 * abs(share):.1f}"
    if float(text) == 0:
        return text
    return f"{'+' if share > 0 else '−'}{text}"


def comparison_text(found: Comparison, flips: int = 0) -> str:
    """Format a comparison: a row a task, a verdict, and this many flipped documents a task."""
    lines = [f"before: {_name(found.before)}", f"after:  {_name(found.after)}"]
    if found.mean_before is not None and found.mean_after is not None:
        rows = [
            [
                task.task,
                f"{100 * task.before:.1f}",
                f"{100 * task.after:.1f}",
                points(task.difference),
                " to ".join(points(bound) for bound in task.interval),
                *_evidence(task),
                verdict(task.difference, task.interval, task.p_holm).partition(":")[0],
            ]
            for task in found.tasks
        ]
        headers = ["task", "before", "after", "points", "95% interval", *_EVIDENCE, "verdict"]
        lines += [
            "",
            tabulate(rows, headers=headers, disable_numparse=True),
            "",
            f"mean of {len(rows)}: {100 * found.mean_before:.1f} and {100 * found.mean_after:.1f}, "
            + verdict(found.mean_difference, found.mean_interval),
        ]
    if found.foreign:
        rows = [
            [
                task.task,
                task.metric,
                *(f"{figure:.4g}" for figure in (task.before, task.after)),
                f"{task.difference:+.4g}",
                " to ".join(f"{bound:+.4g}" for bound in task.interval),
                *_evidence(task),
            ]
            for task in found.foreign
        ]
        headers = ["lm-eval's task", "metric", "before", "after", "difference", "95% interval", *_EVIDENCE]
        lines += ["", tabulate(rows, headers=headers, disable_numparse=True)]
    prompts = [_prompt_hashes(record) for record in (found.before, found.after)]
    asked_otherwise = [
        task.task for task in (*found.tasks, *found.foreign) if prompts[0][task.task] != prompts[1][task.task]
    ]
    if asked_otherwise:
        lines.append(f"asked by other prompts: {', '.join(asked_otherwise)}")
    if found.left_out:
        lines.append(f"not compared: {', '.join(found.left_out)}")
    for task in (*found.tasks, *found.foreign):
        for word, kept in (("lost", task.lost[:flips]), ("gained", task.gained[:flips])):
            lines.extend(
                f"{task.task} {word}: document {flip.idx}, gold {flip.gold}, {flip.before} → {flip.after}"
                for flip in kept
            )
    return "\n".join(lines)


def _prompt_hashes(record: RunRecord) -> dict[str, str]:
    own = {name: task.prompt_sha256 for name, task in record.tasks.items()}
    return own | {name: task.prompt_sha256 for name, task in record.foreign.items()}


_EVIDENCE = ("p (Holm)", "lost / gained", "KL, nats")


def _evidence(task: TaskComparison) -> list[str]:
    return [
        f"{task.p_holm:.3f} ({task.test})",
        f"{len(task.lost)} / {len(task.gained)} of {task.answers}",
        "–" if task.divergence is None else f"{task.divergence:.4f}",
    ]


def _name(record: RunRecord) -> str:
    executed = computed_by(record.model, record.execution, record.device, record.dtype)[0]
    return f"{record.model.name} · {backend_text(record.backend, record.model)}, executed by {executed}"
