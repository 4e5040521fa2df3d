"""MLX against plain transformers: full sequences, no cache, float32, eager attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mlx.core")

import torch
from transformers import AutoModelForCausalLM, Gemma3ForCausalLM

from adapters import mlx_backend
from adapters.base import Prefix, Sampling
from adapters.mlx_backend import MlxBackend, load_mlx
from adapters.mlx_weights import dequantized_state, ensure_mlx_model
from tests.caching import cached_in
from tests.tiny_gemma import make_tiny_gemma

TOLERANCE = 1e-3  # natural logarithms; about 1e-5 is usual
WINDOW = 16  # of the tiny model


def reference_logprobs(model: Any, sequence: Sequence[int]) -> np.ndarray:
    """float64 [len(sequence), vocabulary]."""
    with torch.no_grad():
        logits = model(torch.tensor([list(sequence)]), use_cache=False).logits[0]
    return logits.double().log_softmax(-1).numpy()


def torch_model(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()


def largest_difference(
    backend: MlxBackend, model: Any, sequences: Sequence[Sequence[int]], shared: int = 0, prefix: Prefix | None = None
) -> float:
    """Over the log-probabilities of all tokens after the first `shared` + 1 ones; also compares the argmax."""
    rows = [sequence[shared:] for sequence in sequences]
    hidden, _ = backend.hidden_states(rows, [list(range(len(row) - 1)) for row in rows], prefix)
    tokens = np.concatenate([row[1:] for row in rows]).astype(np.int64)
    found, best = backend.project(hidden, np.arange(len(tokens)), tokens)
    assert hidden.dtype == np.float32
    assert found.dtype == np.float64
    assert best.dtype == bool
    expected, argmax = [], []
    for sequence in sequences:
        table = reference_logprobs(model, sequence)
        for place in range(shared, len(sequence) - 1):
            expected.append(table[place, sequence[place + 1]])
            argmax.append(table[place].argmax() == sequence[place + 1])
    np.testing.assert_array_equal(best, argmax)
    return float(np.abs(found - np.array(expected)).max(initial=0.0))


@pytest.fixture(scope="module")
def random_sequence() -> Callable[[int], list[int]]:
    generator = np.random.default_rng(7)
    return lambda length: [2, *generator.integers(6, 512, length - 1).tolist()]


@pytest.fixture(scope="module", params=["tied", "untied"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_gemma(tmp_path_factory.mktemp("gemma"), tie_word_embeddings=request.param == "tied")


@pytest.fixture(scope="module")
def backend(directory: Path) -> MlxBackend:
    return load_mlx("mlx", directory, dtype="float32")


@pytest.fixture(scope="module")
def model(directory: Path) -> Any:
    return torch_model(directory)


def test_unequal_rows_without_a_prefix_agree_with_a_full_forward_pass(backend, model, random_sequence):
    sequences = [random_sequence(length) for length in (2, 40, WINDOW, WINDOW + 1, 5)]
    assert largest_difference(backend, model, sequences) < TOLERANCE


@pytest.mark.parametrize("length", [1, 5, WINDOW - 1, WINDOW, WINDOW + 1, 70])
def test_rows_after_a_prefix_agree_even_past_the_sliding_window(backend, model, random_sequence, length):
    start = random_sequence(length)
    _, prefix = backend.hidden_states([start], [[]], keep=True)
    sequences = [start + random_sequence(n) for n in (2, 3, 40)]
    assert largest_difference(backend, model, sequences, length, prefix) < TOLERANCE


def test_single_token_rows_after_a_wrapped_prefix_agree(backend, model, random_sequence):
    start = random_sequence(33)
    _, prefix = backend.hidden_states([start], [[]], keep=True)
    rows = [[token] for token in (10, 300, 400)]
    hidden, _ = backend.hidden_states(rows, [[0]] * 3, prefix)
    found, _ = backend.project(hidden, np.repeat(np.arange(3), 512), np.tile(np.arange(512), 3))
    expected = np.concatenate([reference_logprobs(model, start + row)[-1] for row in rows])
    assert np.abs(found - expected).max() < TOLERANCE


def test_prefixes_that_extend_each_other_agree_and_none_changes(backend, model, random_sequence):
    whole = random_sequence(80)
    prefix, end, prefixes = None, 0, []
    for step in (5, 9, 1, 1, 30, 1, 20):  # pieces of one token take another way through mlx-lm's caches
        _, prefix = backend.hidden_states([whole[end : end + step]], [[]], prefix, keep=True)
        end += step
        assert prefix.length == end
        prefixes.append(prefix)
    for kept in [*prefixes, *prefixes]:
        sequences = [whole[: kept.length] + random_sequence(n) for n in (3, 25)]
        assert largest_difference(backend, model, sequences, kept.length, kept) < TOLERANCE


def test_a_row_read_while_its_cache_is_kept_gives_the_same_states(backend, random_sequence):
    sequence = random_sequence(30)
    alone, nothing = backend.hidden_states([sequence], [[3, 29]])
    kept, prefix = backend.hidden_states([sequence], [[3, 29]], keep=True)
    assert nothing is None
    assert prefix.length == 30
    np.testing.assert_array_equal(alone, kept)


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


@pytest.mark.parametrize("tokens", [1, 24])
def test_greedy_generation_of_unequal_prompts_equals_that_of_transformers(backend, model, random_sequence, tokens):
    prompts = [random_sequence(n) for n in (3, 40, WINDOW, 1, WINDOW + 1)]
    expected = []
    for prompt in prompts:
        output = model.generate(
            torch.tensor([prompt]), max_new_tokens=tokens, do_sample=False, eos_token_id=[1, 5], pad_token_id=0
        )
        expected.append(backend.tokenizer.decode(output[0][len(prompt) :], skip_special_tokens=True))
    assert backend.generate(prompts, Sampling(max_new_tokens=tokens)) == expected
    assert len(set(expected)) > 1
