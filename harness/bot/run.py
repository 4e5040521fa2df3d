"""`rsg-harness bot`: put model, store and chat together."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
from pathlib import Path

from adapters.mlx_weights import quantization_of, read_config
from harness.bot.console import Console
from harness.bot.conversation import Conversation
from harness.bot.options import BotOptions
from harness.bot.service import Limits, Service
from harness.bot.serving import ModelWorker
from harness.bot.store import Store
from harness.bot.texts import Language
from harness.errors import UserError
from harness.evaluation.predict import Predictor
from harness.files import cache_dir
from harness.models.open import OpenModel, open_model, provide_model
from harness.models.options import ModelOptions
from harness.progress import show_output
from harness.reports.leaderboard import Row, build_leaderboard
from harness.reports.tables import estimate_text
from harness.tasks import get_task

TOKEN_VARIABLE = "TELEGRAM_BOT_TOKEN"
_TOKEN = re.compile(r"\d+:[\w-]{20,}")


def run_bot(options: BotOptions) -> None:
    """Serve until the bot is stopped.

    Raises:
        UserError: There is no token, the model or backend is not available, or the store cannot be opened.
    """
    token = None if options.console else read_token(options.token_file)
    allowed = _user_ids(options.allowed)
    if token is not None:
        _need_telegram()
        log_without(token)
    store = Store(options.store or cache_dir() / "bot" / ("console.sqlite" if options.console else "bot.sqlite"))
    try:
        local = provide_model(options)
        worker = ModelWorker(
            lambda: Predictor(open_model(options, local)),
            lambda: Predictor(open_model(_other_options(options, worker.predictor.opened), local)),
        )
        show_output(False)  # a bar for each question would overwrite the chat
        asyncio.run(_serve(options, token, allowed, store, worker))
    finally:
        store.close()


async def _serve(
    options: BotOptions, token: str | None, allowed: frozenset[int] | None, store: Store, worker: ModelWorker
) -> None:
    opened = worker.predictor.opened
    row = leaderboard_row(opened, Path("results"))
    conversation = Conversation(
        store,
        opened.name,
        lambda language: describe(opened, row, language),
        worker.predictor.tasks,
        # Beside quantised weights there is no original to load.
        can_compare=quantization_of(read_config(opened.local.path)) is None,
    )
    service = Service(store, conversation, worker, Limits())
    if token is None:
        await Console(service, store, options.language).run()
        return
    from harness.bot.telegram import TelegramChat, make_bot

    chat = TelegramChat(make_bot(token, options.api_url), service, store, allowed)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, chat.stop)
    await chat.run()


def _other_options(options: ModelOptions, opened: OpenModel) -> ModelOptions:
    """Return the options of the second model of /compare: 4 bits beside the original, or the original beside 4 bits."""
    other = "torch" if opened.backend.info.name == "mlx-q4" else "mlx-q4"
    return ModelOptions(
        options.model, other, execution=options.execution, apply_chat_template=options.apply_chat_template
    )


def read_token(path: Path | None) -> str:
    """Return the bot's token, from a file or the environment; the command line is visible to other users.

    Raises:
        UserError: There is none, or it does not look like one.
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
        raise UserError("this is not the token of a Telegram bot", "it looks like 123456789:AAE…, from @BotFather")
    return token


def _user_ids(names: tuple[str, ...]) -> frozenset[int] | None:
    for name in names:
        if not (name.isascii() and name.isdecimal()):
            raise UserError(f"--allow: {name!r} is no user id", "ids are numbers; the bot tells users theirs")
    return frozenset(map(int, names)) or None


def _need_telegram() -> None:
    try:
        import telegram.ext  # noqa: F401
    except ImportError as error:
        raise UserError("python-telegram-bot is not installed", "pip install 'rsg-harness[bot]'") from error


def log_without(token: str) -> None:
    """Log to stderr with the time, in place of the command's plain lines and bars.

    The token is struck out wherever a library writes it, and requests, whose addresses hold it, are not logged.
    """

    class Formatter(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return super().format(record).replace(token, "TOKEN")

    handler = logging.StreamHandler()
    handler.setFormatter(Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in ("httpx", "httpcore", "telegram"):
        logging.getLogger(name).setLevel(logging.WARNING)
    show_output(False)
    logging.getLogger("harness").setLevel(logging.INFO)


def leaderboard_row(opened: OpenModel, results: Path) -> Row | None:
    """Return the leaderboard's row of this model on this backend, over the most official documents; None without one.

    Args:
        opened: The model.
        results: The directory of all results.
    """
    if not (results / "runs").is_dir():
        return None
    try:
        rows = build_leaderboard(results).rows
    except UserError:
        return None
    local = opened.local
    own = [
        row
        for row in rows
        if row.group == "rsg"
        and (row.model.name, row.model.sha256, row.backend) == (local.name, local.fingerprint, opened.backend.info.name)
        and row.mean is not None
    ]
    return max(
        own, key=lambda row: (row.data.source == "official", sum(run.documents for run in row.runs)), default=None
    )


def describe(opened: OpenModel, row: Row | None, language: Language) -> str:
    """Return the text of /model: the model that answers, and its scores on the leaderboard."""
    info = opened.backend.info
    scores = language.say("no_scores")
    if row is not None and row.mean is not None:
        limit = language.say("limit", limit=row.data.limit) if row.data.limit else ""
        data = language.say("data", source=language.say(row.data.source), limit=limit)
        score = estimate_text(row.mean, row.mean_stderr)  # the mean of all nine tasks is the score
        key = "partial_score" if row.score is None else "score"
        head = language.say(key, data=data, count=len(row.tasks), score=score)
        tasks = [
            f"{get_task(name).title}: {estimate_text(task.score, task.stderr)}" for name, task in row.tasks.items()
        ]
        scores = "\n".join([head, "", *tasks])
    return language.say(
        "model", name=opened.name, backend=info.name, weights=info.weights,
        execution=info.execution, device=info.device, dtype=info.dtype, scores=scores,
    )  # fmt: skip
