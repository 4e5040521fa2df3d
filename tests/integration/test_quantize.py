"""`rsg-harness quantize`: what it writes is loaded by the backends and by mlx_lm; what cannot work is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from harness.records.run import read_run, read_samples
from tests.integration.command import Command, call_here
from tests.integration.training import copy_files


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, shared_environment: dict[str, str]) -> Path:
    """The tiny model in 4 bits with the usual group size."""
    directory = tmp_path_factory.mktemp("quantised")
    done = call_here(("quantize", "--model", tiny_model, "--output", "q4"), directory, shared_environment)
    assert done.returncode == 0, done.stderr
    return directory / "q4"


@pytest.fixture
def rsg_harness_shared(tmp_path: Path, shared_environment: dict[str, str]) -> Command:
    """Runs the command in this process with the cache that all tests share, which holds the checkpoint fused."""
    return lambda *arguments: call_here(arguments, tmp_path, shared_environment)


def test_a_quantised_model_is_what_the_backend_would_make_on_load(
    rsg_harness: Command, tiny_model: Path, tmp_path: Path
) -> None:
    done = rsg_harness("quantize", "--model", tiny_model, "--bits", "4", "--group-size", "32", "--output", "q4")
    assert done.returncode == 0, done.stderr
    # 4 bits, and a bfloat16 scale and bias for 32 weights; norms stay.
    assert "5.0" in done.stdout
    samples = []
    for number, model in enumerate((tmp_path / "q4", tiny_model)):
        run = rsg_harness(
            "run", "--model", model, "--backend", "mlx-q4", "--backend-arg", "group_size=32", "--tasks", "terra",
            "--limit", "6", "--output", f"run{number}",
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        samples.append([sample.scores for sample in read_samples(tmp_path / f"run{number}")])
    assert samples[0] == samples[1]


def test_mlx_lm_generates_with_it(quantised: Path) -> None:
    from mlx_lm import generate, load

    model, tokenizer = load(str(quantised))
    assert isinstance(generate(model, tokenizer, "да", max_tokens=3), str)


@pytest.mark.parametrize("settings", [("--bits", "8"), ("--recipe", "mixed_4_6"), ("--mode", "mxfp4")])
def test_a_quantised_checkpoint_keeps_its_heads(
    rsg_harness_shared: Command,
    checkpoint: Path,
    tmp_path: Path,
    settings: tuple[str, ...],
) -> None:
    done = rsg_harness_shared("quantize", "--model", checkpoint, *settings, "--output", "out")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "heads.safetensors").read_bytes() == (checkpoint / "heads.safetensors").read_bytes()
    bits = json.loads((tmp_path / "out" / "config.json").read_text())["quantization"]["bits"]
    mode = ["--backend-arg", "mode=mxfp4", "--backend-arg", "group_size=32"] if "mxfp4" in settings else []
    run = rsg_harness_shared(
        "run", "--model", "out", "--backend", f"mlx-q{bits}", *mode, "--tasks", "terra,muserc", "--limit", "3",
        "--output", "run",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert read_run(tmp_path / "run").tasks["terra"].head == "classification"


@pytest.mark.slow
def test_sensitivity_raises_parts_within_the_budget(
    rsg_harness_shared: Command, checkpoint: Path, tmp_path: Path
) -> None:
    done = rsg_harness_shared(
        "quantize", "--model", checkpoint, "--method", "sensitivity", "--group-size", "32", "--target-bits", "6",
        "--output", "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    parts = json.loads((tmp_path / "out" / "sensitivity.json").read_text())
    raised = {matrix: part["bits"] for part in parts if part["bits"] > 4 for matrix in part["matrices"]}
    assert 0 < len(raised) < sum(len(part["matrices"]) for part in parts)
    assert len(set(raised.values())) > 1
    assert all(part["divergence"] >= 0 for part in parts)
    assert any(part["divergence"] > 0 for part in parts)
    entries = json.loads((tmp_path / "out" / "config.json").read_text())["quantization"]
    assert {name: entry["bits"] for name, entry in entries.items() if isinstance(entry, dict)} == raised
    bits = float(re.findall(r"([\d.]+) bits a weight", done.stdout)[0])
    # Norms, which are not quantised, come on top.
    assert 5.0 < bits < 6.2
    run = rsg_harness_shared(
        "run", "--model", "out", "--backend", "mlx-q4", "--backend-arg", "group_size=32", "--tasks", "terra",
        "--limit", "3", "--output", "run",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "4, 5, 6 and 8-bit" in read_run(tmp_path / "run").model.weights


def test_rounding_a_part_gives_the_matrices_that_quantising_stores(quantised: Path, tiny_model: Path) -> None:
    from adapters.mlx_weights import dequantized_state
    from adapters.torch_backend import load_torch
    from harness.quantization.rounding import matrix_sizes, rounded

    stored = dict(dequantized_state(quantised))
    model = load_torch("torch", tiny_model, device="cpu", dtype="float32").model
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    names = [name for name in matrix_sizes(model) if "layers.1.mlp" in name]
    with rounded(model, names, 4, 64):
        for name, weight in model.state_dict().items():
            is_rounded = name.removesuffix(".weight") in names
            assert torch.equal(weight, stored[name] if is_rounded else before[name]), name
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]), name
    tensors = load_file(quantised / "model.safetensors")
    assert set(matrix_sizes(model)) == {name.removesuffix(".scales") for name in tensors if name.endswith(".scales")}


@pytest.mark.slow
def test_a_learned_quantisation_of_a_checkpoint_answers_with_its_heads(
    rsg_harness_shared: Command, checkpoint: Path, tmp_path: Path
) -> None:
    arguments = ("--model", checkpoint, "--method", "awq", "--bits", "3", "--group-size", "32", "--samples", "2")
    done = rsg_harness_shared("quantize", *arguments, "--output", "awq")
    assert done.returncode == 0, done.stderr
    assert "Loss reduction" in done.stderr
    assert done.stdout.startswith("awq: 4.1")  # 3 bits, and a bfloat16 scale and bias for 32 weights; norms stay
    assert (tmp_path / "awq" / "heads.safetensors").read_bytes() == (checkpoint / "heads.safetensors").read_bytes()
    # PyTorch would compute in bfloat16 where the machine has units for it, MLX computes in float32 on a CPU.
    options = ("--backend", "mlx-q3", "--backend-arg", "group_size=32", "--dtype", "float32", "--tasks", "terra",
               "--limit", "3")  # fmt: skip
    scores = []
    for execution in ("torch", "mlx"):
        run = rsg_harness_shared("run", "--model", "awq", *options, "--execution", execution, "--output", execution)
        assert run.returncode == 0, run.stderr
        scores.append([sample.scores for sample in read_samples(tmp_path / execution)])
    assert np.allclose(*scores, atol=1e-3)


def test_what_cannot_be_quantised_is_refused(
    rsg_harness: Command, quantised: Path, tiny_model: Path, tmp_path: Path
) -> None:
    def refusal(*arguments: str | Path) -> str:
        done = rsg_harness("quantize", *arguments)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr.splitlines()[-1]

    assert "already quantised to 4 bits" in refusal("--model", quantised, "--output", "again")
    assert "q4 is not empty" in refusal("--model", tiny_model, "--output", quantised)
    assert "cannot quantise to 7 bits" in refusal("--model", tiny_model, "--bits", "7", "--output", "x")
    assert "group size 48" in refusal("--model", tiny_model, "--group-size", "48", "--output", "x")
    assert "does not divide" in refusal("--model", tiny_model, "--group-size", "128", "--output", "x")
    assert "mixed_4_6" in refusal("--model", tiny_model, "--recipe", "mixed_4_7", "--output", "x")
    assert "leave out --bits" in refusal("--model", tiny_model, "--recipe", "mixed_4_6", "--bits", "4", "--output", "x")
    sensitivity = ("--model", tiny_model, "--method", "sensitivity", "--output", "x")
    assert "4.5 or more" in refusal(*sensitivity, "--target-bits", "4.2")
    assert "leave out --recipe" in refusal(*sensitivity, "--recipe", "mixed_4_6")
    assert "sensitivity" in refusal("--model", tiny_model, "--method", "sensitive", "--output", "x")
    assert "nothing to learn at 8 bits" in refusal(
        "--model", tiny_model, "--method", "dwq", "--bits", "8", "--output", "x"
    )
    assert "16 texts or more" in refusal("--model", tiny_model, "--method", "dwq", "--samples", "3", "--output", "x")
    assert "--samples 0" in refusal("--model", tiny_model, "--method", "awq", "--samples", "0", "--output", "x")
    assert "mxfp4" in refusal("--model", tiny_model, "--mode", "mxfp5", "--output", "x")
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "again").exists()


def test_a_damaged_quantised_checkpoint_names_the_file(
    rsg_harness_shared: Command,
    checkpoint: Path,
    tmp_path: Path,
) -> None:
    assert rsg_harness_shared("quantize", "--model", checkpoint, "--output", "q4").returncode == 0
    copy = tmp_path / "copy"
    copy.mkdir()
    copy_files(tmp_path / "q4", copy)
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "model.safetensors").write_bytes(content)
    done = rsg_harness_shared("run", "--model", "copy", "--backend", "mlx-q4")
    assert done.returncode == 2
    assert "model.safetensors is damaged" in done.stderr
