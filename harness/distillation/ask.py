"""Asks many things at a time, and hands every answer over the moment it is there."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence

from harness.distillation.client import TeacherFailure
from harness.distillation.lines import Line
from harness.distillation.prompts import Item
from harness.errors import UserError

# Failures in a row, each after all its retries, that mean the server is gone rather than a question is bad.
_GIVE_UP = 5
_QUESTION_IS_BAD = (400, 413, 422)  # too long, most often


async def ask_all(
    items: Sequence[Item],
    settle: Callable[[Item], Awaitable[Line]],
    keep: Callable[[Line], None],
    concurrency: int,
) -> list[str]:
    """Asks all items, at most `concurrency` of them at a time.

    Args:
        items: in the order in which they are asked.
        settle: asks one, and makes its line.
        keep: takes a line. Nothing can come between an answer and this.
        concurrency: items in flight.

    Returns:
        What went wrong with the items that got no answer, a text each.

    Raises:
        UserError: nothing more can be asked. What was answered is kept.
        KeyboardInterrupt: SIGTERM, as SIGINT does by itself. What was answered is kept.
    """
    waiting: Iterator[Item] = iter(items)
    failures: list[str] = []
    in_a_row = 0

    async def work() -> None:
        nonlocal in_a_row
        for item in waiting:
            try:
                line = await settle(item)
            except TeacherFailure as failure:
                failures.append(f"{item.key}: {failure}")
                if failure.status not in _QUESTION_IS_BAD:
                    in_a_row += 1
                if in_a_row >= _GIVE_UP:
                    raise UserError(
                        f"{in_a_row} questions in a row got no answer; the last one, {failures[-1]}",
                        "what was answered is kept: see to the server, or lower --concurrency, and go on with --resume",
                    ) from failure
                continue
            in_a_row = 0
            keep(line)

    with _interrupted_by_sigterm():
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(concurrency, len(items))):
                    group.create_task(work())
        except BaseExceptionGroup as errors:
            for error in errors.exceptions:
                if isinstance(error, UserError):
                    raise error from None
            raise
    return failures


class _interrupted_by_sigterm:
    """Inside, SIGTERM ends the current task as Ctrl-C does."""

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
