"""What the bot remembers, in one SQLite file: users, their dialogues, and updates without a reply.

The standard library's sqlite3 and a schema with a version: four tables and a dozen statements need no object mapper.
Of a user who asks single questions, only the state of the conversation and the chosen language are kept.

An update from Telegram is stored before Telegram is told that it arrived. Its text is deleted when its reply is on the
screen. So a bot that was killed answers what was asked, and sends a reply that was ready without computing it again.
The update's number stays until Telegram cannot send it again.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UserError

# Entry n takes a store from schema version n to n + 1.
_MIGRATIONS = (
    """
    CREATE TABLE users (id INTEGER PRIMARY KEY, state TEXT NOT NULL DEFAULT '{}');
    CREATE TABLE dialogues (
        id INTEGER PRIMARY KEY,
        user_id INTEGER NOT NULL REFERENCES users(id) ON DELETE CASCADE,
        name TEXT NOT NULL,
        UNIQUE (user_id, name)
    );
    CREATE TABLE turns (
        id INTEGER PRIMARY KEY,
        dialogue_id INTEGER NOT NULL REFERENCES dialogues(id) ON DELETE CASCADE,
        question TEXT NOT NULL,
        answer TEXT NOT NULL
    );
    CREATE INDEX turns_of_dialogue ON turns(dialogue_id, id);
    CREATE TABLE updates (
        id INTEGER PRIMARY KEY,
        user_id INTEGER NOT NULL REFERENCES users(id) ON DELETE CASCADE,
        body TEXT,
        reply TEXT
    );
    """,
    "ALTER TABLE users ADD COLUMN language TEXT;",
)


@dataclass(frozen=True)
class Dialogue:
    """A named dialogue of one user."""

    id: int
    name: str
    turns: int


@dataclass(frozen=True)
class Turn:
    """A question and its answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class PendingUpdate:
    """An update whose reply is not on the screen yet; `reply` is that reply where it is ready."""

    body: dict[str, Any]
    reply: str | None


class NameTaken(Exception):
    """The user has a dialogue of this name."""


