"""`rsg-harness run`: evaluate a model."""

from __future__ import annotations

import argparse
from typing import Any

from harness.commands.arguments import add_backend, add_connection, add_evaluation, add_model, path

HELP = "evaluate a model"
DESCRIPTION = "Evaluate a model on Russian SuperGLUE and write a record."
EPILOG = """\
examples:
  rsg-harness run                                                  the embedded model on the mini set
  rsg-harness run --backend mlx-q4 --model google/gemma-3-1b-it --data hub
  rsg-harness run --data path/to/official --tasks terra,rcb --limit 200 --num-fewshot 2
  rsg-harness run --endpoint http://HOST:PORT/v1 --model NAME --tasks rsg_gen
  rsg-harness run --output DIR --resume                            continue a killed run
"""
INTERRUPTED = "interrupted; what was scored is kept, continue with --resume"
RECORDS_COMMAND = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    model = parser.add_argument_group("model")
    add_model(model)
    add_backend(model)
    add_connection(
        parser.add_argument_group(
            "model behind a server",
            "vLLM, SGLang, llama.cpp, mlx_lm.server and others. --model is its name there (default: the only one).\n"
            "--apply-chat-template on asks by the chat API, off by the completions API; auto by the chat API,\n"
            "unless a task needs log-probabilities of given answers, as those of rsg do: vLLM and SGLang give them.",
        )
    )
    work = add_evaluation(parser)
    work.add_argument("--output", type=path, metavar="DIR", help="default: results/runs/DATE-MODEL-BACKEND")
    work.add_argument(
        "--resume", action="store_true", help="continue the unfinished run in --output, or the latest unfinished one"
    )


def call(arguments: dict[str, Any]) -> None:
    """Evaluate, and print the scores."""
    from harness.evaluation.options import RunOptions, check_run_options

    options = RunOptions(**arguments)
    check_run_options(options)  # before the imports take their seconds
    from harness.evaluation.run import run
    from harness.processes import started_processes
    from harness.reports.tables import run_table

    record, directory = run(options)
    if started_processes().is_first:
        print(run_table(record))
        print(f"record: {directory}")
