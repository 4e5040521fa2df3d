"""The progress store: what was scored comes back exactly, whole or not at all."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from harness.errors import UserError
from harness.scoring.store import ProgressStore

Unit = tuple[np.ndarray, np.ndarray]


def unit(*logprobs: float) -> Unit:
    values = np.array(logprobs, dtype=np.float64)
    return values, values > -1


def filled(path: Path, units: int = 400) -> Path:
    """A store of many pages, closed."""
    with ProgressStore(path) as store:
        store.put_units("plan", {number: unit(*np.linspace(-5, 0, 50)) for number in range(units)})
        store.put_texts("plan", dict.fromkeys(range(units), "да" * 100))
    return path


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    units=st.dictionaries(
        st.integers(0, 1000), hnp.arrays(np.float64, st.integers(0, 5), elements=st.floats(allow_nan=False)), max_size=6
    )
)
def test_units_come_back_bit_by_bit(tmp_path, units):
    path = tmp_path / "store"
    path.unlink(missing_ok=True)
    with ProgressStore(path) as store:
        store.put_units("plan", {number: (values, values > 0) for number, values in units.items()})
    with ProgressStore(path) as store:
        found = store.scored_units("plan")
    assert found.keys() == units.keys()
    for number, values in units.items():
        assert found[number][0].tobytes() == values.tobytes()
        assert found[number][1].tolist() == (values > 0).tolist()


def test_plans_do_not_see_each_others_units_and_texts(tmp_path):
    with ProgressStore(tmp_path / "store") as store:
        store.put_units("a", {0: unit(-1.0)})
        store.put_texts("a", {0: "да"})
        assert store.scored_units("b") == store.texts("b") == {}


@pytest.mark.parametrize("text", ["", "да\nнет", "«Ёж» — 🦔", "a'b\"c;--", "\x00нуль"])
def test_texts_come_back_as_they_were(tmp_path, text):
    with ProgressStore(tmp_path / "store") as store:
        store.put_texts("plan", {3: text, 5: "нет"})
    with ProgressStore(tmp_path / "store") as store:
        assert store.texts("plan") == {3: text, 5: "нет"}


def test_seconds_of_all_parts_of_a_run_add_up(tmp_path):
    for _ in range(3):
        with ProgressStore(tmp_path / "store") as store:
            store.add_seconds(0.1)
            store.add_seconds(1.5)
    with ProgressStore(tmp_path / "store") as store:
        assert store.seconds() == pytest.approx(4.8)


def test_a_new_store_has_no_seconds(tmp_path):
    with ProgressStore(tmp_path / "store") as store:
        assert store.seconds() == 0


def test_what_is_put_is_there_for_another_process_at_once(tmp_path):
    with ProgressStore(tmp_path / "store") as store:
        store.put_units("plan", {0: unit(-1.0)})
        with ProgressStore(tmp_path / "store") as other:
            assert other.scored_units("plan").keys() == {0}


def test_units_are_written_all_or_none(tmp_path):
    """The third unit fails, so the two before it must not stay."""
    with ProgressStore(tmp_path / "store") as store:
        store.put_units("plan", {0: unit(-1.0)})
        with pytest.raises(UserError, match="cannot save") as caught:
            store.put_units("plan", {1: unit(-1.0), 2: unit(-2.0), None: unit(-3.0)})  # type: ignore[dict-item]
        assert "--resume" in caught.value.hint
        assert store.scored_units("plan").keys() == {0}
        store.put_units("plan", {1: unit(-1.0)})  # the store still works
    with ProgressStore(tmp_path / "store") as store:
        assert store.scored_units("plan").keys() == {0, 1}


def test_texts_are_written_all_or_none(tmp_path):
    with ProgressStore(tmp_path / "store") as store:
        with pytest.raises(UserError, match="cannot save"):
            store.put_texts("plan", {0: "да", 1: None})  # type: ignore[dict-item]
        assert store.texts("plan") == {}


def test_a_store_that_another_process_holds_is_a_user_error(tmp_path):
    with ProgressStore(tmp_path / "store") as store:
        store._db.execute("PRAGMA busy_timeout = 10")
        other = sqlite3.connect(tmp_path / "store", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(UserError, match="locked"):
            store.put_units("plan", {0: unit(-1.0)})
        other.close()


@pytest.mark.parametrize(
    "content", [b"not a database at all, and long enough to be read as one" * 20, b"SQLite format 3\x00"]
)
def test_a_file_that_is_no_store_is_a_user_error(tmp_path, content):
    path = tmp_path / "store"
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot open") as caught:
        ProgressStore(path)
    assert "delete the file" in caught.value.hint


@pytest.mark.parametrize("damage", ["truncated", "middle overwritten", "all but the header overwritten"])
def test_a_store_damaged_inside_is_a_user_error(tmp_path, damage):
    path = filled(tmp_path / "store")
    content = bytearray(path.read_bytes())
    assert len(content) > 100_000
    if damage == "truncated":
        content = content[: len(content) // 3]
    elif damage == "middle overwritten":
        content[20_000:-20_000] = b"\xa5" * (len(content) - 40_000)
    else:
        content[100:] = b"\xa5" * (len(content) - 100)
    path.write_bytes(content)
    with pytest.raises(UserError), ProgressStore(path) as store:  # noqa: PT012
        store.seconds()
        store.scored_units("plan")
        store.texts("plan")


def test_a_directory_that_is_not_there_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="cannot open"):
        ProgressStore(tmp_path / "missing" / "store")


def test_a_store_takes_over_what_another_process_scored(tmp_path: Path) -> None:
    with ProgressStore(tmp_path / "progress.sqlite") as first:
        first.put_units("plan", {1: (np.array([-1.5]), np.array([True]))})
        with ProgressStore(tmp_path / "progress-1.sqlite") as other:
            other.put_units("plan", {2: (np.array([-0.25, -3.0]), np.array([False, True]))})
            other.put_texts("texts", {7: "да"})
        first.absorb(tmp_path / "progress-1.sqlite")
        found = first.scored_units("plan")
        assert {unit: (logprobs.tolist(), greedy.tolist()) for unit, (logprobs, greedy) in found.items()} == {
            1: ([-1.5], [True]),
            2: ([-0.25, -3.0], [False, True]),
        }
        assert first.texts("texts") == {7: "да"}
    assert [path.name for path in tmp_path.iterdir()] == ["progress.sqlite"]
