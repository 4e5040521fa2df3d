"""Multitask against single-task training: each task alone, with the batches that it had in a multitask training.

    python scripts/single_task.py --data path/to/official --run RUN [--tasks rcb,parus,rwsd] CHECKPOINT

CHECKPOINT is the multitask one, RUN its record over the whole validation sets. The recipe is the checkpoint's own with
one task left in it and as many steps as that task's batches fill. Prints a Markdown table of official metrics × 100.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from training_trials import train_once

from harness.models.checkpoint import read_checkpoint
from harness.records.run import read_run


def alone(recipe: dict[str, Any], task: str, batches: int) -> dict[str, Any]:
    """The recipe of one task with about this many batches."""
    steps = max(1, round(batches / recipe["batches_per_step"]))
    warmup = round(recipe["warmup_steps"] * steps / recipe["steps"])
    return {
        **recipe,
        "tasks": {task: recipe["tasks"][task]},
        "steps": steps,
        "warmup_steps": warmup,
        "evaluate_every": steps,
        "evaluate_limit": None,
        "save_every": steps,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--tasks", default="rcb,parus,rwsd")
    args = parser.parse_args()
    recipe = read_checkpoint(args.checkpoint).training["recipe"]
    together = read_run(args.run)
    log = [json.loads(line) for line in (args.checkpoint / "training_log.jsonl").read_text().splitlines()]
    print("| task | batches | alone | with all others |\n|---|---|---|---|", flush=True)
    for task in args.tasks.split(","):
        # A task with less than a share of 1 / batches_per_step has at most one batch in a step.
        batches = sum(task in entry.get("tasks", ()) for entry in log)
        entries, _ = train_once(alone(recipe, task, batches), args.data)
        figure = entries[-1]["figures"][task]["rsg"]
        print(
            f"| {task} | {batches} | {100 * figure:.1f} | {100 * (together.tasks[task].score or 0):.1f} |", flush=True
        )


if __name__ == "__main__":
    main()