class Store:
    """The open file. One thread at a time may use it; changes that belong together are made in a `transaction`.

    Args:
        path: Created with its directories if missing.

    Raises:
        UserError: The file is no database, has a newer schema, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            path.chmod(0o600)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute("PRAGMA foreign_keys = ON")
            self._connection.execute("PRAGMA secure_delete = ON")
            self._migrate(path)
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"cannot open the bot's store {path}: {error}", "name another file with --store") from error

    def _migrate(self, path: Path) -> None:
        version = self._value("PRAGMA user_version")
        if version > len(_MIGRATIONS):
            raise UserError(f"{path} was written by a newer rsg-harness", "update rsg-harness, or name another --store")
        for number, script in enumerate(_MIGRATIONS[version:], version + 1):
            self._connection.executescript(f"BEGIN; {script} PRAGMA user_version = {number}; COMMIT;")

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    # Users.

    def state(self, user: int) -> dict[str, Any]:
        """Return the state of the user's conversation; empty for a new one."""
        return json.loads(self._value("SELECT state FROM users WHERE id = ?", user) or "{}")

    def know(self, user: int) -> None:
        """Add the user if missing. Nothing can be stored of a user who was not added."""
        self._connection.execute("INSERT OR IGNORE INTO users (id) VALUES (?)", (user,))

    def set_state(self, user: int, state: dict[str, Any]) -> None:
        """Replace the state of the user's conversation."""
        self._connection.execute("UPDATE users SET state = ? WHERE id = ?", (_dump(state), user))

    def language(self, user: int) -> str | None:
        """Return the code of the language that the user chose, or None."""
        code = self._value("SELECT language FROM users WHERE id = ?", user)
        return None if code is None else str(code)

    def set_language(self, user: int, code: str) -> None:
        """Store the language that the user chose."""
        self._connection.execute("UPDATE users SET language = ? WHERE id = ?", (code, user))

    def forget(self, user: int) -> None:
        """Delete everything that is stored of the user."""
        self._connection.execute("DELETE FROM users WHERE id = ?", (user,))

    def wipe_log(self) -> None:
        """Overwrite what was deleted in the write-ahead log too; call it outside of transactions."""
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    # Dialogues. Every method takes the user, so nobody reaches another user's dialogue.

    def add_dialogue(self, user: int, name: str) -> int:
        """Add a dialogue and return its number.

        Raises:
            NameTaken: The user has a dialogue of this name.
        """
        try:
            cursor = self._connection.execute("INSERT INTO dialogues (user_id, name) VALUES (?, ?)", (user, name))
        except sqlite3.IntegrityError as error:
            raise NameTaken(name) from error
        return int(cursor.lastrowid or 0)

    def dialogues(self, user: int) -> list[Dialogue]:
        """Return the user's dialogues, oldest first."""
        rows = self._connection.execute(
            "SELECT d.id, d.name, count(t.id) FROM dialogues d LEFT JOIN turns t ON t.dialogue_id = d.id "
            "WHERE d.user_id = ? GROUP BY d.id ORDER BY d.id",
            (user,),
        )
        return [Dialogue(*row) for row in rows]

    def dialogue(self, user: int, dialogue: int) -> Dialogue | None:
        """Return the user's dialogue of this number, or None."""
        return next((one for one in self.dialogues(user) if one.id == dialogue), None)

    def delete_dialogue(self, user: int, dialogue: int) -> bool:
        """Delete a dialogue with its turns. Return whether the user had it."""
        cursor = self._connection.execute("DELETE FROM dialogues WHERE id = ? AND user_id = ?", (dialogue, user))
        return cursor.rowcount == 1

    def turns(self, user: int, dialogue: int, last: int) -> list[Turn]:
        """Return the last turns of a dialogue, oldest first."""
        rows = self._connection.execute(
            "SELECT t.question, t.answer FROM turns t JOIN dialogues d ON d.id = t.dialogue_id "
            "WHERE d.user_id = ? AND d.id = ? ORDER BY t.id DESC LIMIT ?",
            (user, dialogue, last),
        ).fetchall()
        return [Turn(*row) for row in reversed(rows)]

    def add_turn(self, user: int, dialogue: int, turn: Turn) -> None:
        """Append a turn; do nothing where the user has no such dialogue, for it may just have been deleted."""
        self._connection.execute(
            "INSERT INTO turns (dialogue_id, question, answer) "
            "SELECT id, ?, ? FROM dialogues WHERE id = ? AND user_id = ?",
            (turn.question, turn.answer, dialogue, user),
        )

    # Updates.

    def keep_updates(
        self, updates: Sequence[tuple[int, int, dict[str, Any]]], confirmed: int | None = None
    ) -> list[int]:
        """Store updates that arrived, in one transaction, and return the ids of those not seen before.

        Args:
            updates: (id, user, body) of the updates in one answer from Telegram.
            confirmed: Telegram will not send updates below this id again.
        """
        new = []
        with self.transaction():
            if confirmed is not None:
                self._connection.execute("DELETE FROM updates WHERE body IS NULL AND id < ?", (confirmed,))
            for number, user, body in updates:
                self.know(user)
                cursor = self._connection.execute(
                    "INSERT OR IGNORE INTO updates (id, user_id, body) VALUES (?, ?, ?)", (number, user, _dump(body))
                )
                if cursor.rowcount:
                    new.append(number)
        return new

    def set_reply(self, update: int, reply: str) -> None:
        """Store a reply that is ready and not on the screen yet."""
        self._connection.execute("UPDATE updates SET reply = ? WHERE id = ?", (reply, update))

    def drop_update(self, update: int) -> None:
        """Delete the texts of an update whose reply is on the screen."""
        self._connection.execute("UPDATE updates SET body = NULL, reply = NULL WHERE id = ?", (update,))

    def pending_updates(self) -> list[PendingUpdate]:
        """Return the updates that an earlier process left without a reply, in order of arrival."""
        rows = self._connection.execute("SELECT body, reply FROM updates WHERE body IS NOT NULL ORDER BY id").fetchall()
        return [PendingUpdate(json.loads(body), reply) for body, reply in rows]

    def _value(self, statement: str, *values: Any) -> Any:
        with closing(self._connection.execute(statement, values)) as cursor:
            row = cursor.fetchone()
        return row[0] if row else None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make all changes inside durable together, or none."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
