"""What a distillation is asked to do, and the refusal of what cannot work or must not be sent."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from harness.data import SPLITS
from harness.errors import UserError, nearest_hint
from harness.tasks.prompts import GROUPS, ChosenTask, choose

KEY_VARIABLE = "OPENAI_API_KEY"
SMALL_TASKS = ("rcb", "parus", "rwsd")
_TEST_SET = "lidirus"


@dataclass(frozen=True)
class DistillOptions:
    """What the user asked for; see `rsg-harness distill --help`."""

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
    concurrency: int = 16
    timeout: float = 300.0
    price_input: float | None = None
    price_output: float | None = None
    api_key_file: Path | None = None
    seed: int = 1234
    resume: bool = False

    @property
    def kind(self) -> Literal["labels", "paraphrases", "examples"]:
        return self.generate or "labels"  # type: ignore[return-value]  # checked by check_options

    def used_temperature(self) -> float:
        """The given one; else 0 for one answer, more where several or new texts are wanted."""
        if self.temperature is not None:
            return self.temperature
        if self.generate:
            return 0.9
        return 0.7 if self.samples > 1 else 0.0

    def used_max_tokens(self) -> int:
        """The given one; else room for a word or a name, for two sentences before it, or for a document."""
        if self.max_tokens is not None:
            return self.max_tokens
        if self.generate:
            return 512
        return 256 if self.rationale else 24


def check_options(options: DistillOptions) -> None:
    """Refuses what cannot work before anything is loaded or sent.

    Raises:
        UserError: says which option, and what it takes.
    """
    if options.split in SPLITS and options.split != "train":
        raise UserError(
            f"--split {options.split}: only train documents are sent to a teacher",
            "the others measure the student, and must stay unseen; leave out --split",
        )
    for name, value, known in (
        ("--split", options.split, ("train",)),
        ("--api", options.api, ("chat", "completions")),
        ("--generate", options.generate, ("paraphrases", "examples")),
    ):
        if value is not None and value not in known:
            raise UserError(f"{name} {value!r} is unknown", nearest_hint(value, known, "it takes"))
    address = urlsplit(options.endpoint)
    if address.scheme not in ("http", "https") or not address.netloc:
        raise UserError(f"--endpoint {options.endpoint!r} is no address", "it looks like http://HOST:PORT/v1")
    for name, number, least in (
        ("--limit", options.limit, 1),
        ("--samples", options.samples, 1),
        ("--max-tokens", options.max_tokens, 1),
        ("--count", options.count, 1),
        ("--concurrency", options.concurrency, 1),
        ("--temperature", options.temperature, 0.0),
        ("--timeout", options.timeout, 0.001),
        ("--price-input", options.price_input, 0.0),
        ("--price-output", options.price_output, 0.0),
    ):
        if number is not None and (number < least or not math.isfinite(number)):
            raise UserError(f"{name} {number} makes no sense", f"give {least} or more, or leave it out")
    if options.samples > 1 and options.used_temperature() == 0:
        raise UserError("--samples needs a --temperature above 0", "without it all of them are the same")
    if (options.price_input is None) != (options.price_output is None):
        raise UserError("only one of two prices is given", "give --price-input and --price-output, per million tokens")
    if options.generate and (options.rationale or options.samples > 1):
        raise UserError("--generate asks for documents, not answers", "leave out --rationale and --samples")


def chosen_tasks(options: DistillOptions, say: Callable[[str], None]) -> list[ChosenTask]:
    """The tasks that are asked about, with their generative prompts. What may not be asked about is left out of a
    group, and said.

    Raises:
        UserError: such a task is named itself, or there is no such task.
    """
    allowed = SMALL_TASKS if options.generate else None
    found = []
    for name in options.tasks:
        for chosen in choose([name]):
            task = chosen.file.task
            reason = None
            if task == _TEST_SET:
                reason = "lidirus is a test set, and is never sent to a teacher"
            elif allowed and task not in allowed:
                reason = f"{task} has documents enough: they are written for {', '.join(allowed)} alone"
            if reason is None:
                found.append(f"gen_{task}")
            elif name.strip().lower() not in GROUPS:
                raise UserError(reason, "leave it out of --tasks")
            elif task == _TEST_SET:
                say(f"left out: {reason}")
    return choose(found, options.prompt)


def read_key(path: Path | None) -> str | None:
    """The API key, from a file or the environment; never from the command line, which others can see.

    Raises:
        UserError: the file cannot be read or is empty.
    """
    if path is None:
        return os.environ.get(KEY_VARIABLE, "").strip() or None
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}", "name a file that holds the key alone") from error
    if not key or not key.isascii() or len(key.split()) != 1:
        raise UserError(f"{path} holds no API key", "name a file that holds the key alone")
    return key
