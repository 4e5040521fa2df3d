"""`rsg-harness run --backend gguf…`: a file as it stands, files made for a backend, and what is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from adapters import gguf_family
from adapters.gguf_writer import write_gguf
from adapters.llama_library import library_file
from harness.records.run import read_run, read_samples
from tests.integration.command import Command, call_here

needs_llama_cpp = pytest.mark.skipif(library_file() is None, reason="xllamacpp is not installed")
CHOICES = ("--tasks", "terra,muserc", "--limit", "3")


def scores_of(directory: Path) -> np.ndarray:
    return np.array([score for sample in read_samples(directory) for score in sample.scores], dtype=np.float64)


@needs_llama_cpp
def test_a_file_as_it_stands_gives_the_scores_of_the_directory_that_it_was_made_from(
    rsg_harness: Command, tiny_model: Path, tmp_path: Path
) -> None:
    write_gguf(tiny_model, tmp_path / "tiny.gguf", "f32")
    runs = (("tiny.gguf", "gguf"), (tiny_model, "gguf-f32"), (tiny_model, "torch"))
    for number, (model, backend) in enumerate(runs):
        done = rsg_harness(
            "run", "--model", model, "--backend", backend, "--dtype", "float32", *CHOICES, "--output", f"run{number}"
        )
        assert done.returncode == 0, done.stderr
    as_it_stands, made, torch = (scores_of(tmp_path / f"run{number}") for number in range(3))
    np.testing.assert_array_equal(as_it_stands, made)
    # Sums over the tokens of an answer; llama.cpp reads Gemma's GELU off a table of 16-bit numbers.
    np.testing.assert_allclose(as_it_stands, torch, atol=0.1)
    record = read_run(tmp_path / "run0")
    assert (record.execution, record.device, record.dtype, record.model.weights) == (
        "llama.cpp", "cpu", "float32", "float32",
    )  # fmt: skip


@needs_llama_cpp
def test_heads_of_a_checkpoint_read_the_states_of_llama_cpp(
    checkpoint: Path, shared_environment: dict[str, str], tmp_path: Path
) -> None:
    for backend in ("gguf-f32", "torch"):
        done = call_here(
            ("run", "--model", checkpoint, "--backend", backend, "--dtype", "float32", *CHOICES, "--output", backend),
            tmp_path,
            shared_environment,
        )
        assert done.returncode == 0, done.stderr
    assert "classification" in done.stdout
    np.testing.assert_allclose(scores_of(tmp_path / "gguf-f32"), scores_of(tmp_path / "torch"), atol=0.05)


@needs_llama_cpp
def test_files_that_hold_no_such_model_are_refused_in_a_line(
    rsg_harness: Command, tiny_model: Path, tmp_path: Path
) -> None:
    write_gguf(tiny_model, tmp_path / "q8.gguf", "q8_0")
    whole = (tmp_path / "q8.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    name, other = b"general.architecture", b"gemma3"
    place = whole.index(name) + len(name) + 4
    length = struct.pack("<Q", len(other))
    assert whole[place : place + 8] == length
    (tmp_path / "new.gguf").write_bytes(whole.replace(length + other, length + b"gemmaX"))
    for model, backend, message in (
        ("cut.gguf", "gguf", "llama.cpp cannot load cut.gguf"),
        ("new.gguf", "gguf", "gemmaX"),
        ("q8.gguf", "gguf-q4_0", "is quantised, and --backend gguf-q4_0 would quantise it again"),
        (tiny_model, "gguf", "--backend gguf runs a .gguf file as it stands"),
    ):
        done = rsg_harness("run", "--model", model, "--backend", backend, *CHOICES)
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_a_missing_library_names_the_extra(
    rsg_harness: Command, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_family, "library_file", lambda: None)
    gguf_family.llama_problem.cache_clear()
    try:
        done = rsg_harness("run", "--model", tiny_model, "--backend", "gguf-q8_0", *CHOICES)
    finally:
        gguf_family.llama_problem.cache_clear()
    assert done.returncode == 2
    assert "--backend gguf-q8_0: llama.cpp is not installed" in done.stderr
    assert "pip install 'rsg-harness[gguf]'" in done.stderr
