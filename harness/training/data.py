"""A recipe's data: read, rendered by the task files, encoded, packed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from harness.data import Split, cached_split
from harness.data.sampling import sample_documents
from harness.errors import UserError
from harness.models.heads import HeadLayout, make_layout
from harness.scoring.encoding import TextEncoder
from harness.tasks.prompts import ChosenTask, choose
from harness.tasks.rendering import load_tasks, uses_chat_template
from harness.training.distilled import DistilledData, numbered, soft_targets
from harness.training.examples import Example, make_examples
from harness.training.recipe import Recipe

Splits = Mapping[tuple[str, str], Split]


@dataclass(frozen=True)
class TrainingData:
    """Examples of every task, and how they were made.

    Attributes:
        chosen: task -> its file and prompt.
        train, validation: task -> examples.
        layout: of the heads that they are encoded for.
        chat_template: whether the tokenizer's chat template was applied.
    """

    chosen: dict[str, ChosenTask]
    train: dict[str, list[Example]]
    validation: dict[str, list[Example]]
    layout: HeadLayout
    chat_template: bool


def load_splits(recipe: Recipe, data: str, say: Callable[[str], None]) -> Splits:
    """The documents of every task of a recipe, by (task, split).

    Raises:
        UserError: a task has no documents in a split, or they cannot be read.
    """
    splits = {}
    for task in recipe.tasks:
        for split in ("train", "validation"):
            found = cached_split(task, split, data)
            if not found.documents:
                raise UserError(f"{task} has no {split} documents in {data}", "leave the task out of the recipe")
            for warning in found.warnings:
                say(f"warning: {warning}")
            splits[task, split] = found
    return splits


def prepare(
    recipe: Recipe,
    data: str,
    splits: Splits,
    tokenizer: Any,
    say: Callable[[str], None],
    distilled: DistilledData | None = None,
) -> TrainingData:
    """Renders, encodes and packs all documents that a training run may read, with what a teacher said of them."""
    encoder = TextEncoder(tokenizer)
    chat_template = uses_chat_template(tokenizer, "auto")
    layout = make_layout(recipe.kinds())
    chosen = {task: choose([task], part.prompt)[0] for task, part in recipe.tasks.items()}
    tasks = load_tasks(list(chosen.values()), data=data, split="validation")
    found: dict[str, dict[str, list[Example]]] = {"train": {}, "validation": {}}
    for task, part in recipe.tasks.items():
        limits = {"train": part.limit, "validation": recipe.evaluate_limit}
        for split, limit in limits.items():
            rows = [document.row() for document in splits[task, split].documents]
            if limit is not None:
                rows = sample_documents(rows, limit, recipe.seed)
            if distilled and split == "train":
                rows += _written_rows(distilled, task, splits[task, split])
            found[split][task] = make_examples(
                task, tasks[f"rsg_{task}"], rows, encoder, tokenizer, layout, recipe.max_tokens, chat_template
            )
        if distilled:
            found["train"][task] = _with_soft_labels(distilled, task, found["train"][task], say)
        examples = found["train"][task]
        tokens = sum(len(example.packed) for example in examples)
        cut = sum(example.cut > 0 for example in examples)
        note = f", {cut} passages cut to {recipe.max_tokens} tokens" if cut else ""
        say(f"{task}: {len(examples)} train documents, {tokens:,} tokens packed{note}")
    return TrainingData(chosen, found["train"], found["validation"], layout, chat_template)


def _written_rows(distilled: DistilledData, task: str, train: Split) -> list[dict[str, Any]]:
    """The documents that a teacher wrote for a task, with an idx that no train document has."""
    written = distilled.documents.get(task, [])
    # Only tasks whose idx is a number have any.
    return numbered(written, 1 + max(document.row()["idx"] for document in train.documents)) if written else []


def _with_soft_labels(
    distilled: DistilledData, task: str, examples: list[Example], say: Callable[[str], None]
) -> list[Example]:
    """The examples with a teacher's labels. Says how many there are, and how many are of other documents."""
    targets = [soft_targets(distilled, task, example.docs, example.questions) for example in examples]
    stale = sum(count for _, count in targets)
    if stale:
        say(
            f"warning: {task}: {stale} soft labels are left out: the documents are not those that the teacher saw; "
            "distil them again"
        )
    labelled = [
        replace(example, soft=soft) if soft.any() else example
        for example, (soft, _) in zip(examples, targets, strict=True)
    ]
    rows = sum(len(example.docs) for example in examples)
    soft_rows = sum(round(float(example.soft.sum())) for example in labelled if example.soft is not None)
    say(f"{task}: {soft_rows} of {rows} questions with a soft label, {len(distilled.documents.get(task, []))} written")
    return labelled
