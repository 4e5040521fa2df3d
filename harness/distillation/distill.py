"""`rsg-harness distill`: train documents to a teacher's labels, or to documents that it writes."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from harness.data import Split, cached_split
from harness.distillation.ask import ask_all
from harness.distillation.client import Teacher
from harness.distillation.deduplicate import NEW, KnownDocuments, compared_text, official_documents
from harness.distillation.lines import AnswerFile, DocumentLine, Line, Sampling, Usage, read_lines
from harness.distillation.options import DistillOptions, check_options, chosen_tasks, read_key
from harness.distillation.prompts import Item, Renderer, make_items, own_prompts_hash
from harness.distillation.report import Prices, write_report
from harness.distillation.settle import Settler
from harness.errors import UserError
from harness.tasks.prompts import ChosenTask, prompt_hash
from harness.tasks.rendering import load_tasks

# Gemma's and its like's tokens of Russian text are a little longer.
_LETTERS_PER_TOKEN = 3
_ESTIMATED_BY = 200  # prompts


@dataclass(frozen=True)
class Distilled:
    """What a distillation came to.

    Attributes:
        report: for people.
        asked: items in this process.
        failures: of those that got no answer, a text each.
    """

    report: str
    asked: int
    failures: list[str]

    def check_complete(self) -> None:
        """Raises UserError where items got no answer."""
        if self.failures:
            raise UserError(
                f"{len(self.failures)} of {self.asked} items got no answer, first {self.failures[0]}",
                "the rest is kept: try these again with --resume",
            )


# Called with the number of items and of those answered before; gives a function to call after each answer, with a text
# to show beside.
Progress = Callable[[int, int], Callable[[str], None]]


class _Meter:
    """How fast this process gets answers, and what they cost."""

    def __init__(self, samples: int, prices: Prices | None) -> None:
        self._started = time.monotonic()
        self._samples, self._prices = samples, prices
        self._usage, self._requests = Usage(), 0

    def add(self, usage: Usage) -> None:
        self._usage += usage
        self._requests += self._samples

    def text(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-6)
        tokens = self._usage.prompt_tokens + self._usage.completion_tokens
        cost = f", cost {self._prices.of(self._usage):.2f}" if self._prices else ""
        return f"{self._requests / seconds:.1f} requests/s, {tokens / seconds:,.0f} tokens/s{cost}"


def distill(options: DistillOptions, say: Callable[[str], None], progress: Progress) -> Distilled:
    """Asks a teacher, and keeps what it answers.

    Args:
        options: what to ask whom.
        say: told what happens, line by line.
        progress: shows how far it is.

    Raises:
        UserError: anything that the user can mend. What was answered before stays for --resume.
        KeyboardInterrupt: the same, where the user interrupts.
    """
    check_options(options)
    chosen = chosen_tasks(options, say)
    splits = {}
    for task in chosen:
        splits[task.file.task] = split = cached_split(task.file.task, "train", options.data)
        for warning in split.warnings:
            say(f"warning: {warning}")
    items = make_items(chosen, splits, options)
    renderer = Renderer(chosen, load_tasks(chosen, data=options.data, split="train"), options)
    prices = None
    if options.price_input is not None and options.price_output is not None:
        prices = Prices(options.price_input, options.price_output)
    failures: list[str] = []
    with AnswerFile(options.output, _settings(options, chosen, splits, items), options.resume) as answers:
        done: set[str] = set()
        written: list[DocumentLine] = []
        for line in read_lines(options.output):
            done.add(line.key)
            if isinstance(line, DocumentLine):
                written.append(line)
        left = [item for item in items if item.key not in done]
        if left:
            say(_estimate(options, [renderer.prompt(item) for item in _spread(left)], len(left), prices))
            show = progress(len(items), len(items) - len(left))
            meter = _Meter(options.samples, prices)

            def keep(line: Line) -> None:
                answers.append(line)
                meter.add(line.usage)
                show(meter.text())

            failures = asyncio.run(_ask(options, chosen, left, renderer, written, keep, say))
            say(meter.text())
        report = write_report(options.output, prices)
    return Distilled(report, len(left), failures)


def _settings(
    options: DistillOptions, chosen: Sequence[ChosenTask], splits: dict[str, Split], items: Sequence[Item]
) -> dict[str, Any]:
    """Everything that decides what is asked, and how. A resumed distillation must have the same."""
    return {
        "teacher": options.teacher,
        "kind": options.kind,
        "data": {task: split.fingerprint for task, split in splits.items()},
        "prompts": {task.file.task: prompt_hash(task) for task in chosen},
        "own prompts": own_prompts_hash() if options.generate or options.rationale else None,
        "rationale": options.rationale,
        "limit": options.limit,
        "count": options.count if options.generate else None,
        "sampling": _sampling(options).model_dump(exclude={"top_logprobs"}),
        "items": len(items),
    }


def _sampling(options: DistillOptions) -> Sampling:
    return Sampling(
        api=options.api,  # type: ignore[arg-type]  # checked by check_options
        temperature=options.used_temperature(),
        max_tokens=options.used_max_tokens(),
        samples=options.samples,
        seed=options.seed,
        top_logprobs=0,
    )


def _spread(items: Sequence[Item]) -> Sequence[Item]:
    return items[:: max(1, len(items) // _ESTIMATED_BY)]


def _estimate(options: DistillOptions, prompts: Sequence[str], count: int, prices: Prices | None) -> str:
    requests = count * options.samples
    usage = Usage(
        prompt_tokens=round(requests * sum(map(len, prompts)) / len(prompts) / _LETTERS_PER_TOKEN),
        completion_tokens=requests * options.used_max_tokens(),
    )
    cost = f", at most about {prices.of(usage):.2f} at the given prices" if prices else ""
    return (
        f"asking {options.teacher} {requests:,} questions: about {usage.prompt_tokens:,} prompt tokens, at most "
        f"{usage.completion_tokens:,} completion tokens{cost}"
    )


async def _ask(
    options: DistillOptions,
    chosen: Sequence[ChosenTask],
    items: Sequence[Item],
    renderer: Renderer,
    written: Sequence[DocumentLine],
    keep: Callable[[Line], None],
    say: Callable[[str], None],
) -> list[str]:
    """Asks the items that are left. Gives what went wrong with those that got no answer."""
    teacher = Teacher(
        options.endpoint,
        options.teacher,
        options.api,  # type: ignore[arg-type]  # checked by check_options
        read_key(options.api_key_file),
        options.timeout,
        connections=options.concurrency * options.samples,
    )
    tasks = {task.file.task: task for task in chosen}
    with_logprobs = options.kind == "labels" and options.samples == 1 and any(task.words() for task in chosen)
    try:
        await teacher.model_names()
        shortest = min((renderer.prompt(item) for item in _spread(items)), key=len)
        logprobs = await teacher.pick_logprobs(shortest, with_logprobs)
        if with_logprobs and not logprobs.top:
            say("the server gives no log-probabilities: labels are read from the answers' texts")
        settler = Settler(teacher, renderer, _sampling(options), logprobs)
        if options.kind == "labels":

            async def settle(item: Item) -> Line:
                return await settler.label(item, tasks[item.task], options.rationale)

        else:
            known = _known_documents(options, tasks, written, say)
            numbers = itertools.count(len(written))

            async def settle(item: Item) -> Line:
                return await settler.document(item, known[item.task], options.kind, next(numbers))

        return await ask_all(items, settle, keep, options.concurrency)
    finally:
        await teacher.close()


def _known_documents(
    options: DistillOptions, tasks: Iterable[str], written: Sequence[DocumentLine], say: Callable[[str], None]
) -> dict[str, KnownDocuments]:
    """Task -> what a new document of it must not repeat: the official ones, and those that were kept before."""
    paraphrases = options.kind == "paraphrases"
    known = {task: official_documents(task, options.data, paraphrases, say) for task in tasks}
    for line in written:
        if line.document is not None:
            known[line.task].add(compared_text(line.task, line.document), NEW, near=not paraphrases)
    return known
