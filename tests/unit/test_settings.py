"""Settings of interrupted work: kept once, compared when resumed, refused with the place where they differ."""

from __future__ import annotations

import pytest

from harness.errors import UserError
from harness.settings import SETTINGS, agree_on_settings, read_settings

GIVEN = {"seed": 1, "data": {"terra": "ёж"}, "limit": None, "backend-arg": ["a=1"]}


def test_there_are_no_settings_until_they_are_kept(tmp_path):
    with pytest.raises(UserError, match=SETTINGS):
        read_settings(tmp_path)
    agree_on_settings(tmp_path, GIVEN, resume=False, what="run")
    assert read_settings(tmp_path) == GIVEN


def test_resumed_work_with_the_same_settings_may_continue(tmp_path):
    agree_on_settings(tmp_path / "work", GIVEN, resume=False, what="run")
    agree_on_settings(tmp_path / "work", {**GIVEN, "backend-arg": ("a=1",)}, resume=True, what="run")


@pytest.mark.parametrize(
    ("change", "place"),
    [({"seed": 2}, "seed (1, now 2)"), ({"data": {"terra": "уж"}}, "data.terra (ёж, now уж)"), ({"more": 1}, "more")],
)
def test_other_settings_are_refused_with_the_place(tmp_path, change, place):
    agree_on_settings(tmp_path, GIVEN, resume=False, what="run")
    with pytest.raises(UserError) as caught:
        agree_on_settings(tmp_path, {**GIVEN, **change}, resume=True, what="run")
    assert place in caught.value.message
    assert read_settings(tmp_path) == GIVEN


def test_unfinished_work_is_not_overwritten_and_missing_work_not_resumed(tmp_path):
    with pytest.raises(UserError, match="no training run to resume"):
        agree_on_settings(tmp_path, GIVEN, resume=True, what="training run")
    agree_on_settings(tmp_path, GIVEN, resume=False, what="training run")
    with pytest.raises(UserError, match="holds an unfinished training run"):
        agree_on_settings(tmp_path, GIVEN, resume=False, what="training run")


@pytest.mark.parametrize("content", ["", "[1]", "{"])
def test_damaged_settings_are_one_line(tmp_path, content):
    (tmp_path / SETTINGS).write_text(content)
    with pytest.raises(UserError):
        agree_on_settings(tmp_path, GIVEN, resume=True, what="run")
