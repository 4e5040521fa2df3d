"""`rsg-harness submit`: write the official archive from runs over the test split."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from harness.commands.arguments import path

HELP = "write the official archive from runs over the test split"
DESCRIPTION = "Write the official archive from runs over the test split."
INTERRUPTED = "interrupted"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "runs", nargs="+", type=path, metavar="RUN", help="directory of a run; several may share the tasks"
    )
    parser.add_argument("--output", type=path, metavar="ZIP", help="default: submission.zip")


def call(arguments: dict[str, Any]) -> None:
    """Write the archive, and print what it holds."""
    from harness.reports.submission import write_submission

    for line in write_submission(arguments["runs"], arguments.get("output", Path("submission.zip"))):
        print(line)
