"""One training step on a device against the same step in float32 on the CPU."""

from __future__ import annotations

from pathlib import Path

import torch

from adapters.text import load_tokenizer
from harness.models.check import CHOICES, CONTEXT
from harness.models.heads import make_layout
from harness.scoring.encoding import TextEncoder, encode_pairs
from harness.scoring.packing import pack
from harness.training.model import build_model, make_inputs
from harness.training.recipe import LoraRecipe, Recipe, TaskRecipe

_RECIPE = Recipe(
    model="",
    frozen_layers=1,
    lora=LoraRecipe(rank=4),
    tasks={"parus": TaskRecipe(head="likelihood")},
    steps=1,
    learning_rate=1e-3,
    heads_learning_rate=1e-3,
)


def gradient_difference(model_dir: Path, device: str, dtype: str) -> float:
    """Return the distance of LoRA's gradients from those in float32 on the CPU, as a share of their length.

    Args:
        model_dir: A transformers directory.
        device: "cpu", "mps" or "cuda".
        dtype: "float32" or "bfloat16".
    """
    expected = _gradients(model_dir, "cpu", torch.float32)
    found = _gradients(model_dir, device, getattr(torch, dtype))
    return float((found - expected).norm() / expected.norm())


def _gradients(model_dir: Path, device: str, dtype: torch.dtype) -> torch.Tensor:
    """Return all gradients in a row, float32 on the CPU."""
    place = torch.device(device)
    model, _ = build_model(_RECIPE, model_dir, make_layout({"parus": "likelihood"}), place, dtype)
    sequences = encode_pairs(TextEncoder(load_tokenizer(model_dir)), [(CONTEXT, choice) for choice in CHOICES], 1024)
    inputs = make_inputs([pack(sequences)], model.windows, place)
    model.train()
    with torch.autocast(device, dtype, enabled=dtype is not torch.float32):
        loss = -model.log_probabilities(model.read_states(inputs, model.lower(inputs)), inputs).mean()
    loss.backward()
    gradients = [value.grad for _, value in sorted(model.named_parameters()) if value.grad is not None]
    return torch.cat([gradient.float().cpu().flatten() for gradient in gradients])
