"""`rsg-harness compare`: tell whether the second of two runs is really worse."""

from __future__ import annotations

import argparse
from typing import Any

from harness.commands.arguments import add_include_path, path

HELP = "tell whether the second of two runs is really worse"
DESCRIPTION = (
    "Compare two runs over the same documents and prompts: paired differences with intervals, exact tests, flipped "
    "answers."
)
INTERRUPTED = "interrupted"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("before", type=path, metavar="RUN_A", help="directory of a finished run")
    parser.add_argument("after", type=path, metavar="RUN_B", help="directory of another one")
    parser.add_argument("--flips", type=int, metavar="N", help="show this many flipped documents a task (default: 0)")
    parser.add_argument(
        "--across-prompts", action="store_true", help="the prompts may differ: compare each model as it was asked"
    )
    add_include_path(parser)


def call(arguments: dict[str, Any]) -> None:
    """Compare, and print the differences."""
    from harness.reports.compare import compare, comparison_text

    found = compare(arguments["before"], arguments["after"], across_prompts=arguments.get("across_prompts", False))
    print(comparison_text(found, arguments.get("flips", 0)))
