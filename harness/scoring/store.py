"""What a run has scored so far, kept so that a killed run continues where it was.

SQLite in the run's directory. A unit of the plan is written whole or not at all, in a transaction that is on the disk
before the next unit starts; the plan's fingerprint guards against continuing other work.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from harness.errors import UserError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS run (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS scores (
    plan TEXT NOT NULL, unit INTEGER NOT NULL, logprobs BLOB NOT NULL, greedy BLOB NOT NULL, PRIMARY KEY (plan, unit)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS texts (
    plan TEXT NOT NULL, item INTEGER NOT NULL, text TEXT NOT NULL, PRIMARY KEY (plan, item)
) WITHOUT ROWID;
"""


class ProgressStore:
    """An open store. Use as a context manager.

    Args:
        path: The SQLite file, made if missing.

    Raises:
        UserError: The file is damaged, or the directory cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._db = sqlite3.connect(path)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise UserError(f"cannot open {path}: {error}", "delete the file to start this run again") from error

    def __enter__(self) -> ProgressStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    def add_seconds(self, seconds: float) -> None:
        """Add scoring time, so that a resumed run knows the time of all its parts."""
        self._write("INSERT OR REPLACE INTO run VALUES ('seconds', ?)", [(repr(self.seconds() + seconds),)])

    def seconds(self) -> float:
        rows = self._read("SELECT value FROM run WHERE name = 'seconds'")
        return float(rows[0][0]) if rows else 0.0

    def scored_units(self, plan: str) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Return unit number -> (float64 log-probabilities, bool greedy flags), in the order of its predictions."""
        rows = self._read("SELECT unit, logprobs, greedy FROM scores WHERE plan = ?", plan)
        return {unit: (np.frombuffer(logprobs), np.frombuffer(greedy, dtype=bool)) for unit, logprobs, greedy in rows}

    def put_units(self, plan: str, scored: dict[int, tuple[np.ndarray, np.ndarray]]) -> None:
        self._write(
            "INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?)",
            [
                (plan, unit, logprobs.astype(np.float64).tobytes(), greedy.astype(bool).tobytes())
                for unit, (logprobs, greedy) in scored.items()
            ],
        )

    def absorb(self, other: Path) -> None:
        """Take over what another process of an earlier start scored, and delete its file."""
        with ProgressStore(other) as store:
            self._write("INSERT OR IGNORE INTO scores VALUES (?, ?, ?, ?)", store._read("SELECT * FROM scores"))
            self._write("INSERT OR IGNORE INTO texts VALUES (?, ?, ?)", store._read("SELECT * FROM texts"))
        for file in other.parent.glob(f"{other.name}*"):
            file.unlink()

    def texts(self, plan: str) -> dict[int, str]:
        """Return item number -> generated text."""
        return dict(self._read("SELECT item, text FROM texts WHERE plan = ?", plan))

    def put_texts(self, plan: str, texts: dict[int, str]) -> None:
        self._write(
            "INSERT OR REPLACE INTO texts VALUES (?, ?, ?)", [(plan, item, text) for item, text in texts.items()]
        )

    def _read(self, query: str, *values: str) -> list[Any]:
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise UserError(f"{self.path} is damaged: {error}", "delete the file to start this run again") from error

    def _write(self, statement: str, rows: Iterable[tuple[Any, ...]]) -> None:
        try:
            with self._db:
                self._db.executemany(statement, rows)
        except sqlite3.Error as error:
            raise UserError(
                f"cannot save what was scored to {self.path}: {error}",
                "nothing scored before is lost: free some space and continue with --resume",
            ) from error
