"""`rsg-harness tasks`: list the tasks and their prompts."""

from __future__ import annotations

import argparse
from typing import Any

from harness.commands.arguments import add_include_path

HELP = "list the tasks and their prompts"
DESCRIPTION = "List the tasks and their prompts."
INTERRUPTED = "interrupted"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_include_path(parser)


def call(arguments: dict[str, Any]) -> None:
    """Print a row a task."""
    from tabulate import tabulate

    from harness.tasks.prompts import task_files

    rows = [[file.name, file.full_name, ", ".join(file.prompts), file.description] for file in task_files().values()]
    print(tabulate(rows, headers=["task", "in lm-eval", "prompts (default first)", "what it asks"]))
