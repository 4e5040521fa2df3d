"""The contract of every backend, against plain transformers: full sequences, no cache, float32, eager attention.

A new adapter joins by one line in `ADAPTERS`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adapters.base import Backend, OutOfMemory, Prefix, Sampling
from adapters.text import cut_at_stop
from harness.device_check.check import uncached
from tests.tiny_gemma import VOCABULARY_SIZE, make_tiny_gemma

WINDOW = 16  # of the tiny model
LENGTHS = (3, 40, WINDOW, 1, WINDOW + 1)


@dataclass(frozen=True)
class Adapter:
    """What the suite needs of an adapter.

    Attributes:
        load: Loads a directory to compute in float32.
        fail: Makes every computation of a loaded backend raise an error, until the test ends.
        memory_error: An error as the library raises it when memory runs out.
        weights: How it stores the weights of a bfloat16 directory.
        tolerance: Of a log-probability.
        same_tokens: So many greedy tokens at least are those of transformers.
    """

    load: Callable[[Path], Backend]
    fail: Callable[[Any, Exception, pytest.MonkeyPatch], None]
    memory_error: Exception
    weights: str = "bfloat16"
    tolerance: float = 1e-3  # natural logarithms; about 1e-5 is usual
    same_tokens: int = 24


def _load_torch(directory: Path) -> Backend:
    from adapters.torch_backend import load_torch

    return load_torch("torch-cpu", directory, device="cpu", dtype="float32")


def _load_mlx(directory: Path) -> Backend:
    pytest.importorskip("mlx.core")
    from adapters.mlx_backend import load_mlx

    return load_mlx("mlx-bf16", directory, dtype="float32", stored="bfloat16")


def _load_gguf(directory: Path) -> Backend:
    pytest.importorskip("xllamacpp")
    from adapters.registry import load_backend

    return load_backend("gguf-f32", directory, fingerprint="tiny", cached=uncached(directory))


def _fail_llama(backend: Any, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let llama.cpp give up with a message in its log."""
    from adapters import llama_library

    def decode(*_: Any) -> int:
        llama_library._keep_message(llama_library._LOG_ERROR, str(error).encode(), None)
        return -3

    monkeypatch.setattr(llama_library.load_library(), "llama_decode", decode)


