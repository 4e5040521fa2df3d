"""`rsg-harness leaderboard`: write the leaderboard from the run records."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from harness.commands.arguments import add_results

HELP = "write results/leaderboard.md and .json from the run records"
DESCRIPTION = "Write leaderboard.md and leaderboard.json from the run records."
INTERRUPTED = "interrupted"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_results(parser)


def call(arguments: dict[str, Any]) -> None:
    """Write both files, and print their paths."""
    from harness.reports.leaderboard_page import write_leaderboard

    for path in write_leaderboard(arguments.get("results", Path("results"))):
        print(path)
