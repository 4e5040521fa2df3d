"""`rsg-harness distill`: let a larger model label train documents, or write new ones."""

from __future__ import annotations

import argparse
from typing import Any

from harness.commands.arguments import add_connection, add_data, names, path

HELP = "let a larger model label train documents, or write new ones"
DESCRIPTION = (
    "Ask a teacher behind any OpenAI-compatible server (vLLM, llama.cpp, mlx_lm.server) about train documents and keep "
    "its labels, soft where the server gives log-probabilities, for train --distilled. Validation, test and LiDiRus "
    "documents are never sent. The API key comes from the environment (OPENAI_API_KEY) or a file."
)
INTERRUPTED = "interrupted; answers are kept, continue with --resume"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    teacher = parser.add_argument_group("teacher")
    add_connection(teacher, required=True)
    teacher.add_argument("--teacher", required=True, metavar="NAME", help="the model's name there")
    teacher.add_argument("--api", metavar="NAME", help="chat (default), or completions for base models")
    teacher.add_argument("--price-input", type=float, metavar="N", help="per million prompt tokens")
    teacher.add_argument("--price-output", type=float, metavar="N", help="per million completion tokens")
    data = parser.add_argument_group("questions")
    add_data(data)
    data.add_argument("--tasks", type=names, metavar="NAMES", help="comma-separated; default: all but lidirus")
    data.add_argument("--split", metavar="NAME", help="train, and no other")
    data.add_argument("--limit", type=int, metavar="N", help="this many documents a task, evenly sampled by the seed")
    data.add_argument("--prompt", metavar="NAME", help="a prompt of rsg_gen: NAME, or gen_TASK=NAME,gen_TASK=NAME")
    data.add_argument(
        "--rationale", action="store_true", help="ask for a short explanation before the answer, and keep it"
    )
    data.add_argument(
        "--generate",
        metavar="KIND",
        help="in place of labels, new documents for rcb, parus, rwsd: paraphrases of train documents, or examples",
    )
    data.add_argument("--count", type=int, metavar="N", help="new documents a task (default: 100)")
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument(
        "--samples", type=int, metavar="N", help="answers an item (default: 1); their shares become its soft label"
    )
    sampling.add_argument(
        "--temperature", type=float, metavar="T", help="default: 0; 0.7 for several samples, 0.9 for --generate"
    )
    sampling.add_argument(
        "--max-tokens",
        type=int,
        metavar="N",
        help="of an answer (default: 24; 256 with --rationale, 512 for --generate)",
    )
    sampling.add_argument("--seed", type=int, metavar="N", help="default: 1234")
    work = parser.add_argument_group("work")
    work.add_argument("--output", type=path, required=True, metavar="DIR", help="missing or empty")
    work.add_argument("--resume", action="store_true", help="continue what --output holds; what failed is asked again")


def call(arguments: dict[str, Any]) -> None:
    """Ask the teacher, and print what came of it."""
    from harness.distillation.distill import distill
    from harness.distillation.options import DistillOptions

    distilled = distill(DistillOptions(**arguments))
    print(distilled.report)
    distilled.check_complete()
