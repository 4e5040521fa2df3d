"""The archive that russiansuperglue.com takes: predictions over the test split, made from run directories.

Format: a zip of nine .jsonl files, a JSON object an example, sorted by idx, labels as the official files spell them.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.files import write_atomically
from harness.records.run import RunRecord, SampleRecord, read_run, read_samples
from harness.tasks import RUSSIAN_SUPERGLUE, Task, document_key, get_task
from harness.tasks.document import LabelError

# Zip files date their members; a fixed date (the earliest there is) gives the same bytes for the same answers.
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class _Answers:
    """One task's answers and where they come from."""

    run: Path
    record: RunRecord
    name: str  # in the record: terra, gen_terra
    samples: list[SampleRecord]


def write_submission(runs: Sequence[Path], output: Path) -> list[str]:
    """Make the official archive from runs over the test split that hold each of the nine tasks once.

    Args:
        runs: directories of finished runs.
        output: the zip file. An older archive is replaced, whole or not at all; any other file is refused.

    Returns:
        Lines for the user: the files with their counts, warnings, the archive.

    Raises:
        UserError: a run over other data, a task missing or twice, unreadable or damaged answers, no place to write.
    """
    _check_output(output)
    answers = _collect(runs)
    _check_complete(answers)
    _check_readable(answers)
    tasks = sorted((get_task(name) for name in RUSSIAN_SUPERGLUE), key=lambda task: task.title)
    files = {f"{task.title}.jsonl": _lines(task, answers[task.name]) for task in tasks}
    _write_zip(output, files)
    counts = [f"{name}: {_counted(len(lines), 'line')}" for name, lines in files.items()]
    warnings = [f"warning: {text}" for text in [*_count_warnings(answers), *_mixture_warnings(answers)]]
    return [*counts, *warnings, f"archive: {output}"]


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


# --- collecting the answers ----------------------------------------------------------------------------------------


def _collect(runs: Sequence[Path]) -> dict[str, _Answers]:
    """Return each task's answers by its name."""
    found: dict[str, _Answers] = {}
    for run in runs:
        record = read_run(run)
        _check_run(run, record)
        for name in record.tasks:
            task = name.removeprefix("gen_")
            if task not in RUSSIAN_SUPERGLUE:
                raise UserError(f"{run} holds {name}, which is no task of Russian SuperGLUE", "leave this run out")
            if task in found:
                before = found[task]
                raise UserError(
                    f"{task} is there twice: {before.name} in {before.run} and {name} in {run}",
                    "name runs that hold each task once; --tasks of `rsg-harness run` chooses tasks",
                )
            found[task] = _Answers(run, record, name, [])
        for sample in read_samples(run):
            if sample.task not in record.tasks:
                raise UserError(f"{run} has samples of {sample.task}, which its record lacks", "run it again")
            found[sample.task.removeprefix("gen_")].samples.append(sample)
    for answers in found.values():
        expected = answers.record.tasks[answers.name].examples
        if len(answers.samples) != expected:
            raise UserError(
                f"{answers.run} has {len(answers.samples)} samples of {answers.name}, and its record counts {expected}",
                "its samples.jsonl is damaged: run it again",
            )
    return found


def _check_run(run: Path, record: RunRecord) -> None:
    """Refuse what is not the whole official test split."""
    if record.data.source == "mini":
        raise UserError(
            f"{run} ran on the mini set, which has no official test split",
            "rsg-harness run --data hub --split test, or --data with the unpacked official archive",
        )
    others = [name for name, task in record.tasks.items() if task.split != "test"]
    if others:
        raise UserError(
            f"{run} ran {', '.join(others)} over the {record.tasks[others[0]].split} split",
            f"rsg-harness run --data hub --split test --tasks {','.join(others)}",
        )
    if record.data.limit is not None:
        raise UserError(
            f"{run} is limited to {_counted(record.data.limit, 'document')} a task",
            "run it again without --limit: a submission answers every test example",
        )


def _check_complete(answers: Mapping[str, _Answers]) -> None:
    missing = [task for task in RUSSIAN_SUPERGLUE if task not in answers]
    if missing:
        raise UserError(
            f"no answers for {', '.join(missing)}: a submission takes all nine tasks",
            f"rsg-harness run --data hub --split test --tasks {','.join(missing)}, and name that run as well",
        )


def _check_readable(answers: Mapping[str, _Answers]) -> None:
    """Refuse empty answers: filling them in would submit what the model did not say."""
    counts = {a.name: sum(sample.prediction is None for sample in a.samples) for a in answers.values()}
    unreadable = {name: count for name, count in counts.items() if count}
    if unreadable:
        shown = ", ".join(f"{name} {count}" for name, count in unreadable.items())
        chosen = ",".join(name.removeprefix("gen_") for name in unreadable)
        raise UserError(
            f"answers that name no label: {shown}",
            f"let the model choose instead of generate: rsg-harness run --data hub --split test --tasks {chosen}",
        )


