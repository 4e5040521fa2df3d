"""Turn train documents into questions to the teacher, by the tasks' own prompts and task_configs/distillation."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from lm_eval.utils import apply_template

from harness.data import Split
from harness.data.sampling import draw_shots, sample_documents
from harness.distillation.lines import document_name
from harness.distillation.options import DistillOptions
from harness.tasks import Row, document_key, get_task
from harness.tasks.prompts import TASK_DIR, ChosenTask

PROMPTS_FILE = TASK_DIR / "distillation" / "prompts.yaml"
_SHOTS = 3  # train documents shown when an example is asked for


@dataclass(frozen=True)
class Question:
    """One question to the teacher.

    Attributes:
        key: Its unique name in the output.
        task: The task's name.
        row: The train document that it is about; when an example is asked for, the first one that is shown.
        shots: The documents shown as examples.
        label: The label that the document to be written must have; None where the teacher is asked for a label.
    """

    key: str
    task: str
    row: Row
    shots: tuple[Row, ...] = ()
    label: int | None = None


@functools.cache
def own_prompts() -> dict[str, Any]:
    """Return the prompts beside the tasks' own, by kind and task."""
    return yaml.safe_load(PROMPTS_FILE.read_text(encoding="utf-8"))


def own_prompts_hash() -> str:
    """Return the SHA-256 of the file with the prompts beside the tasks' own."""
    return hashlib.sha256(PROMPTS_FILE.read_bytes()).hexdigest()


def make_questions(
    chosen: Sequence[ChosenTask], splits: Mapping[str, Split], options: DistillOptions
) -> list[Question]:
    """Return all questions of a distillation, in a fixed order.

    Args:
        chosen: The tasks.
        splits: Task -> its train split.
        options: Decide the kind, limit, count and seed.
    """
    make = {"labels": _about_labels, "paraphrases": _about_paraphrases, "examples": _about_examples}[options.kind]
    questions: list[Question] = []
    for task in chosen:
        name = task.file.task
        rows = [document.row() for document in splits[name].documents]
        if options.limit is not None:
            rows = sample_documents(rows, options.limit, options.seed)
        questions.extend(make(name, rows, options.count, options.seed))
    return questions


def _about_labels(task: str, rows: list[Row], count: int, seed: int) -> list[Question]:
    return [Question(document_name(task, row["idx"]), task, row) for row in rows]


def _about_paraphrases(task: str, rows: list[Row], count: int, seed: int) -> list[Question]:
    """Ask about all documents equally often; where the count is no multiple, about some once more."""
    rounds, left = divmod(count, len(rows))
    asked = [(row, turn) for turn in range(rounds) for row in rows]
    asked += [(row, rounds) for row in (sample_documents(rows, left, seed) if left else [])]
    return [Question(f"{document_name(task, row['idx'])}/{turn}", task, row, label=row["label"]) for row, turn in asked]


def _about_examples(task: str, rows: list[Row], count: int, seed: int) -> list[Question]:
    """Let the labels take turns and show different train documents each time."""
    labels = len(own_prompts()["label_words"][task])
    questions = []
    for number in range(count):
        shown = min(_SHOTS, len({document_key(row) for row in rows}))
        shots = tuple(draw_shots(rows, shown, seed + number))
        questions.append(Question(f"{task}/example/{number}", task, shots[0], shots, number % labels))
    return questions


class Renderer:
    """Renders questions to prompts.

    Args:
        chosen: The tasks with their prompts.
        tasks: lm-eval's tasks by full name.
        options: Decide the kind, the API and whether an explanation is asked for.
    """

    def __init__(self, chosen: Sequence[ChosenTask], tasks: Mapping[str, Any], options: DistillOptions) -> None:
        self._tasks = {task.file.task: tasks[task.file.full_name] for task in chosen}
        self._options = options

    def prompt(self, question: Question) -> str:
        """Return a user's message for the chat API, a text to be continued for the completions API."""
        options, own = self._options, own_prompts()
        if options.kind == "examples":
            words = own["label_words"][question.task]
            shots = [f"{_as_json(question.task, shot)} — {words[shot['label']]}" for shot in question.shots]
            return apply_template(own["examples"][question.task], {"shots": shots, "words": words[question.label]})
        if options.kind == "paraphrases":
            return apply_template(own["paraphrases"][question.task], question.row)
        task = self._tasks[question.task]
        if options.rationale:
            return task.doc_to_text(question.row) + own["rationale"]
        if options.api == "chat":  # not every server lets a request begin the answer
            return task.doc_to_text(question.row).rstrip()
        return task.fewshot_context(question.row, num_fewshot=0, gen_prefix=task.doc_to_prefix(question.row))


def _as_json(task: str, row: Row) -> str:
    writing = get_task(task).writing
    assert writing is not None
    return json.dumps({name: row[name] for name in writing.columns}, ensure_ascii=False)
