"""What a training run needs to go on after a kill: weights, optimiser, where it stands. Safetensors and JSON only.

A state is a directory, whole or not there. Nothing random has a state of its own: batches follow from the seed, and
every step seeds its own noise.
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
from harness.models.checkpoint import write_directory

_WEIGHTS, _OPTIMISER, _PROGRESS = "weights.safetensors", "optimiser.safetensors", "progress.json"
_PREFIX = "state-"


@dataclass
class Progress:
    """Where training stands after `step` steps.

    Attributes:
        step: steps done.
        best_mean: best mean of the official metrics on validation so far; None before the first evaluation.
        best_step: when that was.
        since_best: evaluations since then.
        seconds: of training so far, evaluations included.
    """

    step: int = 0
    best_mean: float | None = None
    best_step: int | None = None
    since_best: int = 0
    seconds: float = 0.0


def save_state(
    work: Path, progress: Progress, tensors: dict[str, torch.Tensor], optimiser: torch.optim.Optimizer
) -> None:
    """Saves a state and drops the ones before it.

    Args:
        work: the run's directory.
        progress: where it stands.
        tensors: trained parameters, and others to keep, by name.
        optimiser: AdamW over the parameters among them.

    Raises:
        UserError: the disk is full. The state before stands.
    """
    moments = {}
    for name, tensor in tensors.items():
        for key, value in optimiser.state.get(tensor, {}).items():
            moments[f"{name}/{key}"] = value.detach().cpu().contiguous()
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    directory = work / f"{_PREFIX}{progress.step:06d}"
    if not directory.exists():
        contents = {
            _WEIGHTS: save(weights),
            _OPTIMISER: save(moments),
            _PROGRESS: json.dumps(asdict(progress)).encode(),
        }
        write_directory(directory, contents)
    for older in _states(work):
        if older != directory:
            shutil.rmtree(older)


def load_state(work: Path, tensors: dict[str, torch.Tensor], optimiser: torch.optim.Optimizer) -> Progress:
    """Puts the latest state back; a fresh `Progress` where there is none.

    Raises:
        UserError: its files are damaged.
    """
    states = _states(work)
    if not states:
        return Progress()
    directory = states[-1]
    try:
        weights, moments = load_file(directory / _WEIGHTS), load_file(directory / _OPTIMISER)
        progress = Progress(**json.loads((directory / _PROGRESS).read_text(encoding="utf-8")))
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(weights[name])
                found = _moments_of(name, moments, tensor)
                if found:
                    optimiser.state[tensor] = found
    except (OSError, SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{directory} is damaged: {error}", "delete the directory to train afresh") from error
    return progress


def _moments_of(name: str, moments: dict[str, torch.Tensor], tensor: torch.Tensor) -> dict[str, Any]:
    """The optimiser's entries of one parameter; its step counter stays on the CPU, where AdamW keeps it."""
    found = {key.rpartition("/")[2]: value for key, value in moments.items() if key.rpartition("/")[0] == name}
    return {key: value if key == "step" else value.to(tensor.device) for key, value in found.items()}


def _states(work: Path) -> list[Path]:
    return sorted(work.glob(f"{_PREFIX}[0-9]*"))
