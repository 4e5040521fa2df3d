"""The bot in the terminal: the same conversations, no token and no network."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from typing import TextIO

from harness.bot.events import Button, Event, Message
from harness.bot.service import Service
from harness.bot.store import Store

USER = 1  # the only user


class Console:
    """Reads lines, prints messages, and numbers the buttons.

    Args:
        service: Answers the events.
        store: The service's store.
        language: "ru" or "en"; None: as last chosen, at first Russian.
        read: Returns the next line, "" at the end of the input.
        out: Where messages are printed; None: stdout.
    """

    def __init__(
        self,
        service: Service,
        store: Store,
        language: str | None = None,
        read: Callable[[], str] = lambda: sys.stdin.readline(),
        out: TextIO | None = None,
    ) -> None:
        self._service = service
        self._store = store
        self._language = language
        self._read = read
        self._out = out or sys.stdout
        self._buttons: list[Button] = []
        self._shown = ""

    async def run(self) -> None:
        """Answer until the end of the input."""
        if self._language is not None:
            await self._service.on_disk(self._choose_language, self._language)
        try:
            await self._enter(0, "/start")
            number = 0
            while line := await self._next_line():
                number += 1
                await self._enter(number, line.strip())
        finally:
            await self._service.stop()
            await self._service.close()

    def _choose_language(self, code: str) -> None:
        self._store.know(USER)
        self._store.set_language(USER, code)

    async def _next_line(self) -> str:
        self._out.write("\n> ")
        self._out.flush()
        loop = asyncio.get_running_loop()
        arrived: asyncio.Future[str] = loop.create_future()

        def read() -> None:
            line = self._read()
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(arrived.set_result, line)

        # A daemon thread, so that Ctrl-C ends the program without an Enter.
        threading.Thread(target=read, daemon=True).start()
        line = await arrived
        if line and not sys.stdin.isatty():
            self._out.write(line)  # so that a transcript shows the questions
        return line

    async def _enter(self, number: int, line: str) -> None:
        event = Event(number, USER, "ru", text=line)
        if line.isascii() and line.isdecimal() and 0 < int(line) <= len(self._buttons):
            event = Event(number, USER, "ru", button=self._buttons[int(line) - 1].data)
        self._buttons = []
        # The numbers start again in each session: delete what an earlier session left under this one.
        await self._service.on_disk(self._store.drop_update, number)
        await self._service.on_disk(self._store.keep_updates, [(number, USER, asdict(event))], number + 1)
        await self._service.handle(event, self)
        await self._service.idle(USER)

    async def send(self, message: Message) -> int:
        """Print a message and its buttons."""
        self._shown = message.text
        self._out.write(f"\n{message.text}")
        self._end(message)
        return 0  # `edit` needs no handle here

    async def edit(self, shown: int, message: Message) -> None:
        """Print what was appended to the last message, or the whole message where it changed."""
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
