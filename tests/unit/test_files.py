"""Files and directories appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib

import pytest

from harness import files
from harness.errors import UserError
from harness.files import cached_directory, remembered_hash, whole_directory, whole_file, write_atomically


def test_a_directory_appears_when_the_block_ends(tmp_path):
    target = tmp_path / "deep" / "model"
    with whole_directory(target) as scratch:
        (scratch / "part").write_text("да")
        assert not target.exists()
    assert (target / "part").read_text() == "да"
    assert [path.name for path in target.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("error", [ValueError("bug"), KeyboardInterrupt()])
def test_an_error_in_the_block_leaves_nothing(tmp_path, error):
    with pytest.raises(type(error)), whole_directory(tmp_path / "model") as scratch:  # noqa: PT012
        (scratch / "part").write_text("да")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line_with_a_hint(tmp_path):
    with pytest.raises(UserError) as caught, whole_directory(tmp_path / "model", "free some space"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.message == f"cannot write {tmp_path / 'model'}: No space left on device"
    assert caught.value.hint == "free some space"


def test_an_existing_empty_directory_is_replaced_and_a_full_one_stays(tmp_path):
    (tmp_path / "empty").mkdir()
    with whole_directory(tmp_path / "empty") as scratch:
        (scratch / "part").write_text("да")
    assert (tmp_path / "empty" / "part").exists()
    with whole_directory(tmp_path / "empty", exist_ok=True) as scratch:  # another process was faster
        (scratch / "other").write_text("нет")
    with pytest.raises(UserError, match="cannot write"), whole_directory(tmp_path / "empty") as scratch:
        (scratch / "other").write_text("нет")
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["part"]


def test_a_file_appears_when_the_block_ends(tmp_path):
    target = tmp_path / "deep" / "model.gguf"
    with whole_file(target) as scratch:
        scratch.write_text("да")
        assert not target.exists()
    assert target.read_text() == "да"
    assert target.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in target.parent.iterdir()] == ["model.gguf"]


@pytest.mark.parametrize("error", [ValueError("bug"), KeyboardInterrupt()])
def test_an_error_in_the_block_leaves_no_file(tmp_path, error):
    with pytest.raises(type(error)), whole_file(tmp_path / "model.gguf") as scratch:  # noqa: PT012
        scratch.write_text("да")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_under_a_file_is_one_line_with_a_hint(tmp_path):
    with pytest.raises(UserError) as caught, whole_file(tmp_path / "model.gguf", "free some space"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.message == f"cannot write {tmp_path / 'model.gguf'}: No space left on device"
    assert caught.value.hint == "free some space"


def test_a_cached_directory_is_made_once(tmp_path, monkeypatch):
    monkeypatch.setenv("RSG_HARNESS_CACHE", str(tmp_path))
    made = []

    def make(directory):
        made.append(directory)
        (directory / "part").write_text("да")

    for _ in range(2):
        assert (cached_directory("models/one", make, "making it") / "part").read_text() == "да"
    assert len(made) == 1


def test_an_atomic_write_keeps_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_a_remembered_hash_is_never_read_from_an_empty_file(tmp_path, monkeypatch):
    monkeypatch.setenv("RSG_HARNESS_CACHE", str(tmp_path / "cache"))
    large = tmp_path / "weights"
    large.write_bytes(b"abc")
    expected = hashlib.sha256(b"abc").hexdigest()
    assert remembered_hash(large) == expected
    (kept,) = (tmp_path / "cache" / "hashes").iterdir()
    kept.write_text("")
    assert remembered_hash(large) == expected
