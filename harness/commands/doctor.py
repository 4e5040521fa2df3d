"""`rsg-harness doctor`: tell what this machine can do, and what is missing."""

from __future__ import annotations

import argparse
from typing import Any

from harness.commands.arguments import expanded, path
from harness.errors import UserError

HELP = "tell what this machine can do, and what is missing"
DESCRIPTION = (
    "Tell what this machine can do, and what is missing. With --check, compute small random models on every backend "
    "and device, and hold the numbers against float32 on the CPU."
)
INTERRUPTED = "interrupted"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--check", action="store_true", help="compute on every backend, and compare the numbers")
    parser.add_argument("--model", type=expanded, metavar="NAME", help="with --check: check this model too")
    parser.add_argument("--json", type=path, metavar="FILE", help="with --check: write the results there too, to send")


def call(arguments: dict[str, Any]) -> None:
    """Print the report, or the results of the check."""
    if not arguments.get("check"):
        if needless := [name for name in ("model", "json") if name in arguments]:
            raise UserError(f"--{needless[0]} goes with --check", "add --check")
        from harness.doctor import report

        print(report())
        return
    from harness.device_check import check_devices, checks_table, write_checks

    results = check_devices(arguments.get("model"))
    print(checks_table(results))
    if "json" in arguments:
        write_checks(arguments["json"], results)
    run = [result for result in results if not result.not_run]
    wrong = [result for result in run if result.problem]
    if wrong:
        raise UserError(
            f"{len(wrong)} of {len(run)} checks failed, the first on {wrong[0].backend}: {wrong[0].problem}",
            "do not trust these backends on this machine; please report it, with the file of --json",
        )
    print(f"All {len(run)} checks passed.")
