"""`rsg-harness doctor`: tell what this machine can do, and what is missing."""

from __future__ import annotations

import argparse
from typing import Any

HELP = "tell what this machine can do, and what is missing"
DESCRIPTION = "Tell what this machine can do, and what is missing."
INTERRUPTED = "interrupted"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: the command has no arguments."""


def call(arguments: dict[str, Any]) -> None:
    """Print the report."""
    from harness.doctor import report

    print(report())
