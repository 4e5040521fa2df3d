"""Measure how soon the bot's worker answers a short question (TERRa, bundled documents), and how many a second.

    python scripts/bot_serving.py [--model best] [--backend torch] [--questions 192] [--turns 12]

Prints p50 and p95 of single questions at idle, then the throughput one by one and with all of them waiting at once;
then, for the turns of a conversation, the time to its first words and to its whole answer.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from itertools import cycle, islice

import numpy as np

from harness.bot.events import ChatJob, QuestionJob
from harness.bot.serving import ModelWorker, label
from harness.bot.store import Turn
from harness.data import cached_split
from harness.evaluation.predict import Predictor
from harness.models.open import open_model
from harness.models.options import ModelOptions

WARM_UP = 4


async def measure(worker: ModelWorker, jobs: list[QuestionJob]) -> None:
    for job in jobs[:WARM_UP]:
        await worker.submit(job).future
    seconds = []
    for job in jobs:
        started = time.monotonic()
        await worker.submit(job).future
        seconds.append(time.monotonic() - started)
    p50, p95 = np.percentile(seconds, [50, 95])
    one_by_one = len(jobs) / sum(seconds)
    started = time.monotonic()
    await asyncio.gather(*(worker.submit(job).future for job in jobs))
    together = len(jobs) / (time.monotonic() - started)
    print(f"{len(jobs)} TERRa questions, {label(worker.predictor)}")
    print(f"at idle: p50 {1000 * p50:.0f} ms, p95 {1000 * p95:.0f} ms, {one_by_one:.1f} questions a second one by one")
    print(f"all at once: {together:.1f} questions a second, {together / one_by_one:.1f} times as many")


async def converse(worker: ModelWorker, questions: list[str]) -> None:
    """Ask one question after the other in one dialogue."""
    history: list[Turn] = []
    first, whole = [], []
    for question in questions:
        started = time.monotonic()
        ticket = worker.submit(ChatJob(question, 1, tuple(history), {}))
        while not ticket.text and not ticket.future.done():
            await asyncio.sleep(0.002)
        first.append(1000 * (time.monotonic() - started))
        history.append(Turn(question, await ticket.future))
        whole.append(1000 * (time.monotonic() - started))
    print(
        f"{len(questions)} turns of a conversation: first words after {first[0]:.0f} ms, later turns "
        f"{np.median(first[1:]):.0f} ms, at most {max(first[1:]):.0f}; whole answers {np.median(whole):.0f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--questions", type=int, default=192)
    parser.add_argument("--turns", type=int, default=12)
    args = parser.parse_args()
    rows = [document.row() for document in cached_split("terra", "validation", "mini").documents]
    questions = []
    for number, row in enumerate(islice(cycle(rows), args.questions)):
        # A number before each premise, because the planner computes equal questions once.
        questions.append({"premise": f"{number}. {row['premise']}", "hypothesis": row["hypothesis"]})
    jobs = [QuestionJob("terra", fields, False, None, {}) for fields in questions]
    worker = ModelWorker(
        lambda: Predictor(open_model(ModelOptions(args.model, args.backend))),
        lambda: worker.predictor,
        capacity=args.questions,
    )
    asyncio.run(measure(worker, jobs))
    asyncio.run(converse(worker, [f"{row['premise']} {row['hypothesis']}" for row in islice(cycle(rows), args.turns)]))
    worker.stop()
    worker.join()


if __name__ == "__main__":
    main()
