"""The parts of the bot that need no chat: store, texts, forms, prompts, logs."""

from __future__ import annotations

import logging
import sqlite3
import string
import threading
from collections.abc import Iterator
from itertools import pairwise, takewhile
from operator import eq
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.bot.conversation import Conversation
from harness.bot.events import ChatJob, Event, QuestionJob
from harness.bot.run import log_without, read_token
from harness.bot.serving import HISTORY_TOKENS, ModelWorker, steady_start
from harness.bot.store import _MIGRATIONS, NameTaken, Store, Turn
from harness.bot.telegram import split_text
from harness.bot.texts import LANGUAGES, default_language
from harness.errors import UserError
from harness.evaluation.predict import Answer, Predictor
from harness.models.open import open_model
from harness.models.options import ModelOptions
from harness.progress import restored_output, show_output
from harness.tasks import RUSSIAN_SUPERGLUE, InputField, Task, get_task
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


def test_a_store_of_the_first_version_is_migrated(tmp_path: Path) -> None:
    path = tmp_path / "old.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(f"{_MIGRATIONS[0]} PRAGMA user_version = 1;")
    connection.execute("INSERT INTO users (id, state) VALUES (1, '{\"dialogue\": 5}')")
    connection.execute("INSERT INTO dialogues (id, user_id, name) VALUES (5, 1, 'имя')")
    connection.commit()
    connection.close()
    store = Store(path)
    assert store.state(1) == {"dialogue": 5}
    assert [dialogue.name for dialogue in store.dialogues(1)] == ["имя"]
    assert store.language(1) is None
    store.set_language(1, "en")
    store.close()
    assert Store(path).language(1) == "en"


def test_both_languages_say_the_same_things() -> None:
    russian, english = LANGUAGES["ru"], LANGUAGES["en"]
    assert set(russian.texts) == set(english.texts)
    for key in russian.texts:
        slots = [
            {name for _, name, _, _ in string.Formatter().parse(language.texts[key]) if name}
            for language in (russian, english)
        ]
        assert slots[0] == slots[1], key
    assert set(russian.commands) == set(english.commands)
    assert all(set(russian.tasks[task].names) == set(english.tasks[task].names) for task in RUSSIAN_SUPERGLUE)
    for language in (russian, english):
        assert all(f"/{command} " in language.texts["help"] + "/help " for command in language.commands)
        assert set(language.tasks) == set(RUSSIAN_SUPERGLUE)
        for task in map(get_task, RUSSIAN_SUPERGLUE):
            texts = language.tasks[task.name]
            assert texts.about
            assert texts.gloss
            assert list(texts.fields) == [field.name for field in task.fields]
            shown = [option for field in task.fields for option in field.options]
            shown += [label for label in task.labels if label not in texts.fields]  # else the field's text is shown
            assert set(texts.names) == set(shown)
    found = [default_language(code).code for code in ("ru-RU", "uk", None, "en", "de")]
    assert found == ["ru", "ru", "ru", "en", "en"]


@given(st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=300), st.integers(2, 40))
def test_parts_of_a_text_fit_and_lose_only_white_space(text: str, limit: int) -> None:
    parts = split_text(text, limit)
    assert all(0 < len(part.encode("utf-16-le")) // 2 <= limit for part in parts)
    assert "".join("".join(parts).split()) == "".join(text.split())


def test_forms_reject_what_cannot_be_asked(store: Store) -> None:
    conversation = Conversation(store, "tiny", lambda language: "", list(map(get_task, RUSSIAN_SUPERGLUE)))
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
    assert say("причину?") == "Что ищем: причину или следствие?"
    assert "Пустое" in say("   ")


TONE = Task(
    name="tone",
    title="Tone",
    document=get_task("terra").document,
    fields=(InputField("remark", "one sentence"), InputField("about"), InputField("kind", options=("book", "film"))),
    metrics={},
    official=(),
    labels=("good", "bad"),
)


def test_a_task_of_the_users_own_is_shown_by_its_own_names(store: Store) -> None:
    conversation = Conversation(store, "tiny", lambda language: "", [TONE])
    store.know(1)

    def handle(text: str | None = None, button: str | None = None) -> list[str]:
        [message] = conversation.handle(Event(1, 1, "ru", text, button), under_way=False).messages
        return [message.text, *(button.label for row in message.buttons for button in row)]

    assert handle("/tasks") == ["Какую задачу выбрать?\n\nTone", "Tone"]
    assert handle(button="task:tone") == ["Tone\n\nПришлите поле «remark» (one sentence).", "Отмена"]
    assert handle("Скучно.") == ["Пришлите поле «about»."]
    assert handle("Роман") == ["Пришлите поле «kind».", "book", "film"]
    job = conversation.handle(Event(1, 1, "ru", button="option:1"), under_way=False).job
    assert isinstance(job, QuestionJob)
    assert job.fields == {"remark": "Скучно.", "about": "Роман", "kind": "film"}
    answer = Answer("tone", {"good": 0.25, "bad": 0.75}, ("да", "нет"))
    [reply] = conversation.answered(Event(1, 1, "ru"), job, [("tiny (torch)", answer, 0.5)])
    assert reply.text == "Tone\n\n████████░░ 75 % bad\n██░░░░░░░░ 25 % good\n\ntiny (torch), 500 мс"


def test_a_form_of_a_task_that_is_no_longer_served_is_left(store: Store) -> None:
    store.know(1)
    with_task = Conversation(store, "tiny", lambda language: "", [TONE])
    with_task.handle(Event(1, 1, "en", button="task:tone"), under_way=False)
    without = Conversation(store, "tiny", lambda language: "", [get_task("terra")])
    [message] = without.handle(Event(2, 1, "en", text="Boring."), under_way=False).messages
    assert message.text.startswith("To ask something")
    [message] = without.handle(Event(3, 1, "en", button="option:0"), under_way=False).messages
    assert "no longer works" in message.text


def test_nothing_is_compared_where_there_is_no_original(store: Store) -> None:
    conversation = Conversation(store, "tiny", lambda language: "", [get_task("terra")], can_compare=False)
    store.know(1)
    for event in (Event(1, 1, "en", text="/compare"), Event(2, 1, "en", button="compare:terra")):
        [message] = conversation.handle(event, under_way=False).messages
        assert message.text.startswith("There is nothing to compare with")
        assert not message.buttons


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelWorker]:
    model = make_tiny_gemma(tmp_path_factory.mktemp("model") / "tiny", max_position_embeddings=4096)
    predictor = Predictor(open_model(ModelOptions(str(model))))
    worker = ModelWorker(lambda: predictor, lambda: predictor, new_tokens=8)
    yield worker
    worker.stop()
    worker.join()


