"""`rsg-harness train`: train one multitask model."""

from __future__ import annotations

import argparse
from typing import Any

from harness.commands.arguments import Repeated, add_data, add_include_path, expanded, path

HELP = "train one multitask model"
DESCRIPTION = (
    "Train one model with a head for each task, by a recipe, and write a checkpoint. Several processes or machines: "
    "accelerate launch -m harness.cli train --recipe NAME"
)
INTERRUPTED = "interrupted; the latest state is kept, continue with --resume and the same --output"
RECORDS_COMMAND = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "--recipe", type=expanded, required=True, metavar="NAME", help="a bundled recipe, or the path of a .yaml file"
    )
    parser.add_argument("--model", type=expanded, metavar="NAME", help="the base model, in place of the recipe's")
    parser.add_argument(
        "--weights",
        metavar="NAME",
        help="whole, or a backend such as mlx-q4: train an adapter that stays beside the weights as it stores them; "
        "default: the recipe's",
    )
    add_data(parser)
    parser.add_argument(
        "--start", type=path, metavar="DIR", help="continue from a checkpoint of the same model and kind of layers"
    )
    parser.add_argument("--output", type=path, metavar="DIR", help="default: results/checkpoints/RECIPE-rsg")
    parser.add_argument("--resume", action="store_true", help="continue the unfinished training to --output")
    parser.add_argument(
        "--distilled",
        type=path,
        action=Repeated,
        metavar="DIR",
        help="a teacher's labels or documents, from rsg-harness distill; repeatable",
    )
    add_include_path(parser)


def call(arguments: dict[str, Any]) -> None:
    """Train, and print where the checkpoint is."""
    from harness.training.options import TrainOptions
    from harness.training.train import train

    print(f"checkpoint: {train(TrainOptions(**arguments))}")
