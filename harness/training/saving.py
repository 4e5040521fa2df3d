"""A trained model to a checkpoint, with its training record and its model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.low_rank import ADAPTER, ADAPTER_CONFIG
from harness.models.checkpoint import (
    HEADS,
    LAYERS,
    BaseReference,
    TaskHead,
    TrainingRecord,
    ValidationRecord,
    head_descriptions,
    write_checkpoint,
)
from harness.models.licence import licence_notice, licence_of
from harness.models.resolve import LocalModel
from harness.records import provenance
from harness.tasks import get_task, task_names
from harness.tasks.prompts import prompt_hash
from harness.training.data import TrainingData
from harness.training.model import MultitaskModel, trained_layers
from harness.training.recipe import Recipe
from harness.training.validation import ValidationScores


@dataclass(frozen=True)
class TrainedModel:
    """A model and how it was trained.

    Attributes:
        recipe: What was done.
        base: The model that training started from.
        data: What it was trained on.
        model: The trained model.
        wrapper: peft's, or None where layers were trained in full.
    """

    recipe: Recipe
    base: LocalModel
    data: TrainingData
    model: MultitaskModel
    wrapper: Any


def training_record(
    settings: Mapping[str, Any], data: TrainingData, scores: ValidationScores, command: str, processes: int
) -> TrainingRecord:
    """Return what a checkpoint records of its training.

    Args:
        settings: Everything that decided the numbers: the recipe, the hashes of the data.
        data: What the model was trained on.
        scores: On validation, of the model that is saved.
        command: The command line.
        processes: Number of processes that shared the work.
    """
    recipe = settings["recipe"]
    return TrainingRecord(
        recipe=recipe,
        step=scores.step,
        validation=ValidationRecord(limit=recipe["evaluate_limit"], mean=scores.mean, figures=scores.scores),
        data=settings["data"],
        distilled=settings["distilled"],
        start=settings["start"],
        documents={task: len(examples) for task, examples in data.examples.train.items()},
        versions=provenance.versions(),
        machine=provenance.machine(),
        git_commit=provenance.git_commit(),
        command=command,
        processes=processes,
    )


def save_checkpoint(directory: Path, name: str, trained: TrainedModel, record: TrainingRecord) -> None:
    """Write the heads and what was trained of the backbone, as a checkpoint.

    Args:
        directory: Must not exist yet.
        name: Of the checkpoint.
        trained: The model.
        record: Of its training, from `training_record`.

    Raises:
        UserError: The disk is full or the directory cannot be written.
    """
    weight, bias = trained.model.heads()
    tensors = {HEADS: {"weight": weight.detach().cpu().contiguous(), "bias": bias.detach().cpu().contiguous()}}
    texts = {}
    if trained.wrapper is not None:
        from peft import get_peft_model_state_dict

        state = get_peft_model_state_dict(trained.wrapper)
        stored = trained.model.computed_type
        tensors[ADAPTER] = {key: value.detach().cpu().to(stored).contiguous() for key, value in state.items()}
        config = trained.wrapper.peft_config["default"].to_dict()
        config |= {"base_model_name_or_path": trained.base.origin, "inference_mode": True}
        texts[ADAPTER_CONFIG] = json.dumps(config, default=sorted, indent=2) + "\n"
    else:
        layers = trained_layers(trained.model)
        tensors[LAYERS] = {key: value.detach().cpu().contiguous() for key, value in layers.items()}
    data, base = trained.data, trained.base
    prompts = {task: (chosen.prompt, prompt_hash(chosen)) for task, chosen in data.chosen.items()}
    description = {
        "name": name,
        "base": BaseReference(model=trained.recipe.model, origin=base.origin, sha256=base.fingerprint),
        "adaptation": "layers" if trained.wrapper is None else "lora",
        "frozen_layers": trained.recipe.frozen_layers,
        "weights": trained.recipe.weights,
        "chat_template": data.template.applied,
        "tasks": head_descriptions(data.layout, prompts),
        "head_rows": data.layout.rows,
        "training": record,
    }
    write_checkpoint(
        directory, description, tensors, {**texts, "README.md": model_card(description, licence_of(base.path))}
    )


def model_card(description: Mapping[str, Any], licence: dict[str, str]) -> str:
    """Return README.md of a checkpoint.

    Args:
        description: Fields of `Checkpoint`, without `files`.
        licence: Of the base model, from `licence_of`.
    """
    training: TrainingRecord = description["training"]
    validation = training.validation
    heads: Mapping[str, TaskHead] = description["tasks"]
    rows = [
        f"| {task} | {head.kind} | {head.prompt} | {100 * validation.figures[task]['rsg']:.1f} |"
        for task, head in heads.items()
    ]
    changed = (
        f"LoRA of rank {training.recipe['lora']['rank']} in the layers above the first {description['frozen_layers']}"
        if description["adaptation"] == "lora"
        else f"all layers above the first {description['frozen_layers']}, trained in full"
    )
    if description["weights"] != "whole":
        changed += f", over the weights as {description['weights']} stores them"
    limit = f" on at most {validation.limit} documents per task" if validation.limit else ""
    later = " Records of full evaluations are on the leaderboard." if validation.limit else ""
    return "\n".join(
        [
            "---",
            *(f"{key}: {value}" for key, value in licence.items()),
            "language: ru",
            "library_name: rsg-harness",
            "---",
            f"# {description['name']}",
            "",
            f"A multitask model for Russian SuperGLUE: {description['base'].origin} with {changed}, and a head for "
            "each task on the hidden state of the prompt's last token.",
            "",
            licence_notice(licence),
            "",
            "Use it with rsg-harness:",
            "",
            "    rsg-harness run --model THIS_DIRECTORY --backend torch",
            '    rsg-harness predict --model THIS_DIRECTORY --task terra --premise "…" --hypothesis "…"',
            "",
            f"## Scores on validation, at step {training.step}",
            "",
            f"Official metrics × 100{limit}; this step has the highest mean, {100 * validation.mean:.1f}.{later}",
            "",
            "| task | head | prompt | score |",
            "|---|---|---|---|",
            *rows,
            "",
            *_borrowing(heads),
            f"Trained with `{training.command}`; recipe, data fingerprints and versions are in rsg_checkpoint.json.",
            "",
        ]
    )


def _borrowing(heads: Mapping[str, TaskHead]) -> list[str]:
    """Return a paragraph on each test set that one of the heads answers."""
    borrowing = [task for task in map(get_task, task_names()) if task.borrows in heads]
    return [
        line
        for task in borrowing
        for line in (f"{task.title} is never trained on; the head of {task.borrows} answers it.", "")
    ]
