"""A LoRA adapter of peft that stays beside quantised weights, as the checkpoints of train --weights have it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_PREFIX = "base_model.model."
# The files of an adapter as peft writes it.
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"


@dataclass(frozen=True)
class LowRank:
    """What one matrix gets in addition: `up` [rows, rank] · `down` [rank, columns] · `scale`; in the stored type."""

    down: torch.Tensor
    up: torch.Tensor
    scale: float


def read_low_rank(directory: Path) -> dict[str, LowRank]:
    """Return an adapter's matrices by the name of the linear layer, as transformers names it."""
    from safetensors.torch import load_file

    config = json.loads((directory / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    tensors = load_file(directory / ADAPTER)
    scale = config["lora_alpha"] / config["r"]
    names = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]
    return {
        name.removeprefix(_PREFIX): LowRank(tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"], scale)
        for name in names
    }


def describe_low_rank(adapter: Mapping[str, LowRank]) -> str:
    """Say what stands beside the quantised weights: "LoRA of rank 32 in bfloat16 beside them"."""
    first = next(iter(adapter.values()))
    return f"LoRA of rank {len(first.down)} in {str(first.down.dtype).removeprefix('torch.')} beside them"


def low_rank_bytes(adapter: Mapping[str, LowRank]) -> int:
    """Return the bytes of an adapter's matrices as stored."""
    return sum(part.down.nbytes + part.up.nbytes for part in adapter.values())
