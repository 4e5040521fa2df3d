"""`rsg-harness bot`: try a model in a chat."""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

from harness.commands.arguments import add_backend, add_include_path, add_model, names, path

HELP = "try a model in a chat: Telegram, or the terminal"
DESCRIPTION = (
    "Serve a model in Telegram: questions of the tasks with probabilities, and free conversation. The token comes "
    "from the environment (TELEGRAM_BOT_TOKEN) or a file."
)
INTERRUPTED = "interrupted"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    model = parser.add_argument_group("model")
    add_model(model)
    add_backend(model)
    add_include_path(model)
    chat = parser.add_argument_group("chat")
    chat.add_argument("--console", action="store_true", help="the same bot in the terminal: no token, no network")
    chat.add_argument("--language", choices=("ru", "en"), help="of --console (default: as last chosen, else ru)")
    chat.add_argument("--token-file", type=path, metavar="FILE", help="holds the token; default: TELEGRAM_BOT_TOKEN")
    chat.add_argument(
        "--allow",
        dest="allowed",
        type=names,
        metavar="IDS",
        help="comma-separated ids of the users who may ask (default: everybody)",
    )
    chat.add_argument(
        "--store",
        type=path,
        metavar="FILE",
        help="keeps the dialogues; default: bot/bot.sqlite in the cache directory, console.sqlite with --console",
    )
    chat.add_argument("--api-url", metavar="URL", help="a Bot API server of your own (default: Telegram's)")


def call(arguments: dict[str, Any]) -> None:
    """Serve until the bot is stopped."""
    from harness.bot.options import BotOptions
    from harness.bot.run import run_bot

    with contextlib.suppress(KeyboardInterrupt):  # how one leaves the console
        run_bot(BotOptions(**arguments))
