"""`rsg-harness tasks`: list the tasks and their prompts, or find one of lm-eval's."""

from __future__ import annotations

import argparse
from typing import Any

from harness.commands.arguments import add_include_path

HELP = "list the tasks and their prompts"
DESCRIPTION = "List the tasks and their prompts, or find tasks of lm-eval's by a part of their name."
INTERRUPTED = "interrupted"
# Found tasks that are shown; the others are counted.
SHOWN = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_include_path(parser)
    parser.add_argument("--search", metavar="TEXT", help="find lm-eval's tasks whose name or directory holds this text")


def call(arguments: dict[str, Any]) -> None:
    """Print a row a task."""
    from tabulate import tabulate

    if text := arguments.get("search"):
        from harness.tasks.lm_eval_index import lm_eval_tasks, search

        found = search(lm_eval_tasks(), text)
        shown = [[task.name, task.kind, task.path or f"{len(task.tags)} tasks"] for task in found[:SHOWN]]
        print(tabulate(shown, headers=["name", "kind", "in lm_eval/tasks"]) if shown else f"no task of {text!r}")
        if len(found) > SHOWN:
            print(f"… and {len(found) - SHOWN} more")
        return
    from harness.tasks.prompts import task_files

    rows = [[file.name, file.full_name, ", ".join(file.prompts), file.description] for file in task_files().values()]
    print(tabulate(rows, headers=["task", "in lm-eval", "prompts (default first)", "what it asks"]))
