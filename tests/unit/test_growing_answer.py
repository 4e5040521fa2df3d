"""Generated text while it grows."""

from __future__ import annotations

import pytest

from adapters.text import GrowingAnswer, cut_at_stop


def shown_for(stop: tuple[str, ...], *wholes: str) -> tuple[list[str], str, list[bool]]:
    """Return what was reported, the final text, and whether each update found a stop string."""
    shown: list[str] = []
    answer = GrowingAnswer(stop, shown.append)
    stopped = [answer.update(whole) for whole in wholes]
    return shown, answer.finish(), stopped


def test_the_text_ends_before_the_first_stop_string() -> None:
    assert cut_at_stop("да, но нет", ("нет", ", ")) == ("да", True)
    assert cut_at_stop("да", ("нет",)) == ("да", False)
    assert shown_for(("\n",), "да", "да\nВопрос") == (["да"], "да", [False, True])


@pytest.mark.parametrize(
    ("wholes", "shown"),
    [
        (("да\n", "да\nнет"), ["да", "да\nнет"]),  # half of the stop string, then something else
        (("да Воп", "да Вопрос"), ["да "]),
        (("да\ufffd", "да\ufffd\ufffd", "даё"), ["да", "даё"]),  # bytes of a character that is not whole yet
    ],
)
def test_text_that_can_be_taken_back_is_not_shown(wholes: tuple[str, ...], shown: list[str]) -> None:
    assert shown_for(("\n\n", "Вопрос"), *wholes)[0] == shown


def test_text_held_back_is_part_of_the_final_answer() -> None:
    shown, text, _ = shown_for(("\n\n",), "да\n")
    assert text == "да\n"
    assert shown == ["да", "да\n"]


def test_an_empty_stop_string_stops_nothing() -> None:
    assert shown_for(("",), "да") == (["да"], "да", [False])
