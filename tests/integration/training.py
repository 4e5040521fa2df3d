"""A small training run for the tests: its recipe, and how to start it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.integration.command import RSG_HARNESS

RECIPE: dict[str, Any] = {
    "frozen_layers": 3,
    "lora": {"rank": 4, "alpha": 8, "dropout": 0.1},
    "tasks": {
        "rcb": {},
        "parus": {"head": "likelihood"},
        "muserc": {"limit": 4},
        "terra": {},
        "russe": {"class_weights": [1, 2]},
        "rwsd": {},
        "danetqa": {"limit": 8},
        "rucos": {"limit": 2},
    },
    "loss": {"weights": "uncertainty"},
    "steps": 8,
    "batches_per_step": 4,
    "batch_tokens": 2048,
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
    path = directory / "small.yaml"
    path.write_text(yaml.safe_dump({"model": str(model), **RECIPE, **changes}), encoding="utf-8")
    return path


def call(environment: dict[str, str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [RSG_HARNESS, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=240
    )


def steps_of(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def copy_files(source: Path, target: Path) -> None:
    for file in source.iterdir():
        if file.is_file():
            shutil.copyfile(file, target / file.name)
