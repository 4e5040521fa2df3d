"""What passes between the chat, the rules of the conversation, and the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from harness.bot.store import Turn

TURNS_TOGETHER = 8  # turns at the start of a long dialogue that leave the model's prompt at once


@dataclass(frozen=True)
class Event:
    """A message or a pressed button. `text` or `button` is None; both are None where a user sent anything else."""

    update: int
    user: int
    language: str | None
    text: str | None = None
    button: str | None = None


@dataclass(frozen=True)
class Button:
    """A button under a message; `data`, at most 64 bytes, comes back when it is pressed."""

    label: str
    data: str


@dataclass(frozen=True)
class Message:
    """A message of plain text: nothing in it is markup, whoever wrote it."""

    text: str
    buttons: tuple[tuple[Button, ...], ...] = ()


@dataclass(frozen=True)
class QuestionJob:
    """A question of a task.

    Attributes:
        task: The task's name.
        fields: Field -> text, in the order of the task's fields.
        compare: Both models answer.
        gold: The right answer, where the question is an example.
        state: The conversation's state when the question was asked. The answer ends it.
    """

    task: str
    fields: dict[str, str]
    compare: bool
    gold: str | None
    state: dict[str, Any]


@dataclass(frozen=True)
class ChatJob:
    """A question to the language model, with the earlier turns of its dialogue where it belongs to one."""

    question: str
    dialogue: int | None
    history: tuple[Turn, ...]
    state: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What follows from an event: messages or a job.

    Attributes:
        stops: The user's running job is to be cancelled.
        forgets: The user's data were deleted.
    """

    messages: tuple[Message, ...] = ()
    job: QuestionJob | ChatJob | None = None
    stops: bool = False
    forgets: bool = False
