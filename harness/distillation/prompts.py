"""Train documents to questions for the teacher: the tasks' own prompts, and those in task_configs/distillation."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from lm_eval.utils import apply_template

from harness.data import Split, document_key
from harness.data.sampling import draw_shots, sample_documents
from harness.distillation.lines import document_name
from harness.distillation.options import DistillOptions
from harness.tasks.prompts import TASK_DIR, ChosenTask

PROMPTS_FILE = TASK_DIR / "distillation" / "prompts.yaml"
# What a teacher writes of a document; the rest follows.
FIELDS = {
    "rcb": ("premise", "hypothesis"),
    "parus": ("premise", "question", "choice1", "choice2"),
    "rwsd": ("text", "span1_text", "span2_text"),
}
_SHOTS = 3  # train documents that an asked-for example is shown


@dataclass(frozen=True)
class Item:
    """One thing to ask the teacher.

    Attributes:
        key: its name in the output, unique.
        task: short name.
        row: the train document that it is about; for an example to be written, the first that is shown.
        shots: the documents that are shown as examples.
        label: that the document to be written must have; None where the teacher is asked for a label.
    """

    key: str
    task: str
    row: dict[str, Any]
    shots: tuple[dict[str, Any], ...] = ()
    label: int | None = None


@functools.cache
def own_prompts() -> dict[str, Any]:
    """The prompts beside the tasks' own, by kind and task."""
    return yaml.safe_load(PROMPTS_FILE.read_text(encoding="utf-8"))


def own_prompts_hash() -> str:
    return hashlib.sha256(PROMPTS_FILE.read_bytes()).hexdigest()


def make_items(chosen: Sequence[ChosenTask], splits: dict[str, Split], options: DistillOptions) -> list[Item]:
    """All that the teacher is asked, in a fixed order.

    Args:
        chosen: the tasks.
        splits: task -> its train split.
        options: kind, limit, count and seed.
    """
    items = []
    for task in chosen:
        name = task.file.task
        rows = [document.row() for document in splits[name].documents]
        if options.limit is not None:
            rows = sample_documents(rows, options.limit, options.seed)
        make = {"labels": _label_items, "paraphrases": _paraphrase_items, "examples": _example_items}[options.kind]
        items.extend(make(name, rows, options.count, options.seed))
    return items


def _label_items(task: str, rows: list[dict[str, Any]], count: int, seed: int) -> list[Item]:
    return [Item(document_name(task, row["idx"]), task, row) for row in rows]


def _paraphrase_items(task: str, rows: list[dict[str, Any]], count: int, seed: int) -> list[Item]:
    """Every document as often as any other, or once more."""
    rounds, left = divmod(count, len(rows))
    asked = [(row, turn) for turn in range(rounds) for row in rows]
    asked += [(row, rounds) for row in (sample_documents(rows, left, seed) if left else [])]
    return [Item(f"{document_name(task, row['idx'])}/{turn}", task, row, label=row["label"]) for row, turn in asked]


def _example_items(task: str, rows: list[dict[str, Any]], count: int, seed: int) -> list[Item]:
    """Labels take turns; every question shows train documents of its own."""
    labels = len(own_prompts()["label_words"][task])
    items = []
    for number in range(count):
        shown = min(_SHOTS, len({document_key(row) for row in rows}))
        shots = tuple(draw_shots(rows, shown, seed + number))
        items.append(Item(f"{task}/example/{number}", task, shots[0], shots, number % labels))
    return items


class Renderer:
    """Renders items to prompts.

    Args:
        chosen: the tasks with their prompts.
        tasks: lm-eval's tasks, by full name.
        options: kind of work, API, rationale.
    """

    def __init__(self, chosen: Sequence[ChosenTask], tasks: dict[str, Any], options: DistillOptions) -> None:
        self._tasks = {task.file.task: tasks[task.file.full_name] for task in chosen}
        self._options = options

    def prompt(self, item: Item) -> str:
        """For the chat API a user's message; for the completions API a text that the answer continues."""
        options, own = self._options, own_prompts()
        if options.kind == "examples":
            words = own["label_words"][item.task]
            shots = [f"{_as_json(item.task, shot)} — {words[shot['label']]}" for shot in item.shots]
            return apply_template(own["examples"][item.task], {"shots": shots, "words": words[item.label]})
        if options.kind == "paraphrases":
            return apply_template(own["paraphrases"][item.task], item.row)
        task = self._tasks[item.task]
        if options.rationale:
            return task.doc_to_text(item.row) + own["rationale"]
        if options.api == "chat":  # whose answer cannot be begun with given words on every server
            return task.doc_to_text(item.row).rstrip()
        return task.fewshot_context(item.row, num_fewshot=0, gen_prefix=task.doc_to_prefix(item.row))


def _as_json(task: str, row: dict[str, Any]) -> str:
    return json.dumps({field: row[field] for field in FIELDS[task]}, ensure_ascii=False)