def test_the_thread_that_computes_loads_the_model(worker: ModelWorker) -> None:
    """Else OpenMP has two masters, and an answer takes twice as long."""
    threads = []

    def load() -> Predictor:
        threads.append(threading.current_thread().name)
        return worker.predictor

    other = ModelWorker(load, load)
    other.stop()
    other.join()
    assert threads == ["model"]


def test_a_model_that_cannot_be_loaded_is_the_caller_s_error() -> None:
    def load() -> Predictor:
        raise UserError("there is no such model", "name another one")

    with pytest.raises(UserError, match="no such model"):
        ModelWorker(load, load)


def test_a_dialogue_is_cut_at_its_start_by_tokens(worker: ModelWorker) -> None:
    tokenizer = worker.predictor.opened.tokenizer
    history = tuple(Turn(f"Вопрос номер {number}?", f"Ответ номер {number}.") for number in range(100))
    tokens = worker._prompt(ChatJob("Последний вопрос?", 1, history, {}))
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    assert len(tokens) <= HISTORY_TOKENS
    assert tokens.count(tokenizer.bos_token_id) == 1
    assert "Ответ номер 99." in text
    assert "Вопрос номер 0?" not in text
    assert text.endswith("Вопрос: Последний вопрос?\nОтвет:")
    assert len(tokens) > HISTORY_TOKENS / 2


def test_the_prompts_of_a_long_dialogue_begin_alike_for_several_turns(worker: ModelWorker) -> None:
    """So the model remembers most of a prompt. Once in a while the oldest turns leave it."""
    history = [Turn(f"Вопрос номер {number}?", f"Ответ номер {number}.") for number in range(120)]
    prompts = [
        worker._prompt(ChatJob("Ещё?", 1, tuple(history[max(0, turns - 50 - turns % 8) : turns]), {}))
        for turns in range(40, 120)
    ]
    shared = [
        sum(1 for _ in takewhile(bool, map(eq, before, after))) / len(before) for before, after in pairwise(prompts)
    ]
    assert sum(share > 0.9 for share in shared) >= len(shared) * 3 / 4
    assert min(map(len, prompts[20:])) > HISTORY_TOKENS / 2


def test_turns_leave_a_dialogue_together_but_never_more_than_half_of_them() -> None:
    assert [steady_start(first, 60) for first in (0, 1, 8, 9, 17)] == [0, 8, 8, 16, 24]
    assert [steady_start(first, 6) for first in (0, 1, 2, 3, 4, 5, 6)] == [0, 2, 4, 4, 4, 5, 6]


def test_a_question_longer_than_the_context_keeps_its_end(worker: ModelWorker) -> None:
    tokenizer = worker.predictor.opened.tokenizer
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


def test_logs_have_one_line_a_record_and_no_token(capsys: pytest.CaptureFixture[str]) -> None:
    token = "123456789:AAE-abcdefghijklmnopqrstuvwxyz"
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with restored_output():
        try:
            show_output(True)
            log_without(token)
            logging.getLogger("harness.bot.telegram").info("getMe of %s", token)
            logging.getLogger("httpx").info("POST https://api/bot%s/getMe", token)
            logging.getLogger("telegram").warning("no answer to %s", token)
            try:
                raise ValueError(token)
            except ValueError:
                logging.getLogger("asyncio").exception("lost")
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)
    shown = capsys.readouterr().err
    assert token not in shown
    assert shown.count("INFO getMe of TOKEN\n") == shown.count("getMe") == 1
    assert "WARNING no answer to TOKEN\n" in shown
    assert "ValueError: TOKEN" in shown
