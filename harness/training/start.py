"""Continue from a checkpoint: its trained layers and heads are where a new training starts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from adapters.low_rank import ADAPTER
from harness.errors import UserError
from harness.files import file_hash
from harness.models.checkpoint import (
    DESCRIPTION,
    HEADS,
    LAYERS,
    Checkpoint,
    StartRecord,
    is_checkpoint,
    read_checkpoint,
)
from harness.models.resolve import LocalModel
from harness.training.model import MultitaskModel, trained_layers


def read_start(directory: Path, base: LocalModel) -> tuple[Checkpoint, StartRecord]:
    """Return a checkpoint's description, and what is recorded of it.

    Raises:
        UserError: It is no checkpoint, or one of another base model.
    """
    if not is_checkpoint(directory):
        raise UserError(f"{directory} is no checkpoint", "name a directory that rsg-harness train wrote")
    checkpoint = read_checkpoint(directory)
    if checkpoint.base.sha256 != base.fingerprint:
        raise UserError(
            f"{directory} was trained from {checkpoint.base.origin}, and the recipe's model is {base.origin}",
            "start from a checkpoint of the same base model, or name that model in the recipe",
        )
    return checkpoint, StartRecord(
        name=checkpoint.name, step=checkpoint.training.step, sha256=file_hash(directory / DESCRIPTION)
    )


@torch.no_grad()
def continue_from(directory: Path, checkpoint: Checkpoint, model: MultitaskModel, wrapper: Any) -> None:
    """Give a model what a checkpoint has learned. Heads that it has not, or of another kind, start as usual.

    Args:
        directory: The checkpoint.
        checkpoint: Its description.
        model: At its usual start.
        wrapper: peft's wrapper of the backbone; None without LoRA.

    Raises:
        UserError: The recipe trains other layers, or with another kind or rank of LoRA.
    """
    if wrapper is not None and checkpoint.adaptation == "lora":
        from peft import get_peft_model_state_dict

        _copy(directory, load_file(directory / ADAPTER), get_peft_model_state_dict(wrapper))
    elif wrapper is None and checkpoint.adaptation == "layers":
        _copy(directory, load_file(directory / LAYERS), trained_layers(model))
    else:
        raise _other_layers(directory, f"its layers were trained as {checkpoint.adaptation}")
    heads = load_file(directory / HEADS)
    layout = checkpoint.layout()
    for task, kind in model.layout.kinds.items():
        if layout.kinds.get(task) == kind:
            rows = list(layout.rows_of(task))
            model.continue_head(task, heads["weight"][rows], heads["bias"][rows])


def _copy(directory: Path, found: dict[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
    shapes = [{name: tuple(tensor.shape) for name, tensor in tensors.items()} for tensors in (found, wanted)]
    if shapes[0] != shapes[1]:
        name = next(name for name in [*wanted, *found] if shapes[0].get(name) != shapes[1].get(name))
        raise _other_layers(directory, f"{name} is {shapes[0].get(name)} there and {shapes[1].get(name)} in the recipe")
    for name, tensor in wanted.items():
        tensor.copy_(found[name])


def _other_layers(directory: Path, reason: str) -> UserError:
    return UserError(
        f"{directory} was not trained in the layers of this recipe: {reason}",
        "give the recipe the checkpoint's frozen_layers and lora",
    )
