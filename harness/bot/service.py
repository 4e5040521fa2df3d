"""From an event to its reply: the same for Telegram and the terminal.

The event loop never waits for the model or the disk: each has a thread of its own. Events of one user are handled in
order, and a question to the model does not hold up the events after it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from harness.bot.conversation import Conversation
from harness.bot.events import Button, ChatJob, Event, Message, Outcome, QuestionJob
from harness.bot.serving import ModelWorker, QueueFull, Stopped, Ticket
from harness.bot.store import Store, Turn
from harness.bot.texts import Language

log = logging.getLogger(__name__)

QUIET_SECONDS = 0.8  # before "thinking" is shown: most answers are ready by then
EDIT_SECONDS = 1.5  # between two edits of a message: Telegram allows about one a second per chat


class Undeliverable(Exception):
    """The user cannot be reached: the bot is blocked, or the chat was deleted."""


class Replies(Protocol):
    """The chat with one user, where replies go."""

    async def send(self, message: Message) -> Any:
        """Show a message, and return the handle by which `edit` changes it.

        Raises:
            Undeliverable: The user cannot be reached.
        """

    async def edit(self, shown: Any, message: Message) -> None:
        """Replace a shown message.

        Raises:
            Undeliverable: The user cannot be reached.
        """


@dataclass(frozen=True)
class Limits:
    """Limits on one user's questions."""

    questions_a_minute: int = 30
    seconds: float = 90.0  # from the question to the end of its answer


