"""`rsg-harness report`: write the leaderboard as one page with charts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from harness.commands.arguments import add_results

HELP = "write results/index.html, the leaderboard as one page with charts"
DESCRIPTION = "Write index.html, the leaderboard as one page with charts, from the run records."
INTERRUPTED = "interrupted"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_results(parser)


def call(arguments: dict[str, Any]) -> None:
    """Write the page, and print its path."""
    from harness.reports.html_page import write_page

    print(write_page(arguments.get("results", Path("results"))))
