"""Records: typed, versioned, migrated from older schemas, refused when damaged or newer."""

from __future__ import annotations

import json

import pytest
import torch

from harness.errors import UserError
from harness.records import provenance
from harness.records.base import Record, read_record, write_record


class Length(Record):
    """Version 2 measures in metres."""

    schema_version: int = 2
    metres: float


MIGRATIONS = {
    0: lambda values: {"schema_version": 1, "feet": values["ft"]},
    1: lambda values: {"schema_version": 2, "metres": values["feet"] * 0.3048},
}


def read(path):
    return read_record(path, Length, version=2, migrations=MIGRATIONS, missing="run it", hint="run it again")


def test_a_record_comes_back_as_it_was_written(tmp_path):
    write_record(tmp_path / "length.json", Length(metres=1.5))
    assert read(tmp_path / "length.json") == Length(metres=1.5)


@pytest.mark.parametrize("values", [{"schema_version": 1, "feet": 10}, {"schema_version": 0, "ft": 10}])
def test_an_older_schema_is_migrated_step_by_step(tmp_path, values):
    path = tmp_path / "length.json"
    path.write_text(json.dumps(values))
    assert read(path).metres == pytest.approx(3.048)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"schema_version": 3, "metres": 1}', "schema version 3; this program reads 2"),
        ('{"metres": 1}', "it has no schema version"),
        ('{"schema_version": 2}', "damaged: metres"),
        ('{"schema_version": 2, "metres": 1, "feet": 3}', "damaged: feet"),
        ("[]", "it has no schema version"),
        ("{", "cannot read"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, content, message):
    path = tmp_path / "length.json"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        read(path)
    assert message in caught.value.message
    assert caught.value.hint == "run it again"


def test_a_missing_record_says_what_to_do(tmp_path):
    with pytest.raises(UserError) as caught:
        read(tmp_path / "length.json")
    assert caught.value.hint == "run it"


def test_the_machine_names_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "gpu" not in provenance.machine() or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    assert provenance.machine()["gpu"] == "NVIDIA H200"
