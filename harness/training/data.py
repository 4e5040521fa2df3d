"""A recipe's data: read, rendered by the task files, encoded, packed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from harness.data import Split, cached_split
from harness.data.sampling import sample_documents
from harness.errors import UserError
from harness.models.chat import Template
from harness.models.heads import HeadLayout, check_prompts, make_layout
from harness.scoring.encoding import TextEncoder
from harness.tasks import Row, get_task
from harness.tasks.prompts import ChosenTask, choose
from harness.tasks.rendering import load_tasks
from harness.training.distilled import DistilledData, numbered, soft_targets
from harness.training.examples import Encoding, Example, make_examples
from harness.training.recipe import Recipe

log = logging.getLogger(__name__)

# By (task, split); "train of SOURCE" where a recipe adds a source's documents.
Splits = Mapping[tuple[str, str], Split]


@dataclass(frozen=True)
class Examples:
    """Examples by task, to train on and to validate with."""

    train: Mapping[str, Sequence[Example]]
    validation: Mapping[str, Sequence[Example]]

    def all(self) -> list[Example]:
        """Return all examples: those to train on, then those to validate with."""
        return [example for part in (self.train, self.validation) for found in part.values() for example in found]


@dataclass(frozen=True)
class TrainingData:
    """Examples of every task, and how they were made.

    Attributes:
        examples: To train on and to validate with.
        chosen: Task -> its file and prompt.
        layout: Of the heads that the examples are encoded for.
        template: The chat template and whether it was applied.
    """

    examples: Examples
    chosen: dict[str, ChosenTask]
    layout: HeadLayout
    template: Template


def load_splits(recipe: Recipe, data: str) -> Splits:
    """Return the documents of every task of a recipe.

    Raises:
        UserError: A task has no documents in a split, or they cannot be read.
    """
    splits = {}
    for task in recipe.tasks:
        for split in ("train", "validation"):
            found = cached_split(task, split, data)
            if not found.documents:
                raise UserError(f"{task} has no {split} documents in {data}", "leave the task out of the recipe")
            for warning in found.warnings:
                log.warning("%s", warning)
            splits[task, split] = found
        for source in recipe.tasks[task].more:
            splits[task, f"train of {source}"] = cached_split(task, "train", source)
    return splits


def chosen_prompts(recipe: Recipe) -> dict[str, ChosenTask]:
    """Return each task's file and prompt.

    Raises:
        UserError: There is no such prompt, or the task's head cannot answer it.
    """
    chosen = {task: choose([task], part.prompt)[0] for task, part in recipe.tasks.items()}
    check_prompts(chosen.values(), recipe.kinds())
    return chosen


def prepare_data(
    recipe: Recipe,
    data: str,
    splits: Splits,
    template: Template,
    encoder: TextEncoder,
    distilled: DistilledData | None = None,
) -> TrainingData:
    """Render, encode and pack all documents that a training run may read, with what a teacher said of them.

    Args:
        recipe: The tasks, their prompts and limits.
        data: The source of the documents.
        splits: The documents, from `load_splits`.
        template: Of the base model's tokenizer.
        encoder: Of the same tokenizer.
        distilled: A teacher's labels and documents.
    """
    layout = make_layout(recipe.kinds())
    encoding = Encoding(encoder, template, layout, recipe.max_tokens)
    chosen = chosen_prompts(recipe)
    renderers = load_tasks(list(chosen.values()), data=data, split="validation")
    found: dict[str, dict[str, list[Example]]] = {"train": {}, "validation": {}}
    for task, part in recipe.tasks.items():
        for split, limit in (("train", part.limit), ("validation", recipe.evaluate_limit)):
            held = _rows(splits[task, split])
            rows = held
            if limit is not None:
                rows = sample_documents(rows, limit, recipe.seed)
            if split == "train":
                further = [_rows(splits[task, f"train of {source}"]) for source in part.more]
                if distilled:
                    further.append(numbered(distilled.documents.get(task, [])))
                for added in further:
                    added = _behind(held, added)
                    held, rows = held + added, rows + added
            renderer = renderers[chosen[task].file.full_name]
            found[split][task] = make_examples(get_task(task), renderer, rows, encoding)
        if distilled:
            found["train"][task] = _with_soft_labels(distilled, task, found["train"][task])
        _log_size(task, found["train"][task], recipe.max_tokens)
    return TrainingData(Examples(found["train"], found["validation"]), chosen, layout, template)


def _log_size(task: str, examples: Sequence[Example], max_tokens: int) -> None:
    tokens = sum(len(example.packed) for example in examples)
    cut = sum(example.cut > 0 for example in examples)
    note = f", {cut} passages cut to {max_tokens} tokens" if cut else ""
    log.info("%s: %d train documents, %s tokens packed%s", task, len(examples), f"{tokens:,}", note)


def _rows(split: Split) -> list[Row]:
    return [document.row() for document in split.documents]


def _behind(rows: Sequence[Row], added: Sequence[Row]) -> list[Row]:
    """Return documents with their idx moved behind those of `rows`, number by number where it has several."""
    if not added:
        return []
    if not isinstance(added[0]["idx"], Mapping):
        first = 1 + max(row["idx"] for row in rows)
        return [{**row, "idx": first + row["idx"]} for row in added]
    firsts = {name: 1 + max(row["idx"][name] for row in rows) for name in added[0]["idx"]}
    return [{**row, "idx": {name: firsts[name] + number for name, number in row["idx"].items()}} for row in added]


def _with_soft_labels(distilled: DistilledData, task: str, examples: list[Example]) -> list[Example]:
    """Return the examples with a teacher's labels; log how many there are, and how many are of other documents."""
    targets = [soft_targets(distilled, task, example.docs, example.questions) for example in examples]
    stale = sum(count for _, count in targets)
    if stale:
        log.warning(
            "%s: %d soft labels are left out: the documents are not those that the teacher saw; distil them again",
            task,
            stale,
        )
    labelled = [
        replace(example, soft=soft) if soft.any() else example
        for example, (soft, _) in zip(examples, targets, strict=True)
    ]
    rows = sum(len(example.docs) for example in examples)
    soft_rows = sum(round(float(example.soft.sum())) for example in labelled if example.soft is not None)
    written = len(distilled.documents.get(task, []))
    log.info("%s: %d of %d questions with a soft label, %d written", task, soft_rows, rows, written)
    return labelled
