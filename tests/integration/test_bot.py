"""The bot's conversations through python-telegram-bot, against a stand-in for Telegram, with a small model."""

from __future__ import annotations

import itertools
import logging
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.bot.conversation import MAX_CHARACTERS
from harness.bot.service import Limits
from harness.bot.serving import ModelWorker
from harness.bot.texts import LANGUAGES
from harness.errors import UserError
from harness.evaluation.predict import Predictor
from harness.models.open import open_model
from harness.models.options import ModelOptions
from harness.tasks import RUSSIAN_SUPERGLUE, get_task
from tests.integration.bot import serving
from tests.telegram_server import TOKEN, Fault, TelegramServer

ALICE, BORIS = 11, 22
RUSSIAN = LANGUAGES["ru"]
# One worker runs all of these: they share the loaded models.
pytestmark = pytest.mark.xdist_group("bot")


@pytest.fixture(scope="session")
def predictor(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Predictor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RSG_HARNESS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield Predictor(open_model(ModelOptions(str(tiny_model))))


@pytest.fixture(scope="session")
def quantised(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Predictor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RSG_HARNESS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield Predictor(open_model(ModelOptions(str(tiny_model), "mlx-q4", execution="torch")))


@pytest.fixture
def server() -> Iterator[TelegramServer]:
    with TelegramServer() as server:
        yield server


@pytest.fixture
def shown_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is shown after a tenth of a second."""
    monkeypatch.setattr("harness.bot.service.QUIET_SECONDS", 0.1)
    monkeypatch.setattr("harness.bot.service.EDIT_SECONDS", 0.1)


@pytest.fixture
def slow(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """The model answers nothing until the event is set."""
    may_answer = threading.Event()
    answer, generate = predictor.answer, predictor.opened.backend.generate

    def wait_and_answer(*arguments: object, **options: object) -> object:
        assert may_answer.wait(60)
        return answer(*arguments, **options)  # type: ignore[arg-type]

    def wait_and_generate(*arguments: object, **options: object) -> object:
        assert may_answer.wait(60)
        return generate(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(predictor, "answer", wait_and_answer)
    monkeypatch.setattr(predictor.opened.backend, "generate", wait_and_generate)
    return may_answer


VALUES = {
    "premise": "Дождь шёл всю ночь.",
    "hypothesis": "Ночью было сухо.",
    "sentence1": "На лугу стоит коса.",
    "sentence2": "Коса лежит в сарае.",
    "choice1": "Улицы стали мокрыми.",
    "choice2": "Взошло солнце.",
    "paragraph": "Маша купила хлеб. Потом она пошла домой.",
    "answer": "Хлеб.",
    "passage": "Анна встретила Олега в Москве.",
    "word": "коса",
    "text": "Олег позвал Игоря, потому что он скучал.",
    "span1_text": "Олег",
    "span2_text": "он",
    "query": "В городе @placeholder встретила друга.",
    "entities": "Анна; Олег; Москва",
    "question": "Что купила Маша?",
}


@pytest.mark.parametrize("task", RUSSIAN_SUPERGLUE)
def test_every_task_is_asked_field_by_field_and_answered(
    task: str, server: TelegramServer, predictor: Predictor, tmp_path: Path
) -> None:
    with serving(server, tmp_path / "bot.sqlite", predictor):
        menu = server.ask(ALICE, "/tasks", "Какую задачу")
        names = {name.lower(): name for name in server.last(ALICE).buttons}
        assert set(names) == set(RUSSIAN_SUPERGLUE)
        assert all(f"\n{name} — " in menu for name in names.values())
        text = server.choose(ALICE, names[task])
        fields = {}
        for field in get_task(task).fields:
            assert text.endswith(RUSSIAN.request(get_task(task), field))
            until = "█" if field is get_task(task).fields[-1] else ""
            if field.options:
                fields[field.name] = "effect"
                text = server.choose(ALICE, "следствие", until)
            else:
                fields[field.name] = VALUES[field.name]
                text = server.ask(ALICE, VALUES[field.name], until)
        [expected] = predictor.answer([(task, fields)])
        shown = [int(line.split()[1]) for line in text.splitlines() if line.startswith(("█", "░"))]
        assert sorted(shown) == sorted(round(100 * share) for share in expected.choices.values())
        assert "tiny-gemma (torch)" in text
        assert " мс" in text or " с" in text


def test_an_example_is_shown_with_its_right_answer(
    server: TelegramServer, predictor: Predictor, tmp_path: Path
) -> None:
    with serving(server, tmp_path / "bot.sqlite", predictor):
        for name in ("TERRa", "PARus", "RuCoS", "MuSeRC", "LiDiRus"):
            server.ask(ALICE, "/tasks", "Какую задачу")
            server.choose(ALICE, name, "?")
            text = server.choose(ALICE, "Готовый пример", "Верный ответ: ")
            assert "█" in text
            task = get_task(name.lower())
            assert all(f"{RUSSIAN.label(task, field)}: " in text for field in task.fields)
        assert set(server.last(ALICE).buttons) == {"Ещё раз", "Другая задача"}
        server.choose(ALICE, "Ещё раз", "LiDiRus.")
        server.choose(ALICE, "Отмена", "Прервано")


def test_both_models_answer_a_comparison(
    server: TelegramServer, predictor: Predictor, quantised: Predictor, tmp_path: Path
) -> None:
    with serving(server, tmp_path / "bot.sqlite", predictor, quantised=quantised):
        server.ask(ALICE, "/compare", "обеим")
        server.choose(ALICE, "TERRa", "?")
        server.ask(ALICE, VALUES["premise"], "гипотезу")
        text = server.ask(ALICE, VALUES["hypothesis"], "mlx-q4")
        assert text.index("(torch)") < text.index("(mlx-q4)")
        fields = {name: VALUES[name] for name in ("premise", "hypothesis")}
        for one in (predictor, quantised):
            [expected] = one.answer([("terra", fields)])
            assert f"{100 * expected.choices['entailment']:.0f} % следует" in text


def test_named_dialogues_survive_a_restart(server: TelegramServer, predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "bot.sqlite"
    with serving(server, path, predictor):
        server.ask(ALICE, "/dialogues", "Бесед пока нет")
        server.ask(ALICE, "/new_dialogue", "назвать")
        server.ask(ALICE, "про рыбалку", "начата")
        before = len(server.texts(ALICE))
        server.write(ALICE, "Где клюёт?")
        server.wait(lambda: len(server.chats[ALICE]) > before and _stored_turns(path) == 1)
        server.ask(ALICE, "/new_dialogue про лес", "начата")
        server.ask(ALICE, "/new_dialogue про лес", "уже есть")
        server.ask(ALICE, "/cancel", "Прервано")
    with serving(server, path, predictor):
        assert "• про рыбалку (1)" in server.ask(ALICE, "/get_dialogues", "Ваши беседы")
        server.ask(ALICE, "/get_dialogue", "Какую беседу")
        server.choose(ALICE, "про рыбалку", "реплик: 1")
        assert "Вы: Где клюёт?" in server.ask(ALICE, "/remind_dialogue", "последние реплики")
        server.ask(ALICE, "/cancel", "закрыта")
        server.ask(ALICE, "/delete_dialogue", "удалить")
        server.choose(ALICE, "про лес", "удалена")
        server.ask(ALICE, "/delete_dialogue про рыбалку", "удалена")
        server.ask(ALICE, "/open_dialogue", "Бесед пока нет")
        assert _stored_turns(path) == 0


def test_an_open_dialogue_stays_open_over_a_restart(
    server: TelegramServer, predictor: Predictor, tmp_path: Path
) -> None:
    path = tmp_path / "bot.sqlite"
    with serving(server, path, predictor):
        server.ask(ALICE, "/new_dialogue лето", "начата")
    with serving(server, path, predictor):
        server.write(ALICE, "Привет")
        server.wait(lambda: _stored_turns(path) == 1)


def test_a_conversation_shows_the_text_as_it_grows(
    server: TelegramServer, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.bot.service.QUIET_SECONDS", 0.01)
    monkeypatch.setattr("harness.bot.service.EDIT_SECONDS", 0.01)
    with serving(server, tmp_path / "bot.sqlite", predictor):
        growing: list[str] = []
        while len(growing) < 2:  # a small random model may end at once
            before = len(server.texts(ALICE))
            server.ask(ALICE, "/query Кто написал «Онегина»?")
            server.wait(lambda before=before: not is_waiting(server.chats[ALICE][before].text))
            time.sleep(0.5)
            shown = server.chats[ALICE][before]
            growing = [text for text in (*shown.earlier, shown.text) if not is_waiting(text)]
        assert all(len(one) <= len(other) for one, other in itertools.pairwise(growing))


def is_waiting(text: str) -> bool:
    return text == "Думаю…" or text.startswith("Вы в очереди")


def test_english_readers_are_answered_in_english(server: TelegramServer, predictor: Predictor, tmp_path: Path) -> None:
    with serving(server, tmp_path / "bot.sqlite", predictor):
        server.ask(ALICE, "/start", "Hello!", language="de")
        server.ask(ALICE, "/start", "Здравствуйте!", language=None)
        server.ask(ALICE, "/tasks", "Which task?", language="en")
        server.choose(ALICE, "TERRa", "Send the text.", language="en")
        server.choose(ALICE, "An example", "Right answer: ", language="en")
        server.ask(ALICE, "/model", "backend torch", language="en")
        server.ask(ALICE, "/nonsense", "no such command", language="en")


def test_the_chosen_language_outlives_a_restart(
    server: TelegramServer, predictor: Predictor, tmp_path: Path, slow: threading.Event
) -> None:
    path = tmp_path / "bot.sqlite"
    with serving(server, path, predictor):
        server.ask(ALICE, "/language", "На каком языке")
        server.choose(ALICE, "English", "I write in English now.")
        server.ask(ALICE, "/help", "Tasks")
        server.ask(BORIS, "/language ru", "по-русски", language="de")
    with serving(server, path, predictor):
        server.ask(ALICE, "/tasks", "Which task?")
        server.ask(BORIS, "/tasks", "Какую задачу", language="de")
        server.ask(ALICE, "/query Раз", "Thinking…")
        server.ask(ALICE, "/query Два", "I am still answering")
        slow.set()
        server.ask(ALICE, "/forget_me", "Everything the bot stored")
        server.ask(ALICE, "/help", "Задачи")


def test_what_users_write_is_never_markup(server: TelegramServer, predictor: Predictor, tmp_path: Path) -> None:
    nasty = "<b>x</b> <a href='tg://user?id=1'>y</a> *b* _i_ [l](http://e.x) `c` &lt; {model} %s"
    with serving(server, tmp_path / "bot.sqlite", predictor):
        server.ask(ALICE, f"/new_dialogue {nasty[:60]}", "начата")
        assert nasty[:60] in server.last(ALICE).text
        server.write(ALICE, nasty)
        server.wait(lambda: _stored_turns(tmp_path / "bot.sqlite") == 1)
        assert f"Вы: {nasty}" in server.ask(ALICE, "/remind_dialogue", "последние реплики")
        for shown in server.chats[ALICE]:
            assert "parse_mode" not in shown.parameters
            assert "entities" not in shown.parameters


def test_forged_buttons_reach_nothing_of_others(server: TelegramServer, predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "bot.sqlite"
    with serving(server, path, predictor):
        server.ask(ALICE, "/new_dialogue тайна", "начата")
        server.write(ALICE, "Мой секрет")
        server.wait(lambda: _stored_turns(path) == 1)
        [number] = _rows(path, "SELECT id FROM dialogues")[0]
        for data in (f"open:{number}", f"remind:{number}", f"delete:{number}"):
            before = len(server.texts(BORIS))
            server.press(BORIS, data)
            assert server.next(BORIS, before) == "Такой беседы у вас нет."
        for data in ("open:1 OR 1=1", "open:-1", "open:9999999999999999999999", "delete:", "task:hack", "field:cause",
                     "example", "", "Ω" * 30, "compare:__class__", "option:0", "language:xx"):  # fmt: skip
            before = len(server.texts(BORIS))
            server.press(BORIS, data)
            assert server.next(BORIS, before) in (
                "Такой беседы у вас нет.",
                "Эта кнопка уже не действует. Начните заново: /tasks",
            )
        server.ask(BORIS, "/open_dialogue тайна", "Бесед пока нет")
        server.ask(BORIS, "/remind_dialogue тайна", "Бесед пока нет")
        assert not any("секрет" in text for text in server.texts(BORIS))
        assert _stored_turns(path) == 1


def test_forget_me_leaves_nothing_of_the_user_on_the_disk(
    server: TelegramServer, predictor: Predictor, tmp_path: Path
) -> None:
    path = tmp_path / "bot.sqlite"
    with serving(server, path, predictor):
        for user in (ALICE, BORIS):
            server.ask(user, "/new_dialogue дневник", "начата")
            server.write(user, f"Тайна{user}")
        server.wait(lambda: _stored_turns(path) == 2)
        server.ask(ALICE, "/forget_me", "удалено")
        server.ask(ALICE, "/dialogues", "Бесед пока нет")
        server.ask(BORIS, "/dialogues", "• дневник (1)")
        files = b"".join(file.read_bytes() for file in tmp_path.glob("bot.sqlite*"))
        assert "Тайна22".encode() in files
        assert "Тайна11".encode() not in files


def test_one_question_at_a_time_and_cancel(
    server: TelegramServer, predictor: Predictor, tmp_path: Path, slow: threading.Event
) -> None:
    with serving(server, tmp_path / "bot.sqlite", predictor):
        server.write(ALICE, "/query Раз")
        server.wait(lambda: server.chats[ALICE])
        server.ask(ALICE, "/query Два", "ещё отвечаю")
        server.ask(ALICE, "/help", "Задачи")
        server.ask(ALICE, "/cancel", "Прервано")
        server.ask(ALICE, "/cancel", "Прерывать нечего")
        slow.set()
        before = len(server.texts(ALICE))
        server.write(ALICE, "/query Три")
        server.wait(lambda: len(server.chats[ALICE]) > before)


@pytest.mark.usefixtures("shown_soon")
def test_the_queue_shows_places_and_is_bounded(
    server: TelegramServer, predictor: Predictor, tmp_path: Path, slow: threading.Event
) -> None:
    with serving(server, tmp_path / "bot.sqlite", predictor, capacity=2) as worker:
        server.write(1, "/query Раз")
        server.wait(lambda: any("Думаю" in shown.text for shown in server.chats[1]))
        for user in (2, 3):
            server.write(user, "/query Раз")
            place = f"место {user - 1}"
            server.wait(lambda user=user, place=place: any(place in shown.text for shown in server.chats[user]))
        server.ask(4, "/query Раз", "слишком много вопросов")
        slow.set()
        server.wait(lambda: all("место" not in server.chats[user][-1].text for user in (2, 3)))
        assert isinstance(worker, ModelWorker)


def test_limits_of_length_rate_and_time(
    server: TelegramServer, predictor: Predictor, tmp_path: Path, slow: threading.Event
) -> None:
    limits = Limits(questions_a_minute=2, seconds=1.5)
    with serving(server, tmp_path / "bot.sqlite", predictor, limits=limits):
        server.ask(ALICE, "я" * (MAX_CHARACTERS + 1), "Слишком длинно")
        server.ask(ALICE, "/query Раз", "не успела")
        slow.set()
        server.write(ALICE, "/query Два")
        server.wait(lambda: not is_waiting(server.chats[ALICE][-1].text) and len(server.chats[ALICE]) > 2)
        server.ask(ALICE, "/query Три", "Слишком часто")
        server.ask(BORIS, "/query Раз")


def test_what_is_no_text_and_groups(server: TelegramServer, predictor: Predictor, tmp_path: Path) -> None:
    with serving(server, tmp_path / "bot.sqlite", predictor):
        server.write(ALICE, "/start", chat="group")
        server.write(ALICE, None)
        server.wait(lambda: server.chats[ALICE])
        assert server.texts(ALICE) == ["Я понимаю только текст."]
        assert not server.chats[-ALICE]
        server.ask(ALICE, "привет", "Чтобы задать вопрос")


def test_only_the_allowed_are_answered(server: TelegramServer, predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "bot.sqlite"
    with serving(server, path, predictor, allowed=frozenset({ALICE})):
        server.ask(ALICE, "/start", "Здравствуйте")
        server.ask(BORIS, "/query тайна", f"Ваш идентификатор: {BORIS}")
        assert _rows(path, "SELECT id FROM users") == [(ALICE,)]


def test_faults_of_telegram_are_waited_out(
    server: TelegramServer, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.bot.telegram.pause", lambda attempt: 0.05)
    with serving(server, tmp_path / "bot.sqlite", predictor):
        server.faults = [
            Fault("sendMessage", 500, 2),
            Fault("sendMessage", 429, 1, retry_after=1),
            Fault("getUpdates", 502, 2),
            Fault("answerCallbackQuery", 400, 1),
        ]
        server.ask(ALICE, "/tasks", "Какую задачу")
        server.choose(ALICE, "TERRa", "?")
        assert [len(server.texts(ALICE)), sum(fault.times for fault in server.faults)] == [2, 0]


def test_a_user_who_blocked_the_bot_disturbs_nobody(
    server: TelegramServer, predictor: Predictor, tmp_path: Path
) -> None:
    path = tmp_path / "bot.sqlite"
    with serving(server, path, predictor):
        server.blocked_by.add(ALICE)
        server.write(ALICE, "/query Раз")
        server.write(ALICE, "/help")
        server.ask(BORIS, "/start", "Здравствуйте")
        server.wait(lambda: server.calls["sendMessage"] >= 3)
        deadline = time.monotonic() + 20
        while _rows(path, "SELECT id FROM updates WHERE body IS NOT NULL") and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not _rows(path, "SELECT id FROM updates WHERE body IS NOT NULL")


@pytest.mark.usefixtures("shown_soon")
def test_stopping_ends_the_answer_under_way_and_tells_those_who_wait(
    server: TelegramServer, predictor: Predictor, tmp_path: Path, slow: threading.Event
) -> None:
    with serving(server, tmp_path / "bot.sqlite", predictor):
        server.write(ALICE, "/query Раз")
        server.wait(lambda: any("Думаю" in shown.text for shown in server.chats[ALICE]))
        server.write(BORIS, "/query Два")
        server.wait(lambda: any("место" in shown.text for shown in server.chats[BORIS]))
        threading.Timer(0.5, slow.set).start()
    assert server.texts(BORIS) == ["Бот останавливается. Повторите вопрос позже."]
    assert server.texts(ALICE)[-1] not in ("Думаю…", "Бот останавливается. Повторите вопрос позже.")
    assert not _rows(tmp_path / "bot.sqlite", "SELECT id FROM updates WHERE body IS NOT NULL")


def test_a_wrong_token_is_not_repeated_anywhere(
    server: TelegramServer, predictor: Predictor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.faults = [Fault("getMe", 401, 1)]
    bot = serving(server, tmp_path / "bot.sqlite", predictor)
    with caplog.at_level(logging.DEBUG, "harness"), pytest.raises(UserError) as error, bot:
        pass
    assert TOKEN not in str(error.value)
    assert TOKEN not in caplog.text


def test_logs_hold_no_texts(
    server: TelegramServer,
    predictor: Predictor,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("about Секретное слово")

    monkeypatch.setattr(predictor, "answer", fail)
    with caplog.at_level(logging.DEBUG, "harness"), serving(server, tmp_path / "bot.sqlite", predictor):
        server.ask(ALICE, "/tasks", "Какую")
        server.choose(ALICE, "TERRa", "?")
        server.ask(ALICE, "Секретное слово", "гипотезу")
        server.ask(ALICE, "Секретное слово", "внутренняя ошибка")
    assert "a question failed: RuntimeError" in caplog.text
    assert "Секретное" not in caplog.text


def _rows(path: Path, statement: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(statement).fetchall()
    finally:
        connection.close()


def _stored_turns(path: Path) -> int:
    return len(_rows(path, "SELECT id FROM turns"))
