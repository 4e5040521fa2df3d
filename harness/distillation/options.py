"""The options of `rsg-harness distill`, and the refusal of what cannot work or must not be sent."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.endpoint.options import CONCURRENCY, TIMEOUT, check_address
from harness.errors import UserError
from harness.models.options import check_choices, check_numbers
from harness.tasks import RUSSIAN_SUPERGLUE, SPLITS, get_task
from harness.tasks.prompts import GROUPS, ChosenTask, choose

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DistillOptions:
    """The options of `rsg-harness distill`.

    Attributes:
        endpoint: Base address of the server: http://HOST:PORT/v1.
        teacher: Name of the model on the server.
        output: Directory of the answers.
        data: Source of the documents, as `run` takes it.
        tasks: Tasks or groups.
        split: Only "train" is allowed.
        limit: Documents of a task; None: all.
        prompt: Name of the prompt, or TASK=NAME pairs.
        api: "chat" or "completions".
        samples: Answers to every question; their shares become the label.
        temperature: None: what suits the work.
        max_tokens: Longest answer; None: what suits the work.
        rationale: Ask for an explanation before the answer.
        generate: "paraphrases" or "examples": ask for new documents; None: ask for labels.
        count: New documents of a task.
        concurrency: Questions in flight.
        timeout: Seconds for one answer.
        price_input: Price of a million prompt tokens, in any currency.
        price_output: Price of a million completion tokens.
        api_key_file: File that holds the API key; None: the environment variable.
        seed: Of the first sample, and of the choice of documents.
        resume: Continue the distillation in `output`.
    """

    endpoint: str
    teacher: str
    output: Path
    data: str = "mini"
    tasks: tuple[str, ...] = ("rsg",)
    split: str = "train"
    limit: int | None = None
    prompt: str | None = None
    api: str = "chat"
    samples: int = 1
    temperature: float | None = None
    max_tokens: int | None = None
    rationale: bool = False
    generate: str | None = None
    count: int = 100
    concurrency: int = CONCURRENCY
    timeout: float = TIMEOUT
    price_input: float | None = None
    price_output: float | None = None
    api_key_file: Path | None = None
    seed: int = 1234
    resume: bool = False

    @property
    def kind(self) -> Literal["labels", "paraphrases", "examples"]:
        """What the teacher is asked for."""
        return self.generate or "labels"  # type: ignore[return-value]  # checked by check_options

    def used_temperature(self) -> float:
        """Return the given temperature, else 0 for one answer and more where several or new texts are wanted."""
        if self.temperature is not None:
            return self.temperature
        if self.generate:
            return 0.9
        return 0.7 if self.samples > 1 else 0.0

    def used_max_tokens(self) -> int:
        """Return the given length, else room for a word or a name, for two sentences before it, or for a document."""
        if self.max_tokens is not None:
            return self.max_tokens
        if self.generate:
            return 512
        return 256 if self.rationale else 24


def check_options(options: DistillOptions) -> None:
    """Refuse options that cannot work, before anything is loaded or sent.

    Raises:
        UserError: Names the option and what it takes.
    """
    if options.split in SPLITS and options.split != "train":
        raise UserError(
            f"--split {options.split}: only train documents are sent to a teacher",
            "the others measure the student and must stay unseen; leave out --split",
        )
    check_choices(
        ("--split", options.split, ("train",)),
        ("--api", options.api, ("chat", "completions")),
        ("--generate", options.generate, ("paraphrases", "examples")),
    )
    check_address(options.endpoint)
    check_numbers(
        ("--limit", options.limit, 1),
        ("--samples", options.samples, 1),
        ("--max-tokens", options.max_tokens, 1),
        ("--count", options.count, 1),
        ("--concurrency", options.concurrency, 1),
        ("--temperature", options.temperature, 0.0),
        ("--timeout", options.timeout, 0.001),
        ("--price-input", options.price_input, 0.0),
        ("--price-output", options.price_output, 0.0),
    )
    if options.samples > 1 and options.used_temperature() == 0:
        raise UserError("--samples needs a --temperature above 0", "at temperature 0 all samples are the same")
    if (options.price_input is None) != (options.price_output is None):
        raise UserError("only one of two prices is given", "give --price-input and --price-output, per million tokens")
    if options.generate and (options.rationale or options.samples > 1):
        raise UserError("--generate asks for documents, not answers", "leave out --rationale and --samples")


def chosen_tasks(options: DistillOptions) -> list[ChosenTask]:
    """Return the tasks to ask about, with their generative prompts.

    A group loses the tasks that must not or need not be asked about; test sets among them are logged.

    Raises:
        UserError: Such a task is named itself, or there is no such task.
    """
    writable = [name for name in RUSSIAN_SUPERGLUE if get_task(name).writing]
    found = []
    for name in options.tasks:
        for chosen in choose([name]):
            task = get_task(chosen.file.task)
            reason = None
            if not task.is_trainable:
                reason = f"{task.name} is a test set and is never sent to a teacher"
            elif options.generate and task.writing is None:
                reason = f"{task.name} has enough documents: new ones are written only for {', '.join(writable)}"
            if reason is None:
                found.append(f"gen_{task.name}")
            elif name.strip().lower() not in GROUPS:
                raise UserError(reason, "leave it out of --tasks")
            elif not task.is_trainable:
                log.info("left out: %s", reason)
    return choose(found, options.prompt)
