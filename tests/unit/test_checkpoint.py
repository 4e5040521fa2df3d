"""Checkpoints: written whole or not at all, read back as written, and nothing damaged is read in silence."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adapters.low_rank import ADAPTER, ADAPTER_CONFIG
from harness.errors import UserError
from harness.files import whole_directory
from harness.models.checkpoint import (
    DESCRIPTION,
    FORMAT_VERSION,
    HEADS,
    BaseReference,
    TrainingRecord,
    ValidationRecord,
    head_descriptions,
    is_checkpoint,
    read_checkpoint,
    read_heads,
    write_checkpoint,
)
from harness.models.heads import make_layout

LAYOUT = make_layout({"terra": "classification", "muserc": "sigmoid", "rucos": "ranking", "parus": "likelihood"})
PROMPTS = {"terra": ("then", "aa"), "muserc": ("exam", "bb"), "rucos": ("gap", "cc"), "parus": ("because", "dd")}
TRAINING = TrainingRecord(
    recipe={"model": "embedded"},
    step=150,
    validation=ValidationRecord(limit=None, mean=0.5, figures={"terra": {"acc": 1 / 3}}),
    data={"terra train": "ff"},
    documents={"terra": 24},
    versions={"python": "3.11"},
    machine={"cores": 2},
    git_commit=None,
    command="rsg-harness train",
)
HASHED = (HEADS, ADAPTER, ADAPTER_CONFIG)


def tensor(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def written(directory: Path, **changes: Any) -> Path:
    description = {
        "name": "проба",
        "base": BaseReference(model="embedded", origin="wheel", sha256="ee"),
        "adaptation": "lora",
        "frozen_layers": 6,
        "chat_template": True,
        "tasks": head_descriptions(LAYOUT, PROMPTS),
        "head_rows": LAYOUT.rows,
        "training": TRAINING,
        **changes,
    }
    tensors = {
        HEADS: {"weight": tensor(LAYOUT.rows, 8), "bias": tensor(LAYOUT.rows)},
        ADAPTER: {"lora_A": tensor(4, 8).bfloat16()},
    }
    write_checkpoint(directory, description, tensors, {ADAPTER_CONFIG: '{"r": 4}', "README.md": "# Проба\n"})
    return directory


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return written(tmp_path / "checkpoint")


def redescribe(directory: Path, **changes: Any) -> None:
    path = directory / DESCRIPTION
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


# --- round trip -------------------------------------------------------------------------------------------------------


def test_a_description_comes_back_as_it_was_written(checkpoint):
    found = read_checkpoint(checkpoint)
    assert found.format_version == FORMAT_VERSION
    assert (found.name, found.adaptation, found.frozen_layers, found.chat_template) == ("проба", "lora", 6, True)
    assert found.base == BaseReference(model="embedded", origin="wheel", sha256="ee")
    assert found.training == TRAINING
    assert found.tasks == head_descriptions(LAYOUT, PROMPTS)
    assert found.layout() == LAYOUT
    assert set(found.files) == set(HASHED)


def test_heads_come_back_bit_for_bit(checkpoint):
    heads = read_heads(checkpoint)
    assert heads.layout == LAYOUT
    assert heads.weight.tobytes() == tensor(LAYOUT.rows, 8).numpy().tobytes()
    assert heads.bias.tobytes() == tensor(LAYOUT.rows).numpy().tobytes()


def test_heads_stored_in_half_precision_are_read_as_float32(tmp_path):
    description = read_checkpoint(written(tmp_path / "other")).model_dump(exclude={"files"})
    weight, bias = tensor(LAYOUT.rows, 8).half(), tensor(LAYOUT.rows).half()
    write_checkpoint(tmp_path / "half", description, {HEADS: {"weight": weight, "bias": bias}}, {})
    heads = read_heads(tmp_path / "half")
    assert heads.weight.dtype == heads.bias.dtype == np.float32
    assert np.array_equal(heads.weight, weight.float().numpy())


def test_a_task_head_knows_its_labels_rows_and_prompt():
    heads = head_descriptions(LAYOUT, PROMPTS)
    assert list(heads) == ["terra", "muserc", "rucos", "parus"]
    assert heads["terra"].labels == ("entailment", "not_entailment")
    assert heads["rucos"].labels == ()
    assert [head.first_row for head in heads.values()] == [1, 3, 4, 5]
    assert (heads["muserc"].kind, heads["muserc"].prompt, heads["muserc"].prompt_sha256) == ("sigmoid", "exam", "bb")


def test_lidirus_reads_the_prompt_of_terras_head(checkpoint, tmp_path):
    own = {task: name for task, (name, _) in PROMPTS.items()}
    assert read_checkpoint(checkpoint).prompts() == {**own, "lidirus": "then"}
    layout = make_layout({"rcb": "classification"})
    tasks = head_descriptions(layout, {"rcb": ("relation", "aa")})
    alone = read_checkpoint(written(tmp_path / "alone", tasks=tasks))
    assert alone.prompts() == {"rcb": "relation"}


def test_a_directory_is_a_checkpoint_by_its_description(checkpoint, tmp_path):
    assert is_checkpoint(checkpoint)
    assert not is_checkpoint(tmp_path)
    assert not is_checkpoint(tmp_path / "missing")


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", [read_checkpoint, read_heads])
@pytest.mark.parametrize("name", HASHED)
def test_a_missing_file_is_named(checkpoint, name, read):
    (checkpoint / name).unlink()
    with pytest.raises(UserError) as caught:
        read(checkpoint)
    assert caught.value.message == f"{checkpoint / name} is missing"


@pytest.mark.parametrize("read", [read_checkpoint, read_heads])
@pytest.mark.parametrize("damage", ["a bit turned", "cut short", "empty", "longer"])
@pytest.mark.parametrize("name", HASHED)
def test_a_damaged_file_is_named(checkpoint, name, damage, read):
    content = (checkpoint / name).read_bytes()
    damaged = {
        "a bit turned": content[:-1] + bytes([content[-1] ^ 1]),
        "cut short": content[:-1],
        "empty": b"",
        "longer": content + b"\0",
    }
    (checkpoint / name).write_bytes(damaged[damage])
    with pytest.raises(UserError) as caught:
        read(checkpoint)
    assert caught.value.message.startswith(f"{checkpoint / name} is damaged")


def test_a_missing_description_is_named(checkpoint):
    (checkpoint / DESCRIPTION).unlink()
    with pytest.raises(UserError, match=f"{checkpoint} holds no {DESCRIPTION}"):
        read_checkpoint(checkpoint)


@pytest.mark.parametrize("content", [b"", b'{"format_version": 1', b"[]", b"null", b"{}", b'"text"', b"\xff\xfe"])
def test_a_description_that_is_no_description_is_named(checkpoint, content):
    (checkpoint / DESCRIPTION).write_bytes(content)
    with pytest.raises(UserError, match=f"cannot read {checkpoint / DESCRIPTION}"):
        read_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"head_rows": None}, "head_rows"),
        ({"files": None}, "files"),
        ({"colour": "red"}, "colour"),
        ({"adaptation": "prompt"}, "adaptation"),
        ({"frozen_layers": "many"}, "frozen_layers"),
        ({"tasks": {"terra": {"kind": "classification"}}}, r"tasks\.terra\.labels"),
    ],
)
def test_a_description_with_a_wrong_field_names_the_field(checkpoint, changes, where):
    redescribe(checkpoint, **changes)
    with pytest.raises(UserError, match=f"{DESCRIPTION} is damaged: {where}: "):
        read_checkpoint(checkpoint)


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, 0, "1"])
def test_another_format_version_is_refused_whatever_else_it_holds(checkpoint, version):
    redescribe(checkpoint, format_version=version, colour="red", head_rows=None)
    with pytest.raises(UserError) as caught:
        read_checkpoint(checkpoint)
    assert f"has format version {version}" in caught.value.message
    assert f"reads {FORMAT_VERSION}" in caught.value.message


def test_the_model_card_may_be_edited_or_left_out(checkpoint):
    (checkpoint / "README.md").write_text("# Своё\n")
    assert read_checkpoint(checkpoint).name == "проба"
    (checkpoint / "README.md").unlink()
    assert read_checkpoint(checkpoint).name == "проба"


# --- writing ----------------------------------------------------------------------------------------------------------


def write_directory(directory: Path, contents: dict[str, bytes]) -> None:
    with whole_directory(directory) as scratch:
        for name, content in contents.items():
            (scratch / name).write_bytes(content)


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException, after: int = 0) -> None:
    """Every `os.fsync` after the first few fails."""
    whole, done = os.fsync, []

    def fsync(descriptor: int) -> None:
        done.append(descriptor)
        if len(done) > after:
            raise error
        whole(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


def test_a_directory_has_the_files_given_and_nothing_else(tmp_path):
    write_directory(tmp_path / "new" / "deep", {"a": b"1", "b": b"\x00\xff"})
    assert {path.name: path.read_bytes() for path in (tmp_path / "new" / "deep").iterdir()} == {
        "a": b"1",
        "b": b"\x00\xff",
    }
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["deep"]


def test_a_directory_can_be_read_by_others(tmp_path):
    write_directory(tmp_path / "new", {"a": b"1"})
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("after", [0, 1])
def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch, after):
    failing(monkeypatch, OSError(28, "No space left on device"), after)
    with pytest.raises(UserError, match=f"cannot write {tmp_path / 'new'}: No space left on device") as caught:
        write_directory(tmp_path / "new", {"a": b"1", "b": b"2"})
    assert "free some space" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_writing_leaves_nothing_behind(tmp_path, monkeypatch):
    failing(monkeypatch, KeyboardInterrupt(), after=1)
    with pytest.raises(KeyboardInterrupt):
        write_directory(tmp_path / "new", {"a": b"1", "b": b"2"})
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_does_not_fit_the_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    failing(monkeypatch, OSError(28, "No space left on device"), after=2)
    with pytest.raises(UserError, match="cannot write"):
        written(tmp_path / "checkpoint")
    assert list(tmp_path.iterdir()) == []


def test_the_directory_is_not_there_before_it_is_whole(tmp_path, monkeypatch):
    seen = []
    whole = os.fsync

    def fsync(descriptor: int) -> None:
        seen.append((tmp_path / "new").exists())
        whole(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_directory(tmp_path / "new", {"a": b"1", "b": b"2"})
    assert seen == [False, False]


def test_a_file_in_the_parents_place_is_a_user_error(tmp_path):
    (tmp_path / "parent").write_text("here")
    with pytest.raises(UserError, match="cannot write"):
        write_directory(tmp_path / "parent" / "new", {"a": b"1"})
    assert [path.name for path in tmp_path.iterdir()] == ["parent"]
    assert (tmp_path / "parent").read_text() == "here"


def test_a_directory_that_is_there_already_stays_as_it_was(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "copy")
    with pytest.raises(UserError, match="cannot write"):
        written(checkpoint, name="другая")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "copy"]
    for path in (tmp_path / "copy").iterdir():
        assert (checkpoint / path.name).read_bytes() == path.read_bytes()
