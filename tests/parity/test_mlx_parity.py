"""MLX against plain transformers: full sequences, no cache, float32, eager attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mlx.core")

import torch
from transformers import AutoModelForCausalLM, Gemma3ForCausalLM

from adapters import mlx_backend
from adapters.mlx_backend import MlxBackend, load_mlx
from adapters.mlx_weights import dequantized_state, ensure_mlx_model
from tests.caching import cached_in
from tests.parity.test_backend_contract import largest_difference, reference_logprobs
from tests.tiny_gemma import make_tiny_gemma

TOLERANCE = 1e-3  # natural logarithms; about 1e-5 is usual
WINDOW = 16  # of the tiny model


def torch_model(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def backend(directory: Path) -> MlxBackend:
    return load_mlx("mlx", directory, dtype="float32")


def test_prefilling_and_projecting_in_small_pieces_changes_nothing(backend, model, random_sequence, monkeypatch):
    start = random_sequence(41)
    monkeypatch.setattr(mlx_backend, "PREFILL_TOKENS", 8)
    monkeypatch.setattr(mlx_backend, "PROJECTION_BYTES", 4 * 64 * 100)  # 100 tokens of the vocabulary, 64 rows
    _, prefix = backend.hidden_states([start], [[]], keep=True)
    sequences = [start + random_sequence(n) for n in (2, 10, 90)]
    assert largest_difference(backend, model, sequences, 41, prefix) < TOLERANCE


def test_other_rope_bases_window_and_pattern_reach_mlx(tmp_path, random_sequence):
    ropes = {
        "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 30_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
    }
    directory = make_tiny_gemma(
        tmp_path / "model", rope_parameters=ropes, sliding_window=10, sliding_window_pattern=2, num_hidden_layers=6
    )
    model = torch_model(directory)
    sequences = [random_sequence(60), random_sequence(12)]
    assert largest_difference(load_mlx("mlx", directory), model, sequences) < TOLERANCE

    converted = ensure_mlx_model(directory, bits=8, dtype="bfloat16", cached=cached_in(tmp_path), fingerprint="ropes")
    model.load_state_dict(dict(dequantized_state(converted)), strict=False)
    assert largest_difference(load_mlx("mlx-q8", converted), model, sequences) < TOLERANCE


@pytest.mark.parametrize(
    ("bits", "group_size", "mode"),
    [(2, 64, "affine"), (3, 32, "affine"), (4, 64, "affine"), (6, 64, "affine"), (8, 32, "affine"), (4, 32, "mxfp4")],
)
def test_quantised_weights_give_the_same_in_mlx_and_dequantised_in_torch(
    directory, tmp_path, random_sequence, bits, group_size, mode
):
    converted = ensure_mlx_model(
        directory,
        bits=bits,
        dtype="bfloat16",
        group_size=group_size,
        mode=mode,
        cached=cached_in(tmp_path),
        fingerprint="tiny",
    )
    model = Gemma3ForCausalLM(torch_model(directory).config).float().eval()
    missing = model.load_state_dict(dict(dequantized_state(converted)), strict=False)
    assert set(missing.missing_keys) <= {"lm_head.weight"}
    assert not missing.unexpected_keys
    model.tie_weights()
    backend = load_mlx("mlx-q", converted, dtype="float32")
    start = random_sequence(30)
    _, prefix = backend.hidden_states([start], [[]], keep=True)
    assert largest_difference(backend, model, [start + random_sequence(n) for n in (2, 20)], 30, prefix) < TOLERANCE
    # The quantised model is another model than the one that it came from.
    assert np.abs(reference_logprobs(model, start) - reference_logprobs(torch_model(directory), start)).max() > 0.01


def test_weights_stored_as_float16_are_the_same_numbers_in_both(tmp_path, random_sequence):
    directory = make_tiny_gemma(tmp_path, dtype="float32")
    model = torch_model(directory)
    with torch.no_grad():  # bfloat16 numbers of this size are exact in float16; make them need the rounding
        for parameter in model.parameters():
            parameter.mul_(1.2345)
    model.save_pretrained(directory)
    rounded = dict(dequantized_state(directory, stored="float16"))
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(rounded[name], parameter.half().float(), rtol=0, atol=0)
    model.load_state_dict(rounded, strict=False)
    backend = load_mlx("mlx-fp16", directory, stored="float16")
    assert backend.info.weights == "float16"
    assert largest_difference(backend, model, [random_sequence(40)]) < TOLERANCE
