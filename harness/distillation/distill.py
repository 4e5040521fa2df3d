"""`rsg-harness distill`: ask a teacher for labels of train documents, or for new documents."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.data import Split, cached_split
from harness.distillation.asking import Asker
from harness.distillation.client import Teacher
from harness.distillation.deduplicate import NEW, KnownDocuments, compared_text, official_documents
from harness.distillation.lines import AnswerFile, DocumentLine, Line, TeacherSampling, Usage, read_lines
from harness.distillation.options import DistillOptions, check_options, chosen_tasks
from harness.distillation.prompts import Question, Renderer, make_questions, own_prompts_hash
from harness.distillation.report import Prices, write_report
from harness.endpoint.asking import ask_all
from harness.endpoint.options import read_key
from harness.errors import UserError
from harness.progress import Bar
from harness.tasks.prompts import ChosenTask, prompt_hash
from harness.tasks.rendering import load_tasks

# Of Russian text in tokens of Gemma and similar models, rounded down, so that estimated costs are not too low.
_CHARACTERS_PER_TOKEN = 3
_ESTIMATED_BY = 200  # prompts

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Distilled:
    """The outcome of a distillation.

    Attributes:
        report: The report for people.
        asked: Questions asked by this process.
        failures: For each question that got no answer, a text that says why.
    """

    report: str
    asked: int
    failures: list[str]

    def check_complete(self) -> None:
        """Raise UserError where questions got no answer."""
        if self.failures:
            raise UserError(
                f"{len(self.failures)} of {self.asked} items got no answer, first {self.failures[0]}",
                "the others are kept: ask these again with --resume",
            )


class _Meter:
    """Measures how fast this process gets answers, and what they cost."""

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
        cost = f", cost {self._prices.cost(self._usage):.2f}" if self._prices else ""
        return f"{self._requests / seconds:.1f} requests/s, {tokens / seconds:,.0f} tokens/s{cost}"


def distill(options: DistillOptions) -> Distilled:
    """Ask a teacher and keep its answers.

    Raises:
        UserError: The options, the data, the server or the output directory do not allow it. Earlier answers stay for
            --resume.
        KeyboardInterrupt: The user interrupted; earlier answers stay for --resume.
    """
    check_options(options)
    chosen = chosen_tasks(options)
    splits = {}
    for task in chosen:
        splits[task.file.task] = split = cached_split(task.file.task, "train", options.data)
        for warning in split.warnings:
            log.warning("%s", warning)
    questions = make_questions(chosen, splits, options)
    renderer = Renderer(chosen, load_tasks(chosen, data=options.data, split="train"), options)
    prices = None
    if options.price_input is not None and options.price_output is not None:
        prices = Prices(options.price_input, options.price_output)
    failures: list[str] = []
    with AnswerFile(options.output, _settings(options, chosen, splits, questions), options.resume) as answers:
        done: set[str] = set()
        written: list[DocumentLine] = []
        for line in read_lines(options.output):
            done.add(line.key)
            if isinstance(line, DocumentLine):
                written.append(line)
        left = [question for question in questions if question.key not in done]
        if left:
            prompts = [renderer.prompt(question) for question in _spread(left)]
            log.info("%s", _estimate(options, prompts, len(left), prices))
            meter = _Meter(options.samples, prices)
            with Bar("asking the teacher", len(questions), "item", done=len(questions) - len(left)) as bar:

                def keep(_: Question, line: Line) -> None:
                    answers.append(line)
                    meter.add(line.usage)
                    bar.advance(1, meter.text())

                failures = asyncio.run(_ask(options, chosen, left, renderer, written, keep))
            log.info("%s", meter.text())
        report = write_report(options.output, prices)
    return Distilled(report, len(left), failures)


def _settings(
    options: DistillOptions, chosen: Sequence[ChosenTask], splits: Mapping[str, Split], questions: Sequence[Question]
) -> dict[str, Any]:
    """Return everything that decides the questions and their answers; a resumed distillation must have the same."""
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
        "items": len(questions),
    }


def _sampling(options: DistillOptions) -> TeacherSampling:
    return TeacherSampling(
        api=options.api,  # type: ignore[arg-type]  # checked by check_options
        temperature=options.used_temperature(),
        max_tokens=options.used_max_tokens(),
        samples=options.samples,
        seed=options.seed,
        top_logprobs=0,
    )


def _spread(questions: Sequence[Question]) -> Sequence[Question]:
    return questions[:: max(1, len(questions) // _ESTIMATED_BY)]


def _estimate(options: DistillOptions, prompts: Sequence[str], count: int, prices: Prices | None) -> str:
    requests = count * options.samples
    usage = Usage(
        prompt_tokens=round(requests * sum(map(len, prompts)) / len(prompts) / _CHARACTERS_PER_TOKEN),
        completion_tokens=requests * options.used_max_tokens(),
    )
    cost = f", at most about {prices.cost(usage):.2f} at the given prices" if prices else ""
    return (
        f"sending {requests:,} requests to {options.teacher}: about {usage.prompt_tokens:,} prompt tokens, at most "
        f"{usage.completion_tokens:,} completion tokens{cost}"
    )


async def _ask(
    options: DistillOptions,
    chosen: Sequence[ChosenTask],
    questions: Sequence[Question],
    renderer: Renderer,
    written: Sequence[DocumentLine],
    keep: Callable[[Question, Line], None],
) -> list[str]:
    """Ask the remaining questions; return why some of them got no answer."""
    teacher = Teacher(
        options.endpoint,
        options.teacher,
        options.api,  # type: ignore[arg-type]  # checked by check_options
        read_key(options.api_key_file),
        options.timeout,
        connections=options.concurrency * options.samples,
    )
    tasks = {task.file.task: task for task in chosen}
    with_logprobs = options.kind == "labels" and options.samples == 1 and any(task.verbalizers() for task in chosen)
    async with teacher:
        shortest = min((renderer.prompt(question) for question in _spread(questions)), key=len)
        logprobs = await teacher.pick_logprobs(shortest, with_logprobs)
        if with_logprobs and not logprobs.top:
            log.info("the server gives no log-probabilities: labels are read from the answers' texts")
        asker = Asker(teacher, renderer, _sampling(options), logprobs)
        kind = options.kind
        if kind == "labels":

            async def ask(question: Question) -> Line:
                return await asker.label(question, tasks[question.task], options.rationale)

        else:
            known = _known_documents(options, tasks, written)
            numbers = itertools.count(len(written))

            async def ask(question: Question) -> Line:
                return await asker.document(question, known[question.task], kind, next(numbers))

        return await ask_all(questions, ask, keep, lambda question: question.key, options.concurrency)


def _known_documents(
    options: DistillOptions, tasks: Iterable[str], written: Sequence[DocumentLine]
) -> dict[str, KnownDocuments]:
    """Return for each task the documents that a new one must not repeat: official ones, and those kept earlier."""
    paraphrases = options.kind == "paraphrases"
    known = {task: official_documents(task, options.data, paraphrases) for task in tasks}
    for line in written:
        if line.document is not None:
            known[line.task].add(compared_text(line.task, line.document), NEW, near=not paraphrases)
    return known