# --- from answers to lines -----------------------------------------------------------------------------------------


class _Damaged(Exception):
    """A sample that no run writes."""


def _lines(task: Task, answers: _Answers) -> list[str]:
    """Return the lines of the task's file."""
    try:
        rows = _grouped_rows(task, answers.samples) if task.group else _flat_rows(task, answers.samples)
    except (_Damaged, LabelError) as damage:
        raise UserError(f"{answers.run}, {answers.name}: {damage}", "its samples are damaged: run it again") from damage
    return [json.dumps(row, ensure_ascii=False) for row in rows]


def _flat_rows(task: Task, samples: Iterable[SampleRecord]) -> list[dict[str, Any]]:
    """Return {"idx", "label"} sorted by idx, which for RuCoS is the query's."""
    labels: dict[int, Any] = {}
    for sample in samples:
        idx = _index(sample, "query") if task.choices else _whole(sample.idx)
        _put(labels, idx, task.submitted(sample.prediction))
    return [{"idx": idx, "label": labels[idx]} for idx in sorted(labels)]


def _grouped_rows(task: Task, samples: Iterable[SampleRecord]) -> list[dict[str, Any]]:
    """Return MuSeRC's paragraphs, in them questions, in them answers, each sorted by idx."""
    paragraphs: dict[int, dict[int, dict[int, Any]]] = {}
    for sample in samples:
        paragraph, question, answer = (_index(sample, part) for part in ("paragraph", "question", "answer"))
        _put(paragraphs.setdefault(paragraph, {}).setdefault(question, {}), answer, task.submitted(sample.prediction))
    return [
        {"idx": paragraph, "passage": {"questions": [_question(*question) for question in sorted(questions.items())]}}
        for paragraph, questions in sorted(paragraphs.items())
    ]


def _question(idx: int, answers: Mapping[int, Any]) -> dict[str, Any]:
    return {"idx": idx, "answers": [{"idx": answer, "label": label} for answer, label in sorted(answers.items())]}


def _index(sample: SampleRecord, part: str) -> int:
    if not isinstance(sample.idx, dict):
        raise _Damaged(f"idx {sample.idx!r} has no {part}")
    return _whole(sample.idx.get(part))


def _whole(idx: Any) -> int:
    if not isinstance(idx, int) or isinstance(idx, bool):
        raise _Damaged(f"idx {idx!r} is no whole number")
    return idx


def _put(labels: dict[int, Any], idx: int, label: Any) -> None:
    if idx in labels:
        raise _Damaged(f"idx {idx} is answered twice")
    labels[idx] = label


# --- warnings ------------------------------------------------------------------------------------------------------


def _count_warnings(answers: Mapping[str, _Answers]) -> list[str]:
    """Compare the numbers of answers and of paragraphs with those of the official test split."""
    counts = []
    for name in RUSSIAN_SUPERGLUE:
        task, samples = get_task(name), answers[name].samples
        counts.append((task.title, len(samples), task.sizes["test"], "answers"))
    for name in RUSSIAN_SUPERGLUE:
        task = get_task(name)
        if task.clusters:
            paragraphs = len({document_key({"idx": sample.idx}) for sample in answers[name].samples})
            counts.append((task.title, paragraphs, task.clusters["test"], "paragraphs"))
    return [
        f"{title} has {found} {what}, the official test split {official}: the site may refuse it"
        for title, found, official, what in counts
        if found != official
    ]


def _mixture_warnings(answers: Mapping[str, _Answers]) -> list[str]:
    """Warn where the answers come from several systems: the leaderboard ranks one."""
    systems = sorted({f"{a.record.model.name} on {a.record.backend}" for a in answers.values()})
    return [f"the answers come from {len(systems)} systems: {', '.join(systems)}"] if len(systems) > 1 else []


# --- writing -------------------------------------------------------------------------------------------------------


def _check_output(output: Path) -> None:
    """Refuse what should not be replaced, before the samples are read."""
    if output.is_dir():
        raise UserError(f"{output} is a directory", "name the archive: --output submission.zip")
    if not output.parent.is_dir():
        raise UserError(f"no directory {output.parent}", "make it, or name another --output")
    if output.exists() and not zipfile.is_zipfile(output):
        raise UserError(f"{output} exists and is no zip archive", "name another --output")


def _write_zip(output: Path, files: Mapping[str, Sequence[str]]) -> None:
    """Write the archive, whole or not at all."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, lines in files.items():
            member = zipfile.ZipInfo(name, _ZIP_DATE)
            member.compress_type = zipfile.ZIP_DEFLATED
            member.external_attr = 0o644 << 16
            opened.writestr(member, "".join(f"{line}\n" for line in lines))
    write_atomically(output, archive.getvalue())
