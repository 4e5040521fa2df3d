"""The bot's parts that need no chat: store, texts, prompts."""

from __future__ import annotations

import sqlite3
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.bot.conversation import ChatJob, Conversation, Event
from harness.bot.run import read_token
from harness.bot.serving import HISTORY_TOKENS, ModelWorker
from harness.bot.store import NameTaken, Store, Turn
from harness.bot.telegram import split_text
from harness.bot.texts import CHOICES, LANGUAGES, TASKS, language_of
from harness.data import LABELS
from harness.errors import UserError
from harness.evaluation.predict import FIELDS, Predictor
from tests.tiny_gemma import make_tiny_gemma

TURN = Turn("Кто там?", "Никого.")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "bot" / "bot.sqlite")


def test_a_turn_and_its_reply_are_written_together_or_not_at_all(store: Store) -> None:
    store.know(1)
    number = store.add_dialogue(1, "имя")
    store.keep_updates([(7, 1, {"text": "Кто там?"})])

    class Crash(Exception):
        pass

    def crash_in_the_middle() -> None:
        with store.transaction():
            store.add_turn(1, number, TURN)
            store.set_reply(7, "reply")
            raise Crash

    with pytest.raises(Crash):
        crash_in_the_middle()
    assert store.turns(1, number, 5) == []
    assert store.pending_updates()[0].reply is None
    with store.transaction():
        store.add_turn(1, number, TURN)
        store.set_reply(7, "reply")
    assert store.turns(1, number, 5) == [TURN]
    assert store.pending_updates()[0].reply == "reply"


def test_an_update_is_new_once_until_telegram_is_sure_of_it(store: Store) -> None:
    assert store.keep_updates([(5, 1, {}), (6, 2, {})]) == [5, 6]
    store.drop_update(5)
    assert store.keep_updates([(5, 1, {}), (6, 2, {}), (7, 1, {})]) == [7]
    assert len(store.pending_updates()) == 2
    store.keep_updates([], confirmed=8)
    assert store.keep_updates([(5, 1, {})]) == [5]
    assert len(store.pending_updates()) == 3


def test_nobody_reaches_a_dialogue_of_another(store: Store) -> None:
    for user in (1, 2):
        store.know(user)
    own = store.add_dialogue(1, "имя")
    store.add_turn(1, own, TURN)
    store.add_turn(2, own, Turn("чужое", "чужое"))
    assert store.turns(2, own, 5) == []
    assert store.dialogue(2, own) is None
    assert not store.delete_dialogue(2, own)
    assert store.turns(1, own, 5) == [TURN]
    with pytest.raises(NameTaken):
        store.add_dialogue(1, "имя")
    store.add_dialogue(2, "имя")


def test_a_store_of_a_newer_version_or_none_at_all_is_refused(tmp_path: Path) -> None:
    newer = tmp_path / "newer.sqlite"
    connection = sqlite3.connect(newer)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(UserError, match="newer"):
        Store(newer)
    broken = tmp_path / "broken.sqlite"
    broken.write_text("no database " * 100)
    with pytest.raises(UserError, match="cannot open"):
        Store(broken)
    assert Store(tmp_path / "new.sqlite").dialogues(1) == []
    assert (tmp_path / "new.sqlite").stat().st_mode & 0o077 == 0


def test_both_languages_say_the_same_things() -> None:
    russian, english = LANGUAGES["ru"], LANGUAGES["en"]
    assert set(russian) == set(english)
    for key in russian:
        slots = [
            {name for _, name, _, _ in string.Formatter().parse(texts[key]) if name} for texts in (russian, english)
        ]
        assert slots[0] == slots[1], key
    assert set(CHOICES["ru"]) == set(CHOICES["en"])
    for language, tasks in TASKS.items():
        assert set(tasks) == set(FIELDS)
        assert all(len(tasks[task]) == 1 + len(FIELDS[task]) for task in FIELDS)
        for task in FIELDS:
            if task != "parus":
                assert all(
                    f"{task} {label}" in CHOICES[language] or label in CHOICES[language] for label in LABELS[task]
                )
    assert [language_of(code) for code in ("ru-RU", "uk", None, "en", "de")] == ["ru", "ru", "ru", "en", "en"]


@given(st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=300), st.integers(2, 40))
def test_parts_of_a_text_fit_and_lose_only_white_space(text: str, limit: int) -> None:
    parts = split_text(text, limit)
    assert all(0 < len(part.encode("utf-16-le")) // 2 <= limit for part in parts)
    assert "".join("".join(parts).split()) == "".join(text.split())


def test_forms_reject_what_cannot_be_asked(store: Store) -> None:
    conversation = Conversation(store, "tiny", lambda language: "")
    store.know(1)

    def say(text: str | None = None, button: str | None = None) -> str:
        outcome = conversation.handle(Event(1, 1, "ru", text, button), under_way=False)
        return outcome.messages[0].text if outcome.messages else repr(outcome.job)

    say(button="task:rucos")
    say("Анна встретила Олега.")
    assert "@placeholder" in say("Нет пропуска")
    say("@placeholder встретила Олега.")
    assert "два варианта" in say("Анна; Анна;")
    assert "QuestionJob" in say("Анна; Олег")
    say(button="task:parus")
    say("Пошёл дождь.")
    assert say("причину?") == "Что ищем?"
    assert "Пустое" in say("   ")


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> ModelWorker:
    model = make_tiny_gemma(tmp_path_factory.mktemp("model") / "tiny", max_position_embeddings=4096)
    predictor = Predictor(str(model))
    return ModelWorker(predictor, lambda: predictor, new_tokens=8)


def test_a_dialogue_is_cut_at_its_start_by_tokens(worker: ModelWorker) -> None:
    tokenizer = worker.predictor.backend.tokenizer
    history = tuple(Turn(f"Вопрос номер {number}?", f"Ответ номер {number}.") for number in range(100))
    tokens = worker._prompt(ChatJob("Последний вопрос?", 1, history, {}))
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    assert len(tokens) <= HISTORY_TOKENS
    assert tokens.count(tokenizer.bos_token_id) == 1
    assert "Ответ номер 99." in text
    assert "Вопрос номер 0?" not in text
    assert text.endswith("Вопрос: Последний вопрос?\nОтвет:")
    kept = text.count("Вопрос номер")
    assert len(worker._encode(history[-kept - 1 :], "Последний вопрос?")) > HISTORY_TOKENS - 8


def test_a_question_longer_than_the_context_keeps_its_end(worker: ModelWorker) -> None:
    tokenizer = worker.predictor.backend.tokenizer
    tokens = worker._prompt(ChatJob("слово " * 2000 + "конец?", None, (), {}))
    assert len(tokens) == HISTORY_TOKENS
    assert tokens[0] == tokenizer.bos_token_id
    assert tokenizer.decode(tokens).endswith("конец?\nОтвет:")


def test_tokens_come_from_the_environment_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = "123456789:AAE-abcdefghijklmnopqrstuvwxyz"
    monkeypatch.delenv("TELEGRAM_BOT_TOKEN", raising=False)
    with pytest.raises(UserError, match="not set"):
        read_token(None)
    monkeypatch.setenv("TELEGRAM_BOT_TOKEN", token)
    assert read_token(None) == token
    (tmp_path / "token").write_text(f"{token}\n")
    assert read_token(tmp_path / "token") == token
    with pytest.raises(UserError, match="cannot read"):
        read_token(tmp_path / "none")
    (tmp_path / "token").write_text("secret words")
    with pytest.raises(UserError) as error:
        read_token(tmp_path / "token")
    assert "secret" not in str(error.value)