def _fail(backend: Any, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the decoder of transformers or mlx-lm raise."""

    def call(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(type(backend.model.model), "__call__", call, raising=False)


ADAPTERS = {
    "torch": Adapter(_load_torch, _fail, RuntimeError("[enforce fail at alloc_cpu.cpp:124] not enough memory")),
    "mlx": Adapter(_load_mlx, _fail, RuntimeError("[metal::malloc] Resource limit (499000) exceeded.")),
    "gguf": Adapter(
        _load_gguf,
        _fail_llama,
        RuntimeError("ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 1024"),
        weights="float32",
        # llama.cpp reads GELU off a table of 16-bit numbers. Without it, as in Llama and Qwen, 1e-3 holds too:
        # tests/parity/test_gguf_backend.py.
        tolerance=2e-2,
        same_tokens=3,
    ),
}


@pytest.fixture(scope="module", params=ADAPTERS)
def adapter(request: pytest.FixtureRequest) -> Adapter:
    return ADAPTERS[request.param]


@pytest.fixture(scope="module")
def backend(adapter: Adapter, directory: Path) -> Backend:
    return adapter.load(directory)


def reference_logprobs(model: Any, sequence: Sequence[int]) -> np.ndarray:
    """float64 [len(sequence), vocabulary]."""
    with torch.no_grad():
        logits = model(torch.tensor([list(sequence)]), use_cache=False).logits[0]
    return logits.double().log_softmax(-1).numpy()


def largest_difference(
    backend: Backend, model: Any, sequences: Sequence[Sequence[int]], shared: int = 0, prefix: Prefix | None = None
) -> float:
    """Over the log-probabilities of all tokens after the first `shared` + 1 ones; also compares the argmax."""
    rows = [sequence[shared:] for sequence in sequences]
    hidden, kept = backend.hidden_states(rows, [list(range(len(row) - 1)) for row in rows], prefix)
    assert kept is None
    tokens = np.concatenate([row[1:] for row in rows]).astype(np.int64)
    found, best = backend.project(hidden, np.arange(len(tokens)), tokens)
    assert (hidden.dtype, found.dtype, best.dtype) == (np.float32, np.float64, bool)
    expected, argmax = [], []
    for sequence in sequences:
        table = reference_logprobs(model, sequence)
        for place in range(shared, len(sequence) - 1):
            expected.append(table[place, sequence[place + 1]])
            argmax.append(table[place].argmax() == sequence[place + 1])
    np.testing.assert_array_equal(best, argmax)
    return float(np.abs(found - np.array(expected)).max(initial=0.0))


# --- hidden states ----------------------------------------------------------------------------------------------------


def test_unequal_rows_without_a_prefix_agree_with_a_full_forward_pass(adapter, backend, model, random_sequence):
    sequences = [random_sequence(length) for length in (2, 60, WINDOW, WINDOW + 1, 5)]
    assert largest_difference(backend, model, sequences) < adapter.tolerance


@pytest.mark.parametrize("length", [1, 5, WINDOW - 1, WINDOW, WINDOW + 1, 70])
def test_rows_after_a_prefix_agree_even_past_the_sliding_window(adapter, backend, model, random_sequence, length):
    start = random_sequence(length)
    _, prefix = backend.hidden_states([start], [[]], keep=True)
    assert prefix.length == length
    sequences = [start + random_sequence(n) for n in (2, 3, 40)]
    assert largest_difference(backend, model, sequences, length, prefix) < adapter.tolerance


def test_single_token_rows_after_a_wrapped_prefix_agree(adapter, backend, model, random_sequence):
    start = random_sequence(33)
    _, prefix = backend.hidden_states([start], [[]], keep=True)
    rows = [[token] for token in (10, 300, 400)]
    hidden, _ = backend.hidden_states(rows, [[0]] * 3, prefix)
    everything = np.tile(np.arange(VOCABULARY_SIZE), 3)
    found, _ = backend.project(hidden, np.repeat(np.arange(3), VOCABULARY_SIZE), everything)
    expected = np.concatenate([reference_logprobs(model, start + row)[-1] for row in rows])
    assert np.abs(found - expected).max() < adapter.tolerance


def test_prefixes_that_extend_each_other_agree_and_none_changes(adapter, backend, model, random_sequence):
    whole = random_sequence(80)
    prefix, end, prefixes = None, 0, []
    for step in (5, 9, 1, 1, 30, 1, 20):  # pieces of one token take another way through mlx-lm's caches
        _, prefix = backend.hidden_states([whole[end : end + step]], [[]], prefix, keep=True)
        end += step
        assert prefix.length == end
        prefixes.append(prefix)
    for kept in [*prefixes, *prefixes]:
        sequences = [whole[: kept.length] + random_sequence(n) for n in (3, 25)]
        assert largest_difference(backend, model, sequences, kept.length, kept) < adapter.tolerance


@pytest.mark.parametrize("length", [4, WINDOW, 50])
def test_a_prefix_used_twice_gives_the_same_numbers_bit_by_bit(backend, random_sequence, length):
    _, prefix = backend.hidden_states([random_sequence(length)], [[]], keep=True)
    rows = [random_sequence(n) for n in (30, 7)]
    positions = [list(range(30)), [0, 6]]
    first, _ = backend.hidden_states(rows, positions, prefix)
    backend.hidden_states([random_sequence(20)], [[1]], prefix, keep=True)
    backend.hidden_states([random_sequence(3)] * 5, [[]] * 5, prefix)
    second, _ = backend.hidden_states(rows, positions, prefix)
    np.testing.assert_array_equal(first, second)


def test_a_row_read_while_its_cache_is_kept_gives_the_same_states(backend, random_sequence):
    sequence = random_sequence(30)
    alone, nothing = backend.hidden_states([sequence], [[3, 29]])
    kept, prefix = backend.hidden_states([sequence], [[3, 29]], keep=True)
    assert nothing is None
    assert prefix.length == 30
    np.testing.assert_array_equal(alone, kept)


def test_positions_come_back_in_the_order_of_rows_and_positions(backend, random_sequence):
    rows = [random_sequence(n) for n in (6, 9, 3)]
    everything, _ = backend.hidden_states(rows, [list(range(len(row))) for row in rows])
    chosen, _ = backend.hidden_states(rows, [[5, 0], [], [2]])
    np.testing.assert_array_equal(chosen, everything[[5, 0, 6 + 9 + 2]])


def test_no_position_asked_for_gives_an_empty_array(backend, random_sequence):
    hidden, prefix = backend.hidden_states([random_sequence(4)], [[]])
    assert hidden.shape == (0, backend.info.hidden_size)
    assert prefix is None


def test_only_a_single_row_can_be_kept(backend, random_sequence):
    with pytest.raises(ValueError, match="single row"):
        backend.hidden_states([random_sequence(3), random_sequence(3)], [[], []], keep=True)


def test_a_prefix_of_another_backend_is_refused(backend, random_sequence):
    foreign = Prefix()
    foreign.length = 3
    with pytest.raises(TypeError, match="another backend"):
        backend.hidden_states([random_sequence(3)], [[0]], foreign)


def test_lack_of_memory_is_out_of_memory_and_other_errors_stay(adapter, backend, random_sequence, monkeypatch):
    sequence = random_sequence(3)
    with monkeypatch.context() as patch:
        adapter.fail(backend, adapter.memory_error, patch)
        with pytest.raises(OutOfMemory):
            backend.hidden_states([sequence], [[0]])
        with pytest.raises(OutOfMemory):
            backend.generate([sequence], Sampling(max_new_tokens=2))
    with monkeypatch.context() as patch:
        adapter.fail(backend, RuntimeError("shapes do not match"), patch)
        with pytest.raises(RuntimeError, match="shapes"):
            backend.hidden_states([sequence], [[0]])
        with pytest.raises(RuntimeError, match="shapes"):
            backend.generate([sequence], Sampling(max_new_tokens=2))
    assert backend.hidden_states([sequence], [[0]])[0].shape == (1, backend.info.hidden_size)


# --- project ----------------------------------------------------------------------------------------------------------


def test_nan_comes_through_stays_in_its_own_row_and_is_never_the_best(backend):
    hidden = np.ones((3, backend.info.hidden_size), dtype=np.float32)
    hidden[1, 5] = np.nan
    found, best = backend.project(hidden, np.array([0, 1, 2, 1]), np.array([7, 7, 7, 9]))
    np.testing.assert_array_equal(np.isnan(found), [False, True, False, True])
    assert np.isfinite(found[[0, 2]]).all()
    assert not best[[1, 3]].any()


def test_nothing_to_project_gives_empty_arrays(backend):
    hidden = np.empty((0, backend.info.hidden_size), dtype=np.float32)
    found, greedy = backend.project(hidden, np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))
    assert found.shape == greedy.shape == (0,)


def test_logits_of_the_whole_vocabulary_are_those_of_the_matrix_product(backend, model):
    hidden = np.random.default_rng(3).normal(size=(5, backend.info.hidden_size)).astype(np.float32)
    weight = model.get_output_embeddings().weight.detach().double().numpy()
    found = backend.vocabulary_logits(hidden)
    assert (found.shape, found.dtype) == ((5, VOCABULARY_SIZE), np.float32)
    np.testing.assert_allclose(found, hidden.astype(np.float64) @ weight.T, rtol=1e-4, atol=1e-4)


def test_very_large_logits_do_not_overflow(backend, model):
    hidden = np.full((1, backend.info.hidden_size), 300.0, dtype=np.float32)
    weight = model.get_output_embeddings().weight.detach().double().numpy()
    table = torch.from_numpy(hidden.astype(np.float64) @ weight.T).log_softmax(-1).numpy()[0]
    found, _ = backend.project(hidden, np.zeros(VOCABULARY_SIZE, dtype=np.int64), np.arange(VOCABULARY_SIZE))
    np.testing.assert_allclose(found, table, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("token", [-1, VOCABULARY_SIZE])
def test_a_token_outside_the_vocabulary_is_refused(backend, token):
    hidden = np.zeros((1, backend.info.hidden_size), dtype=np.float32)
    with pytest.raises(ValueError, match=str(VOCABULARY_SIZE - 1)):
        backend.project(hidden, np.array([0]), np.array([token]))


# --- generate ---------------------------------------------------------------------------------------------------------


def reference_text(backend: Backend, model: Any, prompt: Sequence[int], tokens: int) -> str:
    output = model.generate(
        torch.tensor([list(prompt)]), max_new_tokens=tokens, do_sample=False, eos_token_id=[1, 5], pad_token_id=0
    )
    return backend.tokenizer.decode(output[0][len(prompt) :], skip_special_tokens=True)


@pytest.mark.parametrize("tokens", [1, 24])
def test_a_batch_of_unequal_prompts_gives_the_texts_of_transformers(adapter, backend, model, random_sequence, tokens):
    tokens = min(tokens, adapter.same_tokens)
    prompts = [random_sequence(length) for length in LENGTHS]
    expected = [reference_text(backend, model, prompt, tokens) for prompt in prompts]
    assert backend.generate(prompts, Sampling(max_new_tokens=tokens)) == expected
    assert len(set(expected)) > 1


def test_text_ends_before_the_first_stop_string_of_its_own_row(backend, random_sequence):
    prompts = [random_sequence(20) for _ in range(3)]
    free = backend.generate(prompts, Sampling(max_new_tokens=24))
    stops = (free[0][8:10], free[0][4:6])
    stopped = backend.generate(prompts, Sampling(max_new_tokens=24, stop=stops))
    assert stopped == [cut_at_stop(text, stops)[0] for text in free]
    assert len(stopped[0]) <= 4


@pytest.mark.parametrize(("stop", "fewest"), [((), 6), (("\n\n",), 6), (("\n", "K", "й"), 3)])
def test_the_callback_sees_growing_texts_and_lastly_the_result(backend, random_sequence, stop, fewest):
    prompts = [random_sequence(20) for _ in range(3)]
    seen: dict[int, list[str]] = {row: [] for row in range(3)}
    sampling = Sampling(max_new_tokens=16, stop=stop)
    texts = backend.generate(prompts, sampling, on_text=lambda row, text: seen[row].append(text))
    assert [calls[-1:] for calls in seen.values()] == [[text] if text else [] for text in texts]
    assert max(map(len, seen.values())) >= fewest
    for calls in seen.values():
        assert all(late.startswith(early) for early, late in pairwise(calls[:-1]))


def test_sampling_repeats_with_a_seed_and_differs_with_another(backend, random_sequence):
    prompts = [random_sequence(9) for _ in range(2)]

    def sampled(seed: int) -> list[str]:
        return backend.generate(prompts, Sampling(max_new_tokens=24, temperature=1.5, top_p=0.99, seed=seed))

    assert sampled(1) == sampled(1)
    assert sampled(1) != sampled(2)
    assert sampled(1) != backend.generate(prompts, Sampling(max_new_tokens=24))


def test_a_tiny_nucleus_and_a_low_temperature_are_greedy(backend, random_sequence):
    prompts = [random_sequence(9), random_sequence(3)]
    greedy = backend.generate(prompts, Sampling(max_new_tokens=12))
    assert backend.generate(prompts, Sampling(max_new_tokens=12, temperature=1.0, top_p=1e-6, seed=5)) == greedy
    assert backend.generate(prompts, Sampling(max_new_tokens=12, temperature=1e-5, seed=3)) == greedy


def test_nothing_to_generate_is_no_error(backend, random_sequence):
    assert backend.generate([], Sampling(max_new_tokens=5)) == []
    assert backend.generate([random_sequence(3), random_sequence(9)], Sampling(max_new_tokens=0)) == ["", ""]


def test_generation_ends_at_an_end_token_of_the_configuration(adapter, backend, model, random_sequence, tmp_path):
    prompt = random_sequence(20)
    ids = model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False, pad_token_id=0)[0][20:].tolist()
    place, end = next((n, token) for n, token in enumerate(ids) if n > 2 and token > 5 and token not in ids[:n])
    tied = model.config.tie_word_embeddings
    ending = adapter.load(make_tiny_gemma(tmp_path, eos_token_id=[1, end], tie_word_embeddings=tied))
    whole = backend.generate([prompt], Sampling(max_new_tokens=24))[0]
    ended = ending.generate([prompt], Sampling(max_new_tokens=24))[0]
    # Whether the end token's own text belongs to the answer is left to the library; real end tokens have none.
    decoded = [backend.tokenizer.decode(ids[:length], skip_special_tokens=True) for length in (place, place + 1)]
    assert ended in decoded
    assert len(ended) < len(whole)


def test_generation_works_in_another_thread(backend, random_sequence):
    prompts = [random_sequence(length) for length in LENGTHS]
    texts: list[list[str]] = []
    thread = threading.Thread(target=lambda: texts.append(backend.generate(prompts, Sampling(max_new_tokens=5))))
    thread.start()
    thread.join()
    assert texts == [backend.generate(prompts, Sampling(max_new_tokens=5))]


def test_forgotten_texts_change_no_answer(backend, random_sequence):
    prompt = random_sequence(40)
    first = backend.generate([prompt], Sampling(max_new_tokens=6), remember=True)
    backend.forget()
    assert backend.generate([prompt], Sampling(max_new_tokens=6), remember=True) == first


# --- what was loaded --------------------------------------------------------------------------------------------------


def test_the_record_says_what_was_loaded(adapter, backend, directory):
    info = backend.info
    stored = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    assert info.dtype == "float32"
    assert info.weights == adapter.weights
    assert info.weights_bytes == pytest.approx(stored * (2 if adapter.weights == "float32" else 1), rel=0.05)
    assert (info.hidden_size, info.context_length) == (64, 1024)
    assert info.device in ("cpu", "metal")
    assert (backend.peak_memory() is None) == (info.device == "cpu")
