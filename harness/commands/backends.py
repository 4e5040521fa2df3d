"""`rsg-harness backends`: list the backends, and which of them run here."""

from __future__ import annotations

import argparse
from typing import Any

HELP = "list the backends, and which of them run here"
DESCRIPTION = "List the backends, and which of them run here."
INTERRUPTED = "interrupted"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: the command has no arguments."""


def call(arguments: dict[str, Any]) -> None:
    """Print a row a backend."""
    from tabulate import tabulate

    from harness.doctor import backend_rows

    print(tabulate(backend_rows(), headers=["backend", "here", "what it is"]))
