"""What a training run needs to continue after a kill: weights, optimiser, position. Safetensors and JSON only.

A state is a directory that is whole or absent. No random generator is saved: batches follow from the seed, and every
step seeds its own noise.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from harness.errors import UserError
from harness.files import whole_directory

_WEIGHTS, _OPTIMISER, _POSITION = "weights.safetensors", "optimiser.safetensors", "progress.json"
_PREFIX = "state-"
_KEPT = "free some space and continue with --resume: what was saved before still stands"


@dataclass
class Position:
    """Where a training run stands.

    Attributes:
        step: Steps done.
        best_mean: Best mean of the official metrics on validation so far; None before the first evaluation.
        best_step: The step of that evaluation.
        since_best: Evaluations since then.
        seconds: Time of training so far, evaluations included.
    """

    step: int = 0
    best_mean: float | None = None
    best_step: int | None = None
    since_best: int = 0
    seconds: float = 0.0


def save_state(
    work: Path, position: Position, tensors: dict[str, torch.Tensor], optimiser: torch.optim.Optimizer
) -> None:
    """Save a state and remove the older ones.

    Args:
        work: The run's directory.
        position: Where the run stands.
        tensors: Trained parameters, and others to keep, by name.
        optimiser: AdamW over the parameters among them.

    Raises:
        UserError: The disk is full. The older state stays.
    """
    moments = {}
    for name, tensor in tensors.items():
        for key, value in optimiser.state.get(tensor, {}).items():
            moments[f"{name}/{key}"] = value.detach().cpu().contiguous()
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    directory = work / f"{_PREFIX}{position.step:06d}"
    if not directory.exists():
        with whole_directory(
            directory, "free some space and continue with --resume: what was saved before still stands"
        ) as scratch:
            (scratch / _WEIGHTS).write_bytes(save(weights))
            (scratch / _OPTIMISER).write_bytes(save(moments))
            (scratch / _POSITION).write_text(json.dumps(asdict(position)), encoding="utf-8")
    for older in _states(work):
        if older != directory:
            shutil.rmtree(older)


def load_state(work: Path, tensors: dict[str, torch.Tensor], optimiser: torch.optim.Optimizer) -> Position:
    """Restore the latest state and return its position; that of a new run where there is none.

    Raises:
        UserError: Its files are damaged.
    """
    states = _states(work)
    if not states:
        return Position()
    directory = states[-1]
    try:
        weights, moments = load_file(directory / _WEIGHTS), load_file(directory / _OPTIMISER)
        position = Position(**json.loads((directory / _POSITION).read_text(encoding="utf-8")))
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(weights[name])
                found = _moments_of(name, moments, tensor)
                if found:
                    optimiser.state[tensor] = found
    except (OSError, SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{directory} is damaged: {error}", "delete the directory to start again from the first step"
        ) from error
    return position


def _moments_of(name: str, moments: dict[str, torch.Tensor], tensor: torch.Tensor) -> dict[str, Any]:
    """Return the optimiser's entries of one parameter; its step counter stays on the CPU, where AdamW keeps it."""
    found = {key.rpartition("/")[2]: value for key, value in moments.items() if key.rpartition("/")[0] == name}
    return {key: value if key == "step" else value.to(tensor.device) for key, value in found.items()}


def _states(work: Path) -> list[Path]:
    return sorted(work.glob(f"{_PREFIX}[0-9]*"))
