"""The bot in Telegram, by python-telegram-bot.

This uses the library's Bot and rate limiter, not its Application: Application confirms an update to Telegram before the
update is handled, so a killed process would lose what it had just fetched. Here an update is stored first.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import asdict
from typing import Any

from telegram import BotCommand, InlineKeyboardButton, InlineKeyboardMarkup, LinkPreviewOptions, Update
from telegram.constants import ChatType, MessageLimit
from telegram.error import BadRequest, Conflict, Forbidden, InvalidToken, NetworkError, RetryAfter, TelegramError
from telegram.ext import AIORateLimiter, ExtBot

from harness.bot.events import Event, Message
from harness.bot.service import Service, Undeliverable
from harness.bot.store import PendingUpdate, Store
from harness.bot.texts import LANGUAGES, default_language
from harness.errors import UserError

log = logging.getLogger(__name__)

POLL_SECONDS = 25  # Telegram keeps a request for updates open for so long
MAX_LENGTH = int(MessageLimit.MAX_TEXT_LENGTH)  # UTF-16 units
ATTEMPTS = 10
LONGEST_PAUSE = 30.0  # seconds between two attempts
STOP_SECONDS = 60.0  # the running answers may take when the bot is stopped
_NO_PREVIEW = LinkPreviewOptions(is_disabled=True)


class PatientLimiter(AIORateLimiter):
    """Keeps to Telegram's limits, and retries after failures of the network or of Telegram.

    A request whose response was lost may have been carried out, so a message can arrive twice; none is lost.
    """

    async def process_request(
        self,
        callback: Callable[..., Coroutine[Any, Any, Any]],
        args: Any,
        kwargs: dict[str, Any],
        endpoint: str,
        data: dict[str, Any],
        rate_limit_args: int | None,
    ) -> Any:
        """Carry out a request, with retries."""
        for attempt in range(ATTEMPTS):
            try:
                return await super().process_request(callback, args, kwargs, endpoint, data, rate_limit_args)
            except BadRequest:  # the library calls it a NetworkError, but it is our own mistake: do not retry
                raise
            except NetworkError as error:
                if attempt == ATTEMPTS - 1:
                    raise
                log.warning("%s: %s, retrying", endpoint, type(error).__name__)
                await asyncio.sleep(pause(attempt))
        raise AssertionError("unreachable")


def pause(attempt: int) -> float:
    """Return the seconds to wait before another attempt: doubled each time up to a limit, with some jitter."""
    return min(LONGEST_PAUSE, 0.5 * 2**attempt) * random.uniform(0.8, 1.2)


def make_bot(token: str, api_url: str | None = None, messages_a_second: float = 30) -> ExtBot[Any]:
    """Return a bot that keeps to Telegram's limits.

    Args:
        token: From BotFather.
        api_url: Address of another Bot API server; None: Telegram's.
        messages_a_second: To all chats together; Telegram allows 30.
    """
    limiter = PatientLimiter(overall_max_rate=messages_a_second, max_retries=ATTEMPTS)
    if api_url is None:
        return ExtBot(token, rate_limiter=limiter)
    return ExtBot(token, base_url=f"{api_url.rstrip('/')}/bot", rate_limiter=limiter)


class TelegramChat:
    """The bot's side of all chats.

    Args:
        bot: Not initialised yet.
        service: Answers the events.
        store: The service's store.
        allowed: Ids of the users who are answered; None: everybody.
    """

    def __init__(
        self, bot: ExtBot[Any], service: Service, store: Store, allowed: Collection[int] | None = None
    ) -> None:
        self._bot = bot
        self._service = service
        self._store = store
        self._allowed = allowed
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Answer until `stop` is called; then let the running answers end and tell the users who wait.

        Args:
            on_ready: Called once, before the first update is fetched.

        Raises:
            UserError: Telegram does not know the token, or another process uses it.
        """
        try:
            await self._initialize()
            async with self._bot:
                await self._introduce()
                log.info("@%s answers; Ctrl-C stops it", self._bot.username)
                on_ready()
                await self._serve()
        except InvalidToken as error:  # its text holds the token
            raise UserError("Telegram does not know this token", "copy it again from @BotFather") from error
        except Conflict as error:
            raise UserError("another process asks Telegram for this bot's messages", "stop that one first") from error

    def stop(self) -> None:
        """End `run`; call it in the event loop of `run`."""
        self._stop.set()

    async def _initialize(self) -> None:
        """Log in. Wait for the network: a bot that starts with its machine must not give up."""
        for attempt in itertools.count():
            try:
                await self._bot.initialize()
                return
            except InvalidToken:
                raise
            except NetworkError as error:
                log.warning("no connection yet: %s", type(error).__name__)
                if await self._stopped_within(pause(min(attempt, 10))):
                    raise UserError("stopped before Telegram could be reached", "check the network") from error

    async def _introduce(self) -> None:
        """Give Telegram the menu of commands in each language; English is the default of Telegram's other languages."""
        await self._bot.delete_webhook()  # while one is set, updates cannot be fetched
        for code, language in LANGUAGES.items():
            commands = [BotCommand(name, text) for name, text in language.commands.items()]
            await self._bot.set_my_commands(commands, language_code=None if code == "en" else code)

    async def _serve(self) -> None:
        """Answer what an earlier process left, then what arrives."""
        for one in await self._service.on_disk(self._store.pending_updates):
            self._start(self._take_up(one))
        polling = asyncio.create_task(self._poll())
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait({polling, stopping}, return_when=asyncio.FIRST_COMPLETED)
        polling.cancel()
        stopping.cancel()
        failure = (await asyncio.gather(polling, return_exceptions=True))[0]
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._service.stop()
                await asyncio.gather(*self._tasks)
        except TimeoutError:
            log.warning("some answers stay for the next start")
        await self._service.close()
        if isinstance(failure, Exception):
            raise failure

    async def _poll(self) -> None:
        offset: int | None = None
        attempt = 0
        while True:
            try:
                updates = await self._bot.get_updates(
                    offset=offset, timeout=POLL_SECONDS, allowed_updates=["message", "callback_query"]
                )
            except (Conflict, InvalidToken, Forbidden):
                raise
            except RetryAfter as error:
                await asyncio.sleep(float(error._retry_after.total_seconds()))
                continue
            except TelegramError as error:
                log.warning("getUpdates: %s, retrying", type(error).__name__)
                await asyncio.sleep(pause(attempt))
                attempt += 1
                continue
            attempt = 0
            # The request with this offset told Telegram that all updates before it had arrived.
            await self._receive(updates, offset)
            if updates:
                offset = updates[-1].update_id + 1

    async def _receive(self, updates: Sequence[Update], confirmed: int | None) -> None:
        events = [(event, update) for update in updates if (event := to_event(update)) is not None]
        allowed = [(event, update) for event, update in events if self._allowed is None or event.user in self._allowed]
        kept = [(event.update, event.user, asdict(event)) for event, _ in allowed]
        new = set(await self._service.on_disk(self._store.keep_updates, kept, confirmed))
        for event, update in events:
            if self._allowed is not None and event.user not in self._allowed:
                self._start(self._turn_away(event))
            elif event.update in new:
                self._start(self._service.handle(event, _Chat(self._bot, event.user)))
            if update.callback_query is not None:
                self._start(self._acknowledge(update.callback_query.id))

    async def _take_up(self, one: PendingUpdate) -> None:
        event = Event(**one.body)
        chat = _Chat(self._bot, event.user)
        if one.reply is not None:
            await self._service.deliver_stored(event, one.reply, chat)
        else:
            await self._service.handle(event, chat)

    async def _turn_away(self, event: Event) -> None:
        """Tell a user who is not allowed, and of whom nothing is stored."""
        try:
            text = default_language(event.language).say("not_allowed", user=event.user)
            await _Chat(self._bot, event.user).send(Message(text))
        except (Undeliverable, TelegramError) as error:
            log.info("a user who is not allowed was not told: %s", type(error).__name__)

    async def _acknowledge(self, query: str) -> None:
        """End the waiting animation on a pressed button."""
        try:
            await self._bot.answer_callback_query(query)
        except TelegramError as error:
            log.info("a button was not acknowledged: %s", type(error).__name__)

    async def _stopped_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await self._stop.wait()
        except TimeoutError:
            return False

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Chat:
    """The chat with one user; it satisfies `Replies`."""

    def __init__(self, bot: ExtBot[Any], user: int) -> None:
        self._bot = bot
        self._user = user

    async def send(self, message: Message) -> int:
        *parts, last = split_text(message.text)
        try:
            for part in parts:
                await self._bot.send_message(self._user, part, link_preview_options=_NO_PREVIEW)
            sent = await self._bot.send_message(
                self._user, last, link_preview_options=_NO_PREVIEW, reply_markup=_keyboard(message)
            )
        except (Forbidden, BadRequest) as error:
            raise Undeliverable from error
        return sent.message_id

    async def edit(self, shown: int, message: Message) -> None:
        first, *rest = split_text(message.text)
        try:
            await self._bot.edit_message_text(
                first,
                chat_id=self._user,
                message_id=shown,
                link_preview_options=_NO_PREVIEW,
                reply_markup=None if rest else _keyboard(message),
            )
        except BadRequest as error:
            # "Not modified": an earlier attempt succeeded, and its response was lost. Else the message was deleted.
            if "not modified" not in error.message:
                await self.send(message)
                return
        except Forbidden as error:
            raise Undeliverable from error
        if rest:
            await self.send(Message("\n".join(rest), message.buttons))


