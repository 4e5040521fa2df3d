"""What a person sees while work goes on: log lines and progress bars, both on stderr.

Modules log words through `logging.getLogger(__name__)` and count work with `Bar`. Neither shows anything until
`show_output` is called; the command line does, within `restored_output`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Any

_shown = False
_library_bars_hidden = False


class Bar:
    """Counted work. Use as a context manager; leaving it ends the bar's line.

    Args:
        what: What is done: "scoring", "training".
        total: Amount of work.
        unit: What is counted: "tok", "step", "item".
        done: Amount that an earlier, interrupted process did.
    """

    def __init__(self, what: str, total: int, unit: str, done: int = 0) -> None:
        self._bar: Any = None
        if _shown:
            from tqdm import tqdm

            self._bar = tqdm(
                total=total, initial=done, desc=what, unit=f" {unit}", unit_scale=total >= 10_000, disable=False
            )

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Count `amount` more as done and show `note` beside the bar."""
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(amount)

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


def show_output(shown: bool = True) -> None:
    """Show log lines and bars in this process, or hide them (processes after the first of a launcher)."""
    global _shown, _library_bars_hidden
    # Other libraries read this when they first import tqdm; their bars would overwrite ours.
    if "TQDM_DISABLE" not in os.environ:
        os.environ["TQDM_DISABLE"] = "1"
        _library_bars_hidden = True
    _shown = shown
    root = logging.getLogger("harness")
    root.handlers[:] = [handler for handler in root.handlers if not isinstance(handler, _StderrHandler)]
    if shown:
        root.addHandler(_StderrHandler())
    root.setLevel(logging.INFO if shown else logging.ERROR)
    root.propagate = not shown


def show_library_bars() -> None:
    """Let other libraries show their bars, unless the user has hidden them. Has no effect once tqdm is imported."""
    if _library_bars_hidden:
        os.environ.pop("TQDM_DISABLE", None)


@contextlib.contextmanager
def restored_output() -> Iterator[None]:
    """Show or hide what you like while the block runs; then restore what was shown before."""
    global _shown, _library_bars_hidden
    root = logging.getLogger("harness")
    shown, hidden = _shown, _library_bars_hidden
    handlers, level, propagate = root.handlers[:], root.level, root.propagate
    try:
        yield
    finally:
        _shown, _library_bars_hidden = shown, hidden
        root.handlers[:], root.propagate = handlers, propagate
        root.setLevel(level)


def output_is_shown() -> bool:
    """Return whether this process shows log lines and bars."""
    return _shown


class _StderrHandler(logging.Handler):
    """Writes lines to stderr above any open bar; warnings say that they are warnings."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            text = f"{record.levelname.lower()}: {text}"
        try:
            write_line(text)
        except Exception:
            self.handleError(record)


def write_line(text: str) -> None:
    """Write a line to stderr without breaking an open bar."""
    if "tqdm" in sys.modules:
        from tqdm import tqdm

        tqdm.write(text, file=sys.stderr)
    else:
        print(text, file=sys.stderr)
    sys.stderr.flush()
