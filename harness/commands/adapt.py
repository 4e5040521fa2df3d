"""`rsg-harness adapt`: fit a model's vocabulary to Russian."""

from __future__ import annotations

import argparse
from typing import Any

from harness.commands.arguments import Repeated, add_data, expanded, path

HELP = "fit a model's vocabulary to Russian"
DESCRIPTION = (
    "Extend a model's vocabulary with Russian tokens, drop the tokens that texts do not use, or both, and measure what "
    "that changed."
)
INTERRUPTED = "interrupted; the latest state of pre-training, if it had one, is kept: continue with --resume"
RECORDS_COMMAND = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--model", type=expanded, metavar="NAME", help="as for run; default: embedded")
    parser.add_argument(
        "--corpus",
        dest="corpora",
        type=expanded,
        action=Repeated,
        metavar="TEXTS",
        help="a file, a directory, hub:NAME or rsg (train texts of --data); repeatable, the first one is measured on",
    )
    parser.add_argument("--analyse", action="store_true", help="only tell what a vocabulary would save")
    parser.add_argument("--new-tokens", type=int, metavar="N", help="learn this many from the corpora")
    parser.add_argument("--prune", action="store_true", help="drop tokens that the corpora do not use")
    parser.add_argument(
        "--min-count", type=int, metavar="N", help="for --prune: keep tokens that are used this often (default: 1)"
    )
    parser.add_argument(
        "--row-steps", type=int, metavar="N", help="steps of pre-training of the new tokens' rows (default: 0)"
    )
    parser.add_argument(
        "--lora-steps", type=int, metavar="N", help="steps after them of LoRA and the rows together (default: 0)"
    )
    add_data(parser, "as for run (default: mini): whose train texts `rsg` means")
    parser.add_argument("--output", type=path, metavar="DIR", help="the directory to write; needed without --analyse")
    parser.add_argument("--resume", action="store_true", help="continue the unfinished pre-training to --output")


def call(arguments: dict[str, Any]) -> None:
    """Analyse or adapt, and print tables of what a vocabulary would save or did change."""
    from harness.adaptation.options import AdaptOptions, check_adapt_options

    only_analysed = arguments.pop("analyse", False)
    options = AdaptOptions(**arguments)
    if not only_analysed:
        check_adapt_options(options)  # before the imports take their seconds
    from harness.adaptation.adapt import adapt, analyse, before_and_after

    if only_analysed:
        print(analyse(options))
        return
    adapted = adapt(options)
    print(before_and_after(adapted))
    print(f"model: {adapted.directory}")
