"""A model in training to a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.models.checkpoint import (
    ADAPTER,
    ADAPTER_CONFIG,
    HEADS,
    LAYERS,
    BaseReference,
    head_descriptions,
    write_checkpoint,
)
from harness.models.resolve import LocalModel
from harness.records import provenance
from harness.tasks.prompts import prompt_hash
from harness.training.card import model_card
from harness.training.data import TrainingData
from harness.training.model import MultitaskModel
from harness.training.recipe import Recipe
from harness.training.trainer import Evaluation


def training_record(
    settings: Mapping[str, Any], data: TrainingData, evaluation: Evaluation, command: str, processes: int
) -> dict[str, Any]:
    """What a checkpoint says of its training.

    Args:
        settings: that decided the numbers: the recipe, the hashes of the data.
        data: what it was trained on.
        evaluation: of the model that is saved.
        command: that was called.
        processes: that shared the work.
    """
    recipe = settings["recipe"]
    return {
        "recipe": recipe,
        "step": evaluation.step,
        "validation": {"limit": recipe["evaluate_limit"], "mean": evaluation.mean, "figures": evaluation.figures},
        "data": settings["data"],
        "distilled": settings["distilled"],
        "documents": {task: len(examples) for task, examples in data.train.items()},
        "versions": provenance.versions(),
        "machine": provenance.machine(),
        "git_commit": provenance.git_commit(),
        "command": command,
        "processes": processes,
    }


def save_checkpoint(
    directory: Path,
    name: str,
    recipe: Recipe,
    base: LocalModel,
    data: TrainingData,
    model: MultitaskModel,
    wrapper: Any,
    record: dict[str, Any],
) -> None:
    """Writes heads and what was trained of the backbone.

    Args:
        directory: must not exist yet.
        name: of the checkpoint.
        recipe, base, data: that the model was trained by, from and on.
        model: trained.
        wrapper: peft's, or None where layers were trained in full.
        record: from `training_record`.

    Raises:
        UserError: the disk is full or the directory cannot be written.
    """
    weight, bias = model.heads()
    tensors = {HEADS: {"weight": weight.detach().cpu().contiguous(), "bias": bias.detach().cpu().contiguous()}}
    texts = {}
    if wrapper is not None:
        from peft import get_peft_model_state_dict

        state = get_peft_model_state_dict(wrapper)
        tensors[ADAPTER] = {key: value.detach().cpu().contiguous() for key, value in state.items()}
        config = wrapper.peft_config["default"].to_dict()
        config |= {"base_model_name_or_path": base.origin, "inference_mode": True}
        texts[ADAPTER_CONFIG] = json.dumps(config, default=sorted, indent=2) + "\n"
    else:
        tensors[LAYERS] = {
            key.removeprefix("language_model."): value.detach().cpu().contiguous()
            for key, value in model.named_parameters()
            if value.requires_grad and key.startswith("language_model.")
        }
    prompts = {task: (chosen.prompt, prompt_hash(chosen)) for task, chosen in data.chosen.items()}
    description = {
        "name": name,
        "base": BaseReference(model=recipe.model, origin=base.origin, sha256=base.fingerprint),
        "adaptation": "layers" if wrapper is None else "lora",
        "frozen_layers": recipe.frozen_layers,
        "chat_template": data.chat_template,
        "tasks": head_descriptions(data.layout, prompts),
        "head_rows": data.layout.rows,
        "training": record,
    }
    write_checkpoint(directory, description, tensors, {**texts, "README.md": model_card(description)})