def to_event(update: Update) -> Event | None:
    """Return the event that an update holds; None for updates that are not answered, such as those of groups."""
    query, message = update.callback_query, update.message
    user, chat = update.effective_user, update.effective_chat
    if user is None or chat is None or chat.type != ChatType.PRIVATE:
        return None
    if query is not None:
        return Event(update.update_id, user.id, user.language_code, button=query.data or "")
    if message is not None:
        return Event(update.update_id, user.id, user.language_code, text=message.text)
    return None


def split_text(text: str, limit: int = MAX_LENGTH) -> list[str]:
    """Split a text into parts that Telegram takes as one message each, at line breaks or spaces where there are any.

    Args:
        text: Not empty.
        limit: In UTF-16 units, as Telegram counts.
    """
    parts = []
    while _units(text) > limit:
        end = min(len(text), limit)
        while _units(text[:end]) > limit:
            end -= 1
        cut = max(text.rfind("\n", 1, end), text.rfind(" ", end // 2, end))
        if cut <= 0:
            cut = end
        parts.append(text[:cut])
        text = text[cut:].lstrip()
    return [*parts, text] if text else parts


def _units(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


def _keyboard(message: Message) -> InlineKeyboardMarkup | None:
    if not message.buttons:
        return None
    rows = [[InlineKeyboardButton(one.label, callback_data=one.data) for one in row] for row in message.buttons]
    return InlineKeyboardMarkup(rows)
