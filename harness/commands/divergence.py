"""`rsg-harness divergence`: what quantisation does to a model's whole distribution."""

from __future__ import annotations

import argparse
from typing import Any

from harness.commands.arguments import add_data, expanded, names, path

HELP = "measure what other backends do to a model's next-token distributions"
DESCRIPTION = (
    "Hold a model's distribution over the whole vocabulary on each backend against that on the first one, at every "
    "token of a corpus: bits a character, KL divergence, agreement of the likeliest token, with intervals."
)
INTERRUPTED = "interrupted; what was measured is kept, continue with --resume and the same --output"
RECORDS_COMMAND = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--model", type=expanded, metavar="NAME", help="as for run; default: best, else embedded")
    parser.add_argument(
        "--backends",
        type=names,
        metavar="NAMES",
        help="comma-separated, the reference first, with arguments after colons: mlx-q4:group_size=32 "
        "(default: torch,mlx-fp16,mlx-q8,mlx-q6,mlx-q4,mlx-q3)",
    )
    parser.add_argument("--execution", metavar="LIBRARY", help="auto, mlx or torch, as for run")
    parser.add_argument("--dtype", metavar="TYPE", help="type of the computation, as for run")
    parser.add_argument(
        "--corpus", type=expanded, metavar="TEXTS", help="a file, a directory, hub:NAME, or rsg (default): train texts"
    )
    add_data(parser, "where the texts of rsg come from: mini (default), hub, or the official archive's directory")
    parser.add_argument("--limit", type=int, metavar="N", help="this many texts of 1,000 characters (default: all)")
    parser.add_argument("--seed", type=int, metavar="N", help="of the choice of texts and intervals (default: 1234)")
    parser.add_argument("--output", type=path, metavar="DIR", help="default: results/divergence/MODEL")
    parser.add_argument("--resume", action="store_true", help="continue the unfinished measurement to --output")


def call(arguments: dict[str, Any]) -> None:
    """Measure, and print a row a backend."""
    from harness.evaluation.divergence_options import DivergenceOptions, check_divergence_options

    options = DivergenceOptions(**arguments)
    check_divergence_options(options)  # before the imports take their seconds
    from harness.evaluation.divergence import divergence
    from harness.reports.divergence import divergence_text

    record, directory = divergence(options)
    print(f"{divergence_text(record)}\n\nrecord: {directory}")
