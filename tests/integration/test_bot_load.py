"""Many users at once, and a bot that is killed while they write."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from harness.bot.texts import LANGUAGES
from harness.evaluation.predict import Predictor
from harness.models.open import open_model
from harness.models.options import ModelOptions
from tests.integration.bot import serving
from tests.integration.command import RSG_HARNESS
from tests.telegram_server import TOKEN, Shown, TelegramServer

BUSY = LANGUAGES["ru"].say("busy_user")
pytestmark = pytest.mark.slow


@dataclass
class User:
    """A user who sends the messages in `left` one by one, each after the last was answered, and repeats one where the
    bot was still busy."""

    id: int
    left: list[str]
    written: list[str] = field(default_factory=list)
    repeats: int = 0

    @property
    def questions(self) -> list[str]:
        return [text for text in dict.fromkeys(self.written) if text.startswith("Я ")]


def script(user: int, rng: random.Random) -> list[str]:
    """Return ten messages: a dialogue, a question of a task field by field, and commands, in random order."""
    parts = [
        [f"/new_dialogue беседа {user}", *(f"Я {user}, спрашиваю {number}" for number in range(3))],
        ["/tasks", "press:TERRa", f"Посылка номер {user}.", f"Вывод номер {user}."],
        ["/model"],
        ["/help"],
    ]
    rng.shuffle(parts)
    return [message for part in parts for message in part]


# Start of a message -> part of its answer.
ANSWERS = {"/new": "Беседа «", "/tasks": "Какую", "press": "TERRa. ", "Пос": "гипотезу", "Выв": "█", "/mod": "бэкенд",
           "/help": "/cancel —"}  # fmt: skip


def is_answered(chat: list[Shown], message: str, stored: set[str]) -> bool:
    """Say whether a message was answered; a turn of a dialogue is once it is stored, which is before it is shown."""
    if message.startswith("Я "):
        return message in stored
    answer = next(answer for start, answer in ANSWERS.items() if message.startswith(start))
    return any(answer in shown.text for shown in chat)


def write_next(server: TelegramServer, user: User, stored: set[str]) -> bool:
    """Send the user's next message if the last one was answered; return whether none is left."""
    with server.changed:
        chat = list(server.chats[user.id])
    if sum(shown.text == BUSY for shown in chat) > user.repeats:
        user.repeats += 1
        user.left.insert(0, user.written[-1])
    elif user.written and not is_answered(chat, user.written[-1], stored):
        return False
    if not user.left:
        return True
    message = user.left.pop(0)
    user.written.append(message)
    if message.startswith("press:"):
        label = message.removeprefix("press:")
        server.press(user.id, next(shown.buttons[label] for shown in chat if label in shown.buttons))
    else:
        server.write(user.id, message)
    return False


def drive(
    server: TelegramServer, path: Path, users: list[User], seconds: float, enough: Callable[[], bool] = bool
) -> None:
    """Let all users write until they are done or `enough` returns True."""
    deadline = time.monotonic() + seconds
    waiting = list(users)
    while waiting and not enough():
        stored = {str(question) for (question,) in rows(path, "SELECT question FROM turns")}
        waiting = [user for user in waiting if not write_next(server, user, stored)]
        assert time.monotonic() < deadline, f"{len(waiting)} users still wait, e.g. {waiting[0]}"
        time.sleep(0.02)


def rows(path: Path, statement: str, *values: object) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(statement, values).fetchall()
    finally:
        connection.close()


def stored_questions(path: Path, user: int) -> list[object]:
    statement = (
        "SELECT t.question FROM turns t JOIN dialogues d ON d.id = t.dialogue_id WHERE d.user_id = ? ORDER BY t.id"
    )
    return [question for (question,) in rows(path, statement, user)]


def shares(text: str) -> list[int]:
    return sorted(int(line.split()[1]) for line in text.splitlines() if line.startswith(("█", "░")))


@pytest.fixture
def server() -> Iterator[TelegramServer]:
    with TelegramServer() as server:
        yield server


@pytest.fixture
def bots() -> Iterator[list[subprocess.Popen[str]]]:
    """Bots that a test has started; they are killed when it ends."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for bot in started:
        bot.kill()


def test_200_users_2000_messages_none_lost_doubled_or_misdirected(
    server: TelegramServer, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RSG_HARNESS_CACHE", str(tmp_path / "cache"))
    predictor = Predictor(open_model(ModelOptions(str(tiny_model))))
    rng = random.Random(0)
    users = [User(1000 + number, script(1000 + number, rng)) for number in range(200)]
    assert sum(len(user.left) for user in users) == 2000
    started = time.monotonic()
    path = tmp_path / "bot.sqlite"
    with serving(server, path, predictor):
        drive(server, path, users, 240)
        seconds = time.monotonic() - started
    print(f"2000 messages and {sum(user.repeats for user in users)} repeats of 200 users in {seconds:.0f} s")
    fields = [{"premise": f"Посылка номер {user.id}.", "hypothesis": f"Вывод номер {user.id}."} for user in users]
    expected = predictor.answer([("terra", one) for one in fields])
    for user, answer in zip(users, expected, strict=True):
        assert len(server.chats[user.id]) == len(user.written), server.texts(user.id)
        assert stored_questions(path, user.id) == user.questions
        [told] = [text for text in server.texts(user.id) if "█" in text]
        wanted = sorted(round(100 * share) for share in answer.choices.values())
        assert all(abs(one - other) <= 1 for one, other in zip(shares(told), wanted, strict=True))
    assert not set(server.chats) - {user.id for user in users}


def test_a_killed_bot_loses_no_turn_and_stores_none_twice(
    server: TelegramServer,
    tiny_model: Path,
    tmp_path: Path,
    environment: dict[str, str],
    bots: list[subprocess.Popen[str]],
) -> None:
    path = tmp_path / "bot.sqlite"
    rng = random.Random(1)
    users = [User(1000 + number, script(1000 + number, rng)) for number in range(40)]

    def start() -> subprocess.Popen[str]:
        command = [RSG_HARNESS, "bot", "--model", tiny_model, "--store", path, "--api-url", server.url]
        calls = server.calls["getUpdates"]
        bot = subprocess.Popen(
            [str(part) for part in command],
            env={**environment, "TELEGRAM_BOT_TOKEN": TOKEN},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        bots.append(bot)
        server.wait(lambda: server.calls["getUpdates"] > calls, 120)
        return bot

    def answered() -> int:
        return sum(len(chat) for chat in list(server.chats.values()))

    logs = []
    for kill_after in (60, 200):
        bot = start()
        drive(server, path, users, 120, enough=lambda kill_after=kill_after: answered() >= kill_after)
        bot.send_signal(signal.SIGKILL)
        logs.append("".join(bot.communicate()))
    bot = start()
    drive(server, path, users, 120)
    bot.send_signal(signal.SIGTERM)
    logs.append("".join(bot.communicate(timeout=60)))
    assert bot.returncode == 0, logs[-1]
    for user in users:
        # Nobody asked twice because of a kill: what is not in the store now would be lost for good.
        assert stored_questions(path, user.id) == user.questions
        assert len(server.chats[user.id]) >= len(user.written)
    questions = [text for user in users for text in user.questions]
    for log in logs:
        assert TOKEN not in log
        assert not any(text in log for text in questions)
    assert rows(path, "SELECT id FROM updates WHERE body IS NOT NULL") == []
