"""`rsg-harness quantize --format gguf`: the file and the heads beside it are the model again; the rest is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gguf
import pytest

from adapters.llama_library import library_file, load_library
from harness.records.run import read_run, read_samples
from tests.integration.command import Command, call_here

needs_llama_cpp = pytest.mark.skipif(library_file() is None, reason="xllamacpp is not installed")


@pytest.fixture
def rsg_harness_shared(tmp_path: Path, shared_environment: dict[str, str]) -> Command:
    """Runs the command in this process with the cache that all tests share, which holds the checkpoint fused."""
    return lambda *arguments: call_here(arguments, tmp_path, shared_environment)


def write(command: Command, model: Path | str, kind: str, output: str) -> str:
    done = command("quantize", "--model", model, "--format", "gguf", "--bits", kind, "--output", output)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_checkpoint_in_a_file_of_whole_weights_answers_as_before(
    rsg_harness_shared: Command, checkpoint: Path, tmp_path: Path
) -> None:
    # Norms are stored in float32.
    assert "16.13 bits a weight" in write(rsg_harness_shared, checkpoint, "BF16", "small.gguf")
    assert {path.name for path in (tmp_path / "small.rsg").iterdir()} == {
        "README.md",
        "heads.safetensors",
        "rsg_checkpoint.json",
    }
    # The source is stored in float32, so its numbers are those of the file only where both are rounded.
    options = ("--backend", "torch", "--dtype", "bfloat16", "--tasks", "terra,muserc,parus", "--limit", "3")
    scores = []
    for number, model in enumerate(("small.gguf", "small.rsg", checkpoint)):
        run = rsg_harness_shared("run", "--model", model, *options, "--output", f"run{number}")
        assert run.returncode == 0, run.stderr
        scores.append([sample.scores for sample in read_samples(tmp_path / f"run{number}")])
    assert scores[0] == scores[1]
    assert scores[0] == scores[2]
    record = read_run(tmp_path / "run0")
    assert record.tasks["terra"].head == "classification"
    assert record.model.name == read_run(tmp_path / "run2").model.name


@needs_llama_cpp
def test_a_quantised_checkpoint_keeps_its_heads(rsg_harness_shared: Command, checkpoint: Path, tmp_path: Path) -> None:
    write(rsg_harness_shared, checkpoint, "q4_k_m", "small.gguf")
    heads = tmp_path / "small.rsg" / "heads.safetensors"
    assert heads.read_bytes() == (checkpoint / "heads.safetensors").read_bytes()
    file_type = gguf.GGUFReader(tmp_path / "small.gguf").fields["general.file_type"].contents()
    assert file_type == gguf.LlamaFileType.MOSTLY_Q4_K_M
    run = rsg_harness_shared("run", "--model", "small.gguf", "--backend", "torch", "--tasks", "terra", "--limit", "2")
    assert run.returncode == 0, run.stderr
    assert "classification" in run.stdout


def test_heads_and_file_stay_together(rsg_harness_shared: Command, checkpoint: Path, tmp_path: Path) -> None:
    write(rsg_harness_shared, checkpoint, "bf16", "one.gguf")
    for place in ("one", "two"):
        shutil.copytree(tmp_path / "one.rsg", tmp_path / place / "renamed.rsg")
    shutil.copyfile(tmp_path / "one.gguf", tmp_path / "one" / "renamed.gguf")
    content = bytearray((tmp_path / "one.gguf").read_bytes())
    content[-1] ^= 1
    (tmp_path / "two" / "renamed.gguf").write_bytes(content)

    def predict(model: str) -> tuple[int, str]:
        done = rsg_harness_shared(
            "predict", "--model", model, "--backend", "torch", "--task", "terra", "--premise", "Идёт дождь.",
            "--hypothesis", "На улице мокро.",
        )  # fmt: skip
        return done.returncode, done.stderr

    assert predict("one/renamed.gguf")[0] == 0
    code, message = predict("two/renamed.gguf")
    assert code == 2
    assert "two/renamed.gguf is not the model that the heads in two/renamed.rsg belong to" in message
    (tmp_path / "two" / "renamed.gguf").unlink()
    assert "two/renamed.gguf is missing" in predict("two/renamed.gguf")[1]


def test_a_file_of_whole_weights_can_be_quantised_and_a_quantised_one_not(
    rsg_harness: Command, tiny_model: Path, tmp_path: Path
) -> None:
    write(rsg_harness, tiny_model, "f16", "whole.gguf")
    write(rsg_harness, "whole.gguf", "bf16", "again.gguf")
    if library_file() is None:
        pytest.skip("xllamacpp is not installed")
    assert "8.69 bits a weight" in write(rsg_harness, "whole.gguf", "q8_0", "small.gguf")
    done = rsg_harness(
        "quantize", "--model", "small.gguf", "--format", "gguf", "--bits", "q4_0", "--output", "smaller.gguf"
    )
    assert done.returncode == 2
    assert "small.gguf is quantised already: it stores " in done.stderr
    assert not (tmp_path / "smaller.gguf").exists()


def test_what_cannot_be_written_is_refused(
    rsg_harness: Command, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(*arguments: str | Path) -> str:
        done = rsg_harness("quantize", "--model", tiny_model, *arguments)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr.splitlines()[-1]

    new = ("--format", "gguf", "--output", "new.gguf")
    for option, value in (
        ("--group-size", "32"), ("--mode", "mxfp4"), ("--recipe", "mixed_4_6"), ("--method", "awq"),
        ("--target-bits", "6"), ("--samples", "5"),
    ):  # fmt: skip
        assert f"{option} is an option of MLX's format" in refusal(*new, option, value)
    assert "unknown format 'ggml'" in refusal("--format", "ggml", "--output", "new.gguf")
    assert "did you mean q4_k_m" in refusal(*new, "--bits", "q4km")
    assert "GGUF files know no --bits 4" in refusal(*new, "--bits", "4")
    assert "new does not end in .gguf" in refusal("--format", "gguf", "--output", "new")
    (tmp_path / "there.gguf").touch()
    assert "there.gguf exists already" in refusal("--format", "gguf", "--output", "there.gguf")
    (tmp_path / "other.rsg").mkdir()
    assert "other.rsg exists already" in refusal("--format", "gguf", "--output", "other.gguf")
    assert "add --format gguf" in refusal("--bits", "q4_k_m", "--output", "new")
    assert "add --format gguf" in refusal("--output", "new.gguf")
    assert "--bits four is no number" in refusal("--bits", "four", "--output", "new")
    monkeypatch.setattr("adapters.llama_library.library_file", lambda: None)
    monkeypatch.setattr("adapters.llama_library.load_library", load_library.__wrapped__)
    assert "llama.cpp is not installed" in refusal(*new, "--bits", "q8_0")
    assert not (tmp_path / "new.gguf").exists()
    assert not (tmp_path / "new").exists()


def test_a_model_that_mlx_quantised_and_an_unknown_architecture_are_refused(
    rsg_harness: Command, tiny_model: Path, tmp_path: Path
) -> None:
    assert rsg_harness("quantize", "--model", tiny_model, "--output", "q4").returncode == 0
    done = rsg_harness("quantize", "--model", "q4", "--format", "gguf", "--bits", "bf16", "--output", "new.gguf")
    assert done.returncode == 2
    assert "q4 is already quantised to 4 bits" in done.stderr
    shutil.copytree(tiny_model, tmp_path / "other")
    config = json.loads((tiny_model / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps({**config, "model_type": "gemma2"}))
    done = rsg_harness("quantize", "--model", "other", "--format", "gguf", "--bits", "bf16", "--output", "new.gguf")
    assert done.returncode == 2
    assert "not for gemma2" in done.stderr
    assert "convert_hf_to_gguf.py" in done.stderr
    assert not list(tmp_path.glob("*new*"))
