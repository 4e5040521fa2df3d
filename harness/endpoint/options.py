"""What names a server, and the key that it takes; refused before anything is loaded or sent."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from harness.errors import UserError

KEY_VARIABLE = "OPENAI_API_KEY"
CONCURRENCY = 16  # requests at a time
TIMEOUT = 300.0  # seconds for one answer


def check_address(address: str) -> None:
    """Refuse what is no address of a server.

    Raises:
        UserError: It has no scheme or no host.
    """
    try:
        parts = urlsplit(address)
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        shown = public_address(address)
    except ValueError:  # brackets without an end, a port that is no number
        is_one, shown = False, address.rpartition("@")[2]
    if not is_one:
        raise UserError(f"--endpoint {shown!r} is no address", "it looks like http://HOST:PORT/v1")


def public_address(address: str) -> str:
    """Return an address without what may be secret: user, password and query."""
    parts = urlsplit(address)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def public_command(command: str, address: str) -> str:
    """Return a command line with the public address in place of the one that it names."""
    return shlex.join(word.replace(address, public_address(address)) for word in shlex.split(command))


def read_key(path: Path | None) -> str | None:
    """Return the API key from a file or the environment; never from the command line, which other users can see.

    Raises:
        UserError: The file cannot be read or holds no key.
    """
    if path is None:
        return os.environ.get(KEY_VARIABLE, "").strip() or None
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}", "name a file that holds nothing but the key") from error
    if not key or not key.isascii() or len(key.split()) != 1:
        raise UserError(f"{path} holds no API key", "name a file that holds nothing but the key")
    return key
