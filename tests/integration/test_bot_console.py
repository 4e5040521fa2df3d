"""The bot in the terminal, as the command starts it."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from tests.integration.command import Command

pytestmark = pytest.mark.xdist_group("bot")


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What the user types, to be filled by the test."""
    lines = io.StringIO()
    monkeypatch.setattr("sys.stdin", lines)
    return lines


def say(typed: io.StringIO, *lines: str) -> None:
    typed.seek(0)
    typed.truncate()
    typed.write("".join(f"{line}\n" for line in lines))
    typed.seek(0)


def test_a_question_is_asked_and_the_language_is_kept(
    rsg_harness: Command, tiny_model: Path, typed: io.StringIO
) -> None:
    bot = ("bot", "--console", "--model", tiny_model)
    say(typed, "/tasks", "5", "Идёт снег.", "Холодно.", "/language en")
    done = rsg_harness(*bot)
    assert done.returncode == 0, done.stderr
    assert "[5] TERRa" in done.stdout
    assert "Пришлите гипотезу." in done.stdout
    assert " % не следует" in done.stdout
    assert "tiny-gemma (torch), " in done.stdout
    assert "I write in English now." in done.stdout
    assert "scoring" not in done.stderr

    say(typed, "/model")
    assert "This model is not on the leaderboard yet." in rsg_harness(*bot).stdout
    say(typed, "/help")
    assert "Беседа" in rsg_harness(*bot, "--language", "ru").stdout
    say(typed, "/cancel")
    assert "Прерывать нечего." in rsg_harness(*bot).stdout


def test_a_quantised_directory_has_no_original_to_compare_with(
    rsg_harness: Command, tiny_model: Path, typed: io.StringIO, tmp_path: Path
) -> None:
    mlx_lm = pytest.importorskip("mlx_lm")
    mlx_lm.convert(str(tiny_model), str(tmp_path / "q4"), quantize=True, q_bits=4, q_group_size=64)
    say(typed, "/compare", "/tasks", "5", "Идёт снег.", "Холодно.")
    done = rsg_harness("bot", "--console", "--model", tmp_path / "q4", "--backend", "mlx-q4")
    assert done.returncode == 0, done.stderr
    assert "Сравнить не с чем" in done.stdout
    assert "внутренняя ошибка" not in done.stdout
    assert "q4 (mlx-q4), " in done.stdout
