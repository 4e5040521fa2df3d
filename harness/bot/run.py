"""`rsg-harness bot`: puts model, store and chat together."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.bot.about import describe, leaderboard_row
from harness.bot.console import Console
from harness.bot.conversation import Conversation
from harness.bot.service import Limits, Service
from harness.bot.serving import ModelWorker
from harness.bot.store import Store
from harness.errors import UserError
from harness.evaluation.predict import Predictor
from harness.files import cache_dir

TOKEN_VARIABLE = "TELEGRAM_BOT_TOKEN"
_TOKEN = re.compile(r"\d+:[\w-]{20,}")


@dataclass(frozen=True)
class BotOptions:
    """What the command takes. See `rsg-harness bot --help`."""

    model: str | None = None
    backend: str = "torch"
    backend_args: tuple[str, ...] = ()
    execution: str = "auto"
    dtype: str = "auto"
    console: bool = False
    language: str = "ru"
    token_file: Path | None = None
    allowed: tuple[str, ...] = ()
    store: Path | None = None
    api_url: str | None = None


def run_bot(options: BotOptions, say: Callable[[str], None] = lambda text: None) -> None:
    """Serves until it is stopped.

    Raises:
        UserError: no token, a model or backend that is not to be had, a store that cannot be opened.
    """
    token = None if options.console else read_token(options.token_file)
    allowed = _user_ids(options.allowed)
    if token is not None:
        _need_telegram()
        _log_without(token)
    store = Store(options.store or cache_dir() / "bot" / ("console.sqlite" if options.console else "bot.sqlite"))
    try:
        predictor = Predictor(
            options.model, options.backend, options.backend_args, options.execution, options.dtype, say
        )
        asyncio.run(_serve(options, token, allowed, store, predictor, say))
    finally:
        store.close()


async def _serve(
    options: BotOptions,
    token: str | None,
    allowed: frozenset[int] | None,
    store: Store,
    predictor: Predictor,
    say: Callable[[str], None],
) -> None:
    # The other model of /compare: 4 bits beside the whole one, or the whole one beside 4 bits.
    other = "torch" if predictor.backend.info.name == "mlx-q4" else "mlx-q4"
    worker = ModelWorker(predictor, lambda: Predictor(options.model, other, execution=options.execution))
    row = leaderboard_row(predictor, Path("results"))
    conversation = Conversation(store, predictor.model.name, lambda language: describe(predictor, row, language))
    service = Service(store, conversation, worker, Limits())
    if token is None:
        await Console(service, store, options.language).run()
        return
    from harness.bot.telegram import TelegramChat, make_bot

    chat = TelegramChat(make_bot(token, options.api_url), service, store, allowed)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, chat.stop)
    await chat.run(say)


def read_token(path: Path | None) -> str:
    """The bot's token, from a file or the environment; never from the command line, which others can see.

    Raises:
        UserError: there is none, or it does not look like one.
    """
    if path is not None:
        try:
            token = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {path}", "name a file that holds the token alone") from error
    else:
        token = os.environ.get(TOKEN_VARIABLE, "").strip()
        if not token:
            raise UserError(
                f"{TOKEN_VARIABLE} is not set",
                "export it with the token from @BotFather, name a --token-file, or try the bot with --console",
            )
    if not _TOKEN.fullmatch(token):
        raise UserError("this is no token of a Telegram bot", "it looks like 123456789:AAE…, from @BotFather")
    return token


def _user_ids(names: tuple[str, ...]) -> frozenset[int] | None:
    for name in names:
        if not (name.isascii() and name.isdecimal()):
            raise UserError(f"--allow: {name!r} is no user id", "ids are numbers; the bot tells strangers theirs")
    return frozenset(map(int, names)) or None


def _need_telegram() -> None:
    try:
        import telegram.ext  # noqa: F401
    except ImportError as error:
        raise UserError("python-telegram-bot is not installed", "pip install 'rsg-harness[bot]'") from error


def _log_without(token: str) -> None:
    """Logs to stderr. The token is struck out, wherever a library puts it, and requests, whose address holds it, are
    not logged at all."""

    class Formatter(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return super().format(record).replace(token, "TOKEN")

    handler = logging.StreamHandler()
    handler.setFormatter(Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for name in ("httpx", "httpcore", "telegram"):
        logging.getLogger(name).setLevel(logging.WARNING)
