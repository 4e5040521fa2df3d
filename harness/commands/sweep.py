"""`rsg-harness sweep`: evaluate a model on several backends."""

from __future__ import annotations

import argparse
from typing import Any

from harness.commands.arguments import add_evaluation, add_model, expanded, names, path

HELP = "evaluate a model on several backends and compare them with the first"
DESCRIPTION = "Run one evaluation on several backends and print a table: what each costs in quality, memory and time."
INTERRUPTED = "interrupted; what was scored is kept, continue with --resume and the same --output"
RECORDS_COMMAND = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    model = parser.add_argument_group("model")
    add_model(model)
    model.add_argument(
        "--backends",
        type=names,
        metavar="NAMES",
        help="comma-separated, with arguments after colons: mlx-q4:group_size=32 "
        "(default: torch,mlx-fp16,mlx-q8,mlx-q6,mlx-q4,mlx-q3)",
    )
    work = add_evaluation(parser)
    work.add_argument(
        "--corpus",
        type=expanded,
        metavar="TEXTS",
        help="measure the backends' divergence from the first too, on these texts, as `divergence` takes them",
    )
    work.add_argument("--corpus-limit", type=int, metavar="N", help="this many texts of the corpus (default: all)")
    work.add_argument(
        "--output", type=path, metavar="PREFIX", help="PREFIX-BACKEND; default: results/runs/DATE-MODEL-BACKEND"
    )
    work.add_argument("--resume", action="store_true", help="continue the unfinished sweep to --output")


def call(arguments: dict[str, Any]) -> None:
    """Evaluate on every backend, and print a row each."""
    from harness.evaluation.options import SweepOptions
    from harness.evaluation.sweep import sweep, sweep_text

    rows = sweep(SweepOptions(**arguments))
    if rows:
        print(sweep_text(rows))
