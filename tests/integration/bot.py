"""A running bot for the tests: the real library, the real model, a stand-in for Telegram."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.bot.conversation import Conversation
from harness.bot.run import describe
from harness.bot.service import Limits, Service
from harness.bot.serving import ModelWorker
from harness.bot.store import Store
from harness.bot.telegram import TelegramChat, make_bot
from harness.evaluation.predict import Predictor
from tests.telegram_server import TOKEN, TelegramServer

GENEROUS = Limits(questions_a_minute=10_000)


@contextmanager
def serving(
    server: TelegramServer,
    path: Path,
    predictor: Predictor,
    *,
    quantised: Predictor | None = None,
    limits: Limits = GENEROUS,
    allowed: Collection[int] | None = None,
    capacity: int = 256,
    messages_a_second: float = 10_000,
    can_compare: bool = True,
) -> Iterator[ModelWorker]:
    """Run the bot in a thread with an event loop of its own until the block ends; then stop it as SIGTERM does."""
    worker = ModelWorker(lambda: predictor, lambda: quantised or predictor, capacity=capacity, new_tokens=24)
    ready = threading.Event()
    chats: list[tuple[asyncio.AbstractEventLoop, TelegramChat]] = []
    failures: list[BaseException] = []

    async def run() -> None:
        store = Store(path)
        conversation = Conversation(
            store,
            "tiny",
            lambda language: describe(predictor.opened, None, language),
            predictor.tasks,
            can_compare=can_compare,
            seed=0,
        )
        service = Service(store, conversation, worker, limits)
        chat = TelegramChat(make_bot(TOKEN, server.url, messages_a_second), service, store, allowed)
        chats.append((asyncio.get_running_loop(), chat))
        await chat.run(ready.set)

    def thread() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:
            failures.append(error)
            ready.set()

    running = threading.Thread(target=thread)
    running.start()
    assert ready.wait(60)
    if failures:
        raise failures[0]
    try:
        yield worker
    finally:
        loop, chat = chats[0]
        loop.call_soon_threadsafe(chat.stop)
        running.join(60)
    assert not running.is_alive()
    if failures:
        raise failures[0]
