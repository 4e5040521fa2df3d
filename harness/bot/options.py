"""The options of `rsg-harness bot`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.models.options import ModelOptions


@dataclass(frozen=True)
class BotOptions(ModelOptions):
    """The options of `rsg-harness bot`.

    Attributes:
        console: Serve in the terminal, without Telegram.
        language: The console's: "ru" or "en"; None: as last chosen with /language, at first Russian.
        token_file: Holds the bot's token; None: the environment does.
        allowed: Ids of the users who may ask; empty: everybody.
        store: The file of the dialogues; None: one in the cache directory.
        api_url: A Bot API server other than Telegram's.
        include_path: Directories with tasks of the user's own.
    """

    console: bool = False
    language: str | None = None
    token_file: Path | None = None
    allowed: tuple[str, ...] = ()
    store: Path | None = None
    api_url: str | None = None
    include_path: tuple[Path, ...] = ()