class Service:
    """The bot without its chat.

    Args:
        store: From now on, this service's thread alone uses it.
        conversation: The rules, over the same store.
        worker: Runs the model.
        limits: For each user.
    """

    def __init__(self, store: Store, conversation: Conversation, worker: ModelWorker, limits: Limits) -> None:
        self._store = store
        self._conversation = conversation
        self._worker = worker
        self._limits = limits
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._turnstiles: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._under_way: dict[int, tuple[Ticket, asyncio.Task[None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._asked: defaultdict[int, deque[float]] = defaultdict(deque)

    async def on_disk(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function that uses the store, in the store's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._disk, function, *arguments)

    async def handle(self, event: Event, replies: Replies) -> None:
        """Answer an event; a question to the model is only handed in, and answered while later events are handled."""
        async with self._turnstiles[event.user]:
            try:
                await self._handle(event, replies)
            except Undeliverable:
                await self._drop(event)
            except Exception as error:  # the event stays in the store for the next start
                log.error("an event was not answered: %s", type(error).__name__)

    async def _handle(self, event: Event, replies: Replies) -> None:
        outcome: Outcome
        language: Language
        outcome, language = await self.on_disk(self._decide, event, event.user in self._under_way)
        if outcome.stops and event.user in self._under_way:
            ticket, task = self._under_way[event.user]
            self._worker.cancel(ticket)
            await task
        if outcome.forgets:
            self._asked.pop(event.user, None)
            self._worker.forget()
            await self.on_disk(self._store.wipe_log)
        if outcome.job is None:
            await self._deliver(event, replies, outcome.messages)
            return
        refusal = self._refusal(event.user, language)
        if refusal is None:
            try:
                ticket = self._worker.submit(outcome.job)
            except QueueFull:
                refusal = language.say("full")
            except Stopped:
                refusal = language.say("stopping")
        if refusal is not None:
            await self._deliver(event, replies, await self._note(event, refusal))
            return
        self._asked[event.user].append(time.monotonic())
        task = asyncio.create_task(self._answer(event, outcome.job, ticket, replies, language))
        self._under_way[event.user] = (ticket, task)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _decide(self, event: Event, under_way: bool) -> tuple[Outcome, Language]:
        """Return what follows from an event, and the user's language. Messages are stored until they are shown."""
        with self._store.transaction():
            self._store.know(event.user)
            language = self._conversation.language(event)
            outcome = self._conversation.handle(event, under_way)
            if outcome.job is None:
                self._store.set_reply(event.update, _dump(outcome.messages))
        return outcome, language

    def _refusal(self, user: int, language: Language) -> str | None:
        """Return why the user's question is not taken; None if it is."""
        if user in self._under_way:
            return language.say("busy_user")
        asked, now = self._asked[user], time.monotonic()
        while asked and asked[0] < now - 60:
            asked.popleft()
        limit = self._limits.questions_a_minute
        if len(asked) >= limit:
            return language.say("too_often", limit=limit, seconds=math.ceil(asked[0] + 60 - now))
        return None

    async def _answer(
        self, event: Event, job: QuestionJob | ChatJob, ticket: Ticket, replies: Replies, language: Language
    ) -> None:
        """Wait for the model, show its progress, and show the reply."""
        screen = _Screen(replies)
        try:
            try:
                async with asyncio.timeout(self._limits.seconds):
                    await self._watch(ticket, screen, language)
                    result = await ticket.future
                messages = await self.on_disk(self._conclude, event, job, result)
            except TimeoutError:
                self._worker.cancel(ticket)
                messages = await self._note(event, language.say("timeout", seconds=round(self._limits.seconds)))
            except Stopped:
                messages = await self._note(event, language.say("stopping"))
            except asyncio.CancelledError:
                if not ticket.cancelled:
                    raise
                # The user cancelled, and the reply to that says so.
                if screen.shown is not None:
                    await screen.show(Message(f"{ticket.text} …" if ticket.text else language.say("cancelled")))
                await self._drop(event)
                return
            except Undeliverable:
                raise
            except Exception as error:
                log.error("no answer: %s", type(error).__name__)
                messages = await self._note(event, language.say("failed"))
            # The user may ask again while the reply is being shown, which can take seconds.
            del self._under_way[event.user]
            await screen.show(messages[0])
            await self._deliver(event, replies, messages[1:])
        except Undeliverable:
            self._worker.cancel(ticket)
            await self._drop(event)
        except Exception as error:  # the reply stays in the store for the next start
            log.error("a reply was not shown: %s", type(error).__name__)
        finally:
            if self._under_way.get(event.user, (None,))[0] is ticket:
                del self._under_way[event.user]

    async def _watch(self, ticket: Ticket, screen: _Screen, language: Language) -> None:
        """Show the place in the queue, then the growing text, until the answer is ready."""
        pause = QUIET_SECONDS
        while not (await asyncio.wait({ticket.future}, timeout=pause))[0]:
            pause = EDIT_SECONDS
            place = self._worker.place(ticket)
            await screen.show(Message(ticket.text or language.say("queued" if place else "thinking", place=place)))

    def _conclude(self, event: Event, job: QuestionJob | ChatJob, result: Any) -> tuple[Message, ...]:
        """Store the reply and, in a dialogue, the turn: together or not at all."""
        with self._store.transaction():
            if isinstance(job, QuestionJob):
                messages = self._conversation.answered(event, job, result)
            else:
                messages = self._conversation.continued(event, job, result)
                if job.dialogue is not None:
                    self._store.add_turn(event.user, job.dialogue, Turn(job.question, result))
            self._store.set_reply(event.update, _dump(messages))
        return messages

    async def _note(self, event: Event, text: str) -> tuple[Message, ...]:
        """Store a text as the reply to the event."""
        messages = (Message(text),)
        await self.on_disk(self._store.set_reply, event.update, _dump(messages))
        return messages

    async def _deliver(self, event: Event, replies: Replies, messages: Sequence[Message]) -> None:
        """Show messages, then forget the event."""
        for message in messages:
            await replies.send(message)
        await self._drop(event)

    async def _drop(self, event: Event) -> None:
        await self.on_disk(self._store.drop_update, event.update)

    async def deliver_stored(self, event: Event, reply: str, replies: Replies) -> None:
        """Send a reply that an earlier process had ready."""
        try:
            await self._deliver(event, replies, _load(reply))
        except Undeliverable:
            await self._drop(event)

    async def stop(self) -> None:
        """Take no more questions, let the running answer end, and tell the users who wait."""
        self._worker.stop()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def close(self) -> None:
        """Wait for the model's thread and close the store. Nothing may be called afterwards."""
        await asyncio.to_thread(self._worker.join)
        await self.on_disk(self._store.close)
        self._disk.shutdown()

    async def idle(self, user: int) -> None:
        """Wait until no question of the user is under way."""
        if user in self._under_way:
            await asyncio.wait({self._under_way[user][1]})


class _Screen:
    """The one message that shows the progress of an answer, and then the answer."""

    def __init__(self, replies: Replies) -> None:
        self.shown: Any = None
        self._replies = replies
        self._message: Message | None = None

    async def show(self, message: Message) -> None:
        """Send the message, or edit the one that was sent."""
        if message == self._message:
            return
        if self.shown is None:
            self.shown = await self._replies.send(message)
        else:
            await self._replies.edit(self.shown, message)
        self._message = message


def _dump(messages: Sequence[Message]) -> str:
    return json.dumps([asdict(message) for message in messages], ensure_ascii=False)


def _load(reply: str) -> list[Message]:
    return [
        Message(one["text"], tuple(tuple(Button(**button) for button in row) for row in one["buttons"]))
        for one in json.loads(reply)
    ]
