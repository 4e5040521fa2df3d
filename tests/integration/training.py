"""A small training run for the tests: its recipe, and how to call the command in this process."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch
import yaml

from tests.integration.command import call_here

RECIPE: dict[str, Any] = {
    "frozen_layers": 3,
    "lora": {"rank": 4, "alpha": 8, "dropout": 0.1},
    "tasks": {
        "rcb": {},
        "parus": {"head": "likelihood"},
        "muserc": {"limit": 4},
        "terra": {},
        "russe": {"head": "pair", "prompt": "texts", "class_weights": [1, 2]},
        "rwsd": {},
        "danetqa": {"limit": 8},
        "rucos": {"limit": 2},
    },
    "loss": {"weights": "uncertainty"},
    "steps": 8,
    "batches_per_step": 4,
    "batch_tokens": 1536,
    "max_tokens": 2048,
    "learning_rate": 1e-3,
    "heads_learning_rate": 1e-3,
    "warmup_steps": 2,
    "evaluate_every": 4,
    "evaluate_limit": 4,
    "save_every": 2,
    "dtype": "float32",
}


def write_recipe(directory: Path, model: Path, **changes: Any) -> Path:
    """Write the small recipe with these changes; return its path."""
    path = directory / "small.yaml"
    path.write_text(yaml.safe_dump({"model": str(model), **RECIPE, **changes}), encoding="utf-8")
    return path


def call(
    environment: dict[str, str], *arguments: str | Path, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Call the command in this process, with this environment and working directory and its number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", threads)))  # OpenMP read the variable long ago
    try:
        return call_here(arguments, cwd or Path.cwd(), environment)
    finally:
        torch.set_num_threads(threads)


def steps_of(log: Path) -> list[dict[str, Any]]:
    """Return the lines of a log."""
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def losses_of(checkpoint: Path) -> list[float]:
    """Return the loss of every step."""
    return [entry["loss"] for entry in steps_of(checkpoint / "training_log.jsonl") if "loss" in entry]


def copy_files(source: Path, target: Path) -> None:
    """Copy the files of a directory, not its directories."""
    for file in source.iterdir():
        if file.is_file():
            shutil.copyfile(file, target / file.name)
