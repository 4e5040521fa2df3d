"""What each choice of a recipe gives: short trainings that differ from a base in one thing.

    python scripts/training_trials.py --data path/to/official --output trials.json [--only NAME,NAME]

Every trial is a run of the real command on the embedded model. Finished trials are kept in the output and not run
again. Prints the table of all as Markdown: the mean loss of the last third of the steps, and official metrics × 100 on
validation documents. No document comes twice in so few steps, so the loss is that of documents not yet seen, and all
trials see the same ones in the same order: it tells trials apart that the figures of 50 documents do not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

BASE: dict[str, Any] = {
    "model": "embedded",
    "frozen_layers": 12,
    "lora": {"rank": 16, "alpha": 32},
    "tasks": {"rcb": {}, "muserc": {"limit": 120}, "terra": {}, "danetqa": {}},
    "steps": 24,
    "batches_per_step": 4,
    "learning_rate": 3e-4,
    "heads_learning_rate": 3e-4,
    "warmup_steps": 3,
    "evaluate_every": 1000,
    "evaluate_limit": 50,
    "save_every": 1000,
}


def tasks(**changes: Any) -> dict[str, Any]:
    """The base's tasks, each with the same further settings."""
    return {task: {**part, **changes} for task, part in BASE["tasks"].items()}


def prompts(**names: str) -> dict[str, Any]:
    return {task: {**part, "prompt": names[task]} for task, part in BASE["tasks"].items()}


TRIALS: dict[str, dict[str, Any]] = {
    "base": {},
    "base, another seed": {"seed": 4321},
    "heads only (18 layers frozen)": {"frozen_layers": 18},
    "8 layers frozen": {"frozen_layers": 8},
    "no layer frozen": {"frozen_layers": 0},
    "LoRA rank 4": {"lora": {"rank": 4, "alpha": 8}},
    "LoRA rank 64": {"lora": {"rank": 64, "alpha": 128}},
    "LoRA in attention only": {"lora": {"rank": 16, "alpha": 32, "targets": ["q_proj", "k_proj", "v_proj", "o_proj"]}},
    "layers in full, rate 3e-5": {"lora": None, "learning_rate": 3e-5},
    "learning rate 1e-4": {"learning_rate": 1e-4},
    "learning rate 1e-3": {"learning_rate": 1e-3},
    "heads' rate 3e-5": {"heads_learning_rate": 3e-5},
    "heads start at zero": {"heads_start": "zero"},
    "likelihood in place of heads": {"tasks": tasks(head="likelihood")},
    "other prompts": {"tasks": prompts(rcb="statement", muserc="variant", terra="truth", danetqa="according")},
    "weights by size": {"loss": {"weights": "size"}},
    "learned weights": {"loss": {"weights": "uncertainty"}},
    "batches by size": {"sampling_temperature": 1.0},
}


def train_once(recipe: dict[str, Any], data: str) -> tuple[list[dict[str, Any]], float]:
    """Trains by a recipe with the real command. Gives the lines of its log and the seconds."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "trial.yaml"
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        output = Path(scratch) / "out"
        command = Path(sys.executable).with_name("rsg-harness")
        started = time.monotonic()
        subprocess.run(
            [command, "train", "--recipe", path, "--data", data, "--output", output],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        seconds = time.monotonic() - started
        return [json.loads(line) for line in (output / "training_log.jsonl").read_text().splitlines()], seconds


def run_trial(changes: dict[str, Any], data: str) -> dict[str, Any]:
    """Trains, and gives the last figures, the loss of the last third and the seconds."""
    entries, seconds = train_once({**BASE, **changes}, data)
    losses = [entry["loss"] for entry in entries if "loss" in entry]
    figures = {task: parts["rsg"] for task, parts in entries[-1]["figures"].items()}
    third = losses[-max(1, len(losses) // 3) :]
    return {"mean": entries[-1]["mean"], "figures": figures, "loss": sum(third) / len(third), "seconds": seconds}


def table(done: dict[str, Any]) -> str:
    names = list(BASE["tasks"])
    lines = [f"| trial | loss | {' | '.join(names)} | mean | seconds |", "|---|" + "---|" * (len(names) + 3)]
    for trial, found in done.items():
        figures = " | ".join(f"{100 * found['figures'][task]:.1f}" for task in names)
        lines.append(
            f"| {trial} | {found['loss']:.3f} | {figures} | {100 * found['mean']:.1f} | {found['seconds']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", help="names of trials, separated by semicolons")
    args = parser.parse_args()
    done: dict[str, Any] = json.loads(args.output.read_text()) if args.output.exists() else {}
    chosen = args.only.split(";") if args.only else list(TRIALS)
    for name in chosen:
        if name not in done:
            done[name] = run_trial(TRIALS[name], args.data)
            args.output.write_text(json.dumps(done, indent=1), encoding="utf-8")
            print(f"{name}: {100 * done[name]['mean']:.1f}", file=sys.stderr, flush=True)
    print(table(done))


if __name__ == "__main__":
    main()
