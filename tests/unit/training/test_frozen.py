"""Kept output of the frozen layers: what was put comes back bit for bit, or is computed again."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from harness.errors import UserError
from harness.scoring.encoding import ScoredSequence
from harness.scoring.packing import PackedSequence, pack
from harness.training import frozen
from harness.training.frozen import FrozenStates

WIDTH = 4
LENGTHS = (5, 1, 8, 3)
SIZE = sum(LENGTHS) * WIDTH * 4  # bytes in float32


def sequences(lengths: Sequence[int] = LENGTHS, first: int = 10) -> list[PackedSequence]:
    # The last token of a sequence is only predicted, so it is none of the packed ones.
    return [pack([ScoredSequence(tuple(range(first, first + length + 1)), 1)]) for length in lengths]


def opened(
    directory: Path,
    packed: Sequence[PackedSequence] | None = None,
    *,
    identity: Sequence[object] = ("model", 2),
    width: int = WIDTH,
    dtype: str = "float32",
    limit: int = 10**9,
) -> FrozenStates:
    return FrozenStates(directory, identity, sequences() if packed is None else packed, width, dtype, limit)


def states(number: int, dtype: str = "float32") -> np.ndarray:
    """Arbitrary bits, among them infinities and NaNs."""
    bits = np.random.default_rng(number).integers(0, 2**16, (LENGTHS[number], WIDTH * 2), dtype=np.uint16)
    bits[0, :2] = 0xFFFF
    return bits[:, :WIDTH] if dtype == "bfloat16" else bits.view(np.float32)


def fill(kept: FrozenStates, dtype: str = "float32") -> None:
    for number in range(len(LENGTHS)):
        kept.put(number, states(number, dtype))


def found(kept: FrozenStates) -> list[int]:
    """Numbers of the sequences that are there, each of which must be whole."""
    numbers = [number for number in range(len(LENGTHS)) if kept.get(number) is not None]
    for number in numbers:
        assert kept.get(number).tobytes() == states(number).tobytes()
    return numbers


def states_file(directory: Path) -> Path:
    (path,) = directory.glob("*.states")
    return path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_put_comes_back_bit_for_bit_in_a_new_object(tmp_path, dtype):
    fill(opened(tmp_path, dtype=dtype), dtype)
    again = opened(tmp_path, dtype=dtype)
    for number, length in enumerate(LENGTHS):
        kept = again.get(number)
        assert kept.shape == (length, WIDTH)
        assert kept.dtype == states(number, dtype).dtype
        assert kept.tobytes() == states(number, dtype).tobytes()


def test_what_is_put_is_there_at_once(tmp_path):
    kept = opened(tmp_path)
    assert found(kept) == []
    kept.put(2, states(2))
    assert found(kept) == [2]


def test_states_of_zeros_are_not_taken_for_missing_ones(tmp_path):
    kept = opened(tmp_path)
    kept.put(0, np.zeros((LENGTHS[0], WIDTH), dtype=np.float32))
    assert not opened(tmp_path).get(0).any()
    assert opened(tmp_path).get(1) is None


@pytest.mark.parametrize("identity", [("other model", 2), ("model", 3), ("model",), ("model2",), ("model", 2, "")])
def test_another_identity_finds_nothing_and_spoils_nothing(tmp_path, identity):
    fill(opened(tmp_path))
    other = opened(tmp_path, identity=identity)
    assert found(other) == []
    other.put(0, -states(0))
    assert found(opened(tmp_path)) == [0, 1, 2, 3]


def test_other_tokens_find_nothing(tmp_path):
    fill(opened(tmp_path))
    assert found(opened(tmp_path, sequences(first=11))) == []


@pytest.mark.parametrize("field", ["positions", "subtree_end"])
def test_the_same_tokens_in_another_tree_find_nothing(tmp_path, field):
    fill(opened(tmp_path))
    packed = sequences()
    packed[2] = replace(packed[2], **{field: getattr(packed[2], field) + 1})
    assert found(opened(tmp_path, packed)) == []


def test_the_same_sequences_in_another_order_find_nothing(tmp_path):
    fill(opened(tmp_path))
    kept = opened(tmp_path, sequences()[::-1])
    assert [kept.get(number) for number in range(len(LENGTHS))] == [None] * len(LENGTHS)


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(len(LENGTHS)))
@pytest.mark.parametrize("end", ["first", "last"])
def test_a_damaged_part_is_not_given_and_the_others_are(tmp_path, number, end):
    fill(opened(tmp_path))
    path = states_file(tmp_path)
    content = bytearray(path.read_bytes())
    assert len(content) == SIZE
    place = sum(LENGTHS[:number]) if end == "first" else sum(LENGTHS[: number + 1])
    content[place * WIDTH * 4 - (end == "last")] ^= 1
    path.write_bytes(content)
    kept = opened(tmp_path)
    assert found(kept) == [other for other in range(len(LENGTHS)) if other != number]
    kept.put(number, states(number))
    assert found(opened(tmp_path)) == [0, 1, 2, 3]


@pytest.mark.parametrize("before", ["nothing", "other states"])
def test_a_part_whose_writing_was_cut_short_is_not_given(tmp_path, monkeypatch, before):
    kept = opened(tmp_path)
    if before == "other states":
        kept.put(0, states(0) * 0)

    def killed(_: np.ndarray) -> int:
        raise KeyboardInterrupt  # the states are in the file by now, their checksum is not

    with monkeypatch.context() as patch:
        patch.setattr(frozen, "_checksum", killed)
        with pytest.raises(KeyboardInterrupt):
            kept.put(0, states(0))
    assert states(0).tobytes() in states_file(tmp_path).read_bytes()
    assert opened(tmp_path).get(0) is None


@pytest.mark.parametrize("suffix", ["states", "sums"])
def test_a_file_that_is_gone_or_short_costs_only_the_computation(tmp_path, suffix):
    fill(opened(tmp_path))
    (path,) = tmp_path.glob(f"*.{suffix}")
    path.write_bytes(path.read_bytes()[:8])
    assert set(found(opened(tmp_path))) < {0, 1, 2, 3}
    path.unlink()
    kept = opened(tmp_path)
    assert found(kept) == []
    fill(kept)
    assert found(opened(tmp_path)) == [0, 1, 2, 3]


# --- size -------------------------------------------------------------------------------------------------------------


def test_the_limit_keeps_only_the_first_sequences(tmp_path):
    two = (LENGTHS[0] + LENGTHS[1]) * WIDTH * 4
    three = two + LENGTHS[2] * WIDTH * 4
    for limit, numbers in ((two, [0, 1]), (three - 1, [0, 1]), (three, [0, 1, 2]), (SIZE, [0, 1, 2, 3])):
        kept = opened(tmp_path / str(limit), limit=limit)
        fill(kept)
        assert found(kept) == found(opened(tmp_path / str(limit), limit=limit)) == numbers
        assert kept.size_bytes == states_file(tmp_path / str(limit)).stat().st_size <= limit


def test_a_raised_limit_keeps_what_was_there(tmp_path):
    fill(opened(tmp_path, limit=SIZE - 1))
    kept = opened(tmp_path, limit=SIZE)
    assert found(kept) == [0, 1, 2]
    kept.put(3, states(3))
    assert found(opened(tmp_path, limit=SIZE)) == [0, 1, 2, 3]


def test_a_limit_too_low_for_any_sequence_writes_nothing(tmp_path, caplog):
    caplog.set_level(logging.INFO, "harness")
    kept = opened(tmp_path / "cache", limit=LENGTHS[0] * WIDTH * 4 - 1)
    fill(kept)
    assert found(kept) == []
    assert kept.size_bytes == 0
    assert not (tmp_path / "cache").exists()
    assert caplog.messages == []


def test_the_size_is_announced_before_anything_is_written(tmp_path, monkeypatch):
    announced: list[str] = []

    def info(text: str, *arguments: object) -> None:
        assert list(tmp_path.iterdir()) == []
        announced.append(text % arguments)

    monkeypatch.setattr(frozen.log, "info", info)
    opened(tmp_path, sequences([10, 10]), width=2**18)  # 20 tokens of 1 MiB
    assert list(tmp_path.iterdir()) != []
    assert announced == [f"output of the frozen layers: 0.02 GiB in {tmp_path}"]


def test_the_announcement_says_what_the_limit_leaves_out(tmp_path, caplog):
    caplog.set_level(logging.INFO, "harness")
    opened(tmp_path, limit=SIZE - 1)
    assert "of 3 of 4 texts: frozen_cache_gb" in caplog.messages[0]


def free_space(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(frozen.shutil, "disk_usage", lambda _: SimpleNamespace(free=size))


def test_too_little_room_is_a_user_error_and_writes_nothing(tmp_path, monkeypatch):
    free_space(monkeypatch, SIZE - 1)
    with pytest.raises(UserError, match="GiB free") as caught:
        opened(tmp_path)
    assert "frozen_cache_gb" in caught.value.hint
    assert list(tmp_path.iterdir()) == []
    free_space(monkeypatch, SIZE)
    fill(opened(tmp_path))


def test_a_file_that_is_there_needs_no_room_again(tmp_path, monkeypatch):
    fill(opened(tmp_path))
    free_space(monkeypatch, 0)
    assert found(opened(tmp_path)) == [0, 1, 2, 3]


def test_a_raised_limit_needs_room_for_what_is_added(tmp_path, monkeypatch):
    opened(tmp_path, limit=SIZE - 1)
    free_space(monkeypatch, 0)
    with pytest.raises(UserError, match="GiB free"):
        opened(tmp_path, limit=SIZE)


def test_a_place_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        opened(tmp_path / "file" / "cache")
