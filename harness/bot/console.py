"""The bot in the terminal: the same conversations, no token and no network."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from typing import TextIO

from harness.bot.conversation import Button, Event, Message
from harness.bot.service import Service
from harness.bot.store import Store

USER = 1  # the one user there is


class Console:
    """Lines in, messages out. Buttons have numbers.

    Args:
        service: that answers.
        store: of the service.
        language: of the texts: ru, en.
        read: gives the next line, empty at the end.
        out: where messages go.
    """

    def __init__(
        self,
        service: Service,
        store: Store,
        language: str = "ru",
        read: Callable[[], str] = lambda: sys.stdin.readline(),
        out: TextIO = sys.stdout,
    ) -> None:
        self._service = service
        self._store = store
        self._language = language
        self._read = read
        self._out = out
        self._buttons: list[Button] = []
        self._shown = ""

    async def run(self) -> None:
        """Until the end of the input."""
        try:
            await self._enter(0, "/start")
            number = 0
            while line := await self._next_line():
                number += 1
                await self._enter(number, line.strip())
        finally:
            await self._service.stop()
            await self._service.close()

    async def _next_line(self) -> str:
        self._out.write("\n> ")
        self._out.flush()
        loop = asyncio.get_running_loop()
        arrived: asyncio.Future[str] = loop.create_future()

        def read() -> None:
            line = self._read()
            with contextlib.suppress(RuntimeError):  # the loop has gone
                loop.call_soon_threadsafe(arrived.set_result, line)

        # A thread that nobody waits for at the end: Ctrl-C must not need an Enter.
        threading.Thread(target=read, daemon=True).start()
        line = await arrived
        if line and not sys.stdin.isatty():
            self._out.write(line)  # so that a transcript shows what was asked
        return line

    async def _enter(self, number: int, line: str) -> None:
        event = Event(number, USER, self._language, text=line)
        if line.isascii() and line.isdecimal() and 0 < int(line) <= len(self._buttons):
            event = Event(number, USER, self._language, button=self._buttons[int(line) - 1].data)
        self._buttons = []
        # Updates have numbers of their own here, so what an earlier session left must not stand in the way.
        await self._service.on_disk(self._store.drop_update, number)
        await self._service.on_disk(self._store.keep_updates, [(number, USER, asdict(event))], number + 1)
        await self._service.handle(event, self)
        await self._service.idle(USER)

    async def send(self, message: Message) -> int:
        """Prints a message and its buttons."""
        self._shown = message.text
        self._out.write(f"\n{message.text}")
        self._end(message)
        return 0  # there is one place to write at

    async def edit(self, shown: int, message: Message) -> None:
        """Prints what a message has grown by, or all of it where it became another one."""
        if message.text.startswith(self._shown):
            self._out.write(message.text[len(self._shown) :])
        else:
            self._out.write(f"\n{message.text}")
        self._shown = message.text
        self._end(message)

    def _end(self, message: Message) -> None:
        for row in message.buttons:
            labels = []
            for button in row:
                self._buttons.append(button)
                labels.append(f"[{len(self._buttons)}] {button.label}")
            self._out.write("\n" + "   ".join(labels))
        self._out.flush()
