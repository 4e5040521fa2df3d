"""Ask many questions at a time, and keep every answer at once."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

from harness.endpoint.connection import NoAnswer
from harness.errors import UserError

# After so many failures in a row, each with all its retries, the server is taken to be gone.
_GIVE_UP = 5

Question = TypeVar("Question")
Found = TypeVar("Found")


async def ask_all(
    questions: Sequence[Question],
    ask: Callable[[Question], Awaitable[Found]],
    keep: Callable[[Question, Found], None],
    named: Callable[[Question], str],
    concurrency: int,
) -> list[str]:
    """Ask all questions, at most `concurrency` of them at a time.

    Args:
        questions: In the order in which they are asked.
        ask: Asks one question.
        keep: Called with each answer in the same step of the event loop that completes it, so no answer is lost.
        named: The question's name in messages.
        concurrency: Questions in flight.

    Returns:
        For each question that got no answer, a text that says why.

    Raises:
        UserError: The server does not answer any more. Earlier answers are kept.
        KeyboardInterrupt: The process got SIGTERM or SIGINT. Earlier answers are kept.
    """
    waiting: Iterator[Question] = iter(questions)
    failures: list[str] = []
    in_a_row = 0

    async def work() -> None:
        nonlocal in_a_row
        for question in waiting:
            try:
                found = await ask(question)
            except NoAnswer as failure:
                failures.append(f"{named(question)}: {failure}")
                if not failure.is_question:
                    in_a_row += 1
                if in_a_row >= _GIVE_UP:
                    raise UserError(
                        f"{in_a_row} questions in a row got no answer; the last one, {failures[-1]}",
                        "earlier answers are kept: check the server or lower --concurrency, then continue with "
                        "--resume",
                    ) from failure
                continue
            in_a_row = 0
            keep(question, found)

    with _interrupted_by_sigterm():
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(concurrency, len(questions))):
                    group.create_task(work())
        except BaseExceptionGroup as errors:
            for error in errors.exceptions:
                if isinstance(error, UserError):
                    raise error from None
            raise
    return failures


class _interrupted_by_sigterm:
    """Inside the block, SIGTERM ends the current task as Ctrl-C does."""

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._terminated = False

        def terminate() -> None:
            self._terminated = True
            task.cancel()

        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
        if self._terminated and kind is asyncio.CancelledError:
            raise KeyboardInterrupt
