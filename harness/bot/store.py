"""What the bot remembers, in one SQLite file: dialogues, each user's place in a conversation, unanswered updates.

The standard library's sqlite3 and a schema with a version, no object mapper: four tables, a dozen statements, and every
transaction is to be seen. Nothing is kept of a user who only asks single questions but the state of the conversation.

An update of Telegram is written here before Telegram is told that it arrived, and its text leaves when its reply is on
the screen. So a killed bot goes on with what was asked; a reply that was ready is sent, not computed again. The number
of an update stays until Telegram is sure not to send it again.
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

# Statements that lead from the version of their index to the next.
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
    """An update whose reply is not on the screen yet. `reply`: the ready one, if any."""

    body: dict[str, Any]
    reply: str | None


class NameTaken(Exception):
    """The user has a dialogue of this name."""


class Store:
    """The file. Used by one thread at a time; several changes that belong together stand in a `transaction`.

    Args:
        path: created with its directories if missing.

    Raises:
        UserError: no database, a newer version's, or not to be written.
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
        self._connection.close()

    # Conversations.

    def state(self, user: int) -> dict[str, Any]:
        """Where the user's conversation stands; empty for a new one."""
        return json.loads(self._value("SELECT state FROM users WHERE id = ?", user) or "{}")

    def know(self, user: int) -> None:
        """Makes room for a user; what is written of an unknown one is lost."""
        self._connection.execute("INSERT OR IGNORE INTO users (id) VALUES (?)", (user,))

    def set_state(self, user: int, state: dict[str, Any]) -> None:
        self._connection.execute("UPDATE users SET state = ? WHERE id = ?", (_dump(state), user))

    def forget(self, user: int) -> None:
        """Deletes all that is kept of the user."""
        self._connection.execute("DELETE FROM users WHERE id = ?", (user,))

    def wipe_log(self) -> None:
        """Overwrites what was deleted in the write-ahead log as well; outside of transactions."""
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    # Dialogues. Each method takes the user, so nobody reaches a dialogue of another.

    def add_dialogue(self, user: int, name: str) -> int:
        """Raises: NameTaken."""
        try:
            cursor = self._connection.execute("INSERT INTO dialogues (user_id, name) VALUES (?, ?)", (user, name))
        except sqlite3.IntegrityError as error:
            raise NameTaken(name) from error
        return int(cursor.lastrowid or 0)

    def dialogues(self, user: int) -> list[Dialogue]:
        """In the order in which they were made."""
        rows = self._connection.execute(
            "SELECT d.id, d.name, count(t.id) FROM dialogues d LEFT JOIN turns t ON t.dialogue_id = d.id "
            "WHERE d.user_id = ? GROUP BY d.id ORDER BY d.id",
            (user,),
        )
        return [Dialogue(*row) for row in rows]

    def dialogue(self, user: int, dialogue: int) -> Dialogue | None:
        """None where the user has none of this number."""
        return next((one for one in self.dialogues(user) if one.id == dialogue), None)

    def delete_dialogue(self, user: int, dialogue: int) -> bool:
        cursor = self._connection.execute("DELETE FROM dialogues WHERE id = ? AND user_id = ?", (dialogue, user))
        return cursor.rowcount == 1

    def turns(self, user: int, dialogue: int, last: int) -> list[Turn]:
        """The last turns, oldest first."""
        rows = self._connection.execute(
            "SELECT t.question, t.answer FROM turns t JOIN dialogues d ON d.id = t.dialogue_id "
            "WHERE d.user_id = ? AND d.id = ? ORDER BY t.id DESC LIMIT ?",
            (user, dialogue, last),
        ).fetchall()
        return [Turn(*row) for row in reversed(rows)]

    def add_turn(self, user: int, dialogue: int, turn: Turn) -> None:
        """Nothing is added where the user has no such dialogue (any more)."""
        self._connection.execute(
            "INSERT INTO turns (dialogue_id, question, answer) "
            "SELECT id, ?, ? FROM dialogues WHERE id = ? AND user_id = ?",
            (turn.question, turn.answer, dialogue, user),
        )

    # Updates.

    def keep_updates(
        self, updates: Sequence[tuple[int, int, dict[str, Any]]], confirmed: int | None = None
    ) -> list[int]:
        """Writes (id, user, body) of updates that arrived, in one transaction. Gives the ids of those not seen before.

        Args:
            updates: from one answer of Telegram.
            confirmed: Telegram will send none below this id again.
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
        """The reply is ready, and not on the screen yet."""
        self._connection.execute("UPDATE updates SET reply = ? WHERE id = ?", (reply, update))

    def drop_update(self, update: int) -> None:
        """Its reply is on the screen."""
        self._connection.execute("UPDATE updates SET body = NULL, reply = NULL WHERE id = ?", (update,))

    def pending_updates(self) -> list[PendingUpdate]:
        """What an earlier process left without a reply, in order of arrival."""
        rows = self._connection.execute("SELECT body, reply FROM updates WHERE body IS NOT NULL ORDER BY id").fetchall()
        return [PendingUpdate(json.loads(body), reply) for body, reply in rows]

    def _value(self, statement: str, *values: Any) -> Any:
        with closing(self._connection.execute(statement, values)) as cursor:
            row = cursor.fetchone()
        return row[0] if row else None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All changes inside become durable together, or none."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
