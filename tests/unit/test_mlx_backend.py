"""What the MLX backend does beside the numbers: text, sampling, records, errors."""

from __future__ import annotations

import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from adapters import mlx_backend
from adapters.base import OutOfMemory, Sampling, UserError
from adapters.mlx_backend import load_mlx, memory_errors
from tests.tiny_gemma import make_tiny_gemma

pytest.importorskip("mlx.core")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_gemma(tmp_path_factory.mktemp("gemma"), tie_word_embeddings=False)


@pytest.fixture(scope="module")
def backend(directory: Path) -> mlx_backend.MlxBackend:
    return load_mlx("mlx-bf16", directory, dtype="float32", stored="bfloat16", options={"a": 1})


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    generator = np.random.default_rng(1)
    return [[2, *generator.integers(6, 512, n - 1).tolist()] for n in (3, 40, 17, 1, 16, 33, 1)]


def test_importing_the_module_does_not_import_mlx():
    code = "import sys, adapters.mlx_backend; assert not {'mlx', 'mlx_lm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_stop_string_ends_its_own_row_only(backend, prompts):
    free = backend.generate(prompts, Sampling(max_new_tokens=30))
    stop = free[0][8:10]
    stopped = backend.generate(prompts, Sampling(max_new_tokens=30, stop=(stop,)))
    assert stopped == [text.split(stop)[0] for text in free]
    assert stopped[0] != free[0]


def test_the_callback_sees_growing_texts_and_lastly_the_result(backend, prompts):
    seen: dict[int, list[str]] = {i: [] for i in range(len(prompts))}
    sampling = Sampling(max_new_tokens=20, stop=("\n\n",))
    texts = backend.generate(prompts, sampling, on_text=lambda i, text: seen[i].append(text))
    for i, text in enumerate(texts):
        assert seen[i][-1:] == ([text] if text else [])
        assert all(late.startswith(early) for early, late in pairwise(seen[i][:-1]))
    assert max(map(len, seen.values())) > 5


def test_generation_ends_at_the_end_of_a_turn(backend, prompts):
    assert backend._stop_tokens == {1, 5}
    free = backend.generate(prompts, Sampling(max_new_tokens=10))
    first = backend.tokenizer.convert_tokens_to_ids("<unused3>")
    ending = mlx_backend.MlxBackend(backend.model, backend.tokenizer, backend.info, frozenset({first}))
    ended = ending.generate(prompts, Sampling(max_new_tokens=10))
    assert free[0].startswith("<unused3>")
    assert ended[0] == ""
    assert any(ended)


def test_sampling_follows_its_seed(backend, prompts):
    first, again, other = (
        backend.generate(prompts, Sampling(max_new_tokens=8, temperature=1.0, top_p=0.95, seed=seed))
        for seed in (5, 5, 6)
    )
    assert first == again
    assert first != other


def test_a_tiny_nucleus_and_a_low_temperature_are_greedy(backend, prompts):
    greedy = backend.generate(prompts, Sampling(max_new_tokens=8))
    assert backend.generate(prompts, Sampling(max_new_tokens=8, temperature=1.0, top_p=1e-6, seed=3)) == greedy
    assert backend.generate(prompts, Sampling(max_new_tokens=8, temperature=1e-5, seed=3)) == greedy


def test_samples_are_drawn_from_the_nucleus_in_the_right_proportions():
    import mlx.core as mx

    draw = mlx_backend._sampler(mx, Sampling(max_new_tokens=1, temperature=1.0, top_p=0.75, seed=0))
    logprobs = mx.broadcast_to(mx.log(mx.array([0.1, 0.5, 0.3, 0.1])), (4000, 4))
    shares = np.bincount(np.array(draw(logprobs)), minlength=4) / 4000
    np.testing.assert_allclose(shares, [0, 0.625, 0.375, 0], atol=0.03)


def test_generation_works_in_another_thread(backend, prompts):
    texts: list[list[str]] = []
    thread = threading.Thread(target=lambda: texts.append(backend.generate(prompts, Sampling(max_new_tokens=5))))
    thread.start()
    thread.join()
    assert texts == [backend.generate(prompts, Sampling(max_new_tokens=5))]


def test_nothing_to_generate_is_no_error(backend, prompts):
    assert backend.generate([], Sampling(max_new_tokens=5)) == []
    assert backend.generate(prompts[:2], Sampling(max_new_tokens=0)) == ["", ""]


def test_not_a_number_comes_through_and_is_never_the_best(backend):
    hidden = np.zeros((2, 64), dtype=np.float32)
    hidden[1, 3] = np.nan
    logprobs, best = backend.project(hidden, np.array([0, 1, 1]), np.array([7, 0, 7]))
    assert np.isfinite(logprobs[0])
    assert np.isnan(logprobs[1:]).all()
    assert not best[1:].any()


def test_projecting_nothing_gives_nothing(backend):
    hidden, prefix = backend.hidden_states([[2, 7]], [[]])
    assert hidden.shape == (0, 64)
    assert prefix is None
    logprobs, best = backend.project(hidden, np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
    assert logprobs.shape == best.shape == (0,)


def test_a_token_outside_the_vocabulary_is_refused(backend):
    with pytest.raises(ValueError, match="511"):
        backend.project(np.zeros((1, 64), dtype=np.float32), np.array([0]), np.array([512]))


def test_only_a_single_row_can_be_kept(backend):
    with pytest.raises(ValueError, match="single row"):
        backend.hidden_states([[2], [2]], [[0], [0]], keep=True)


@pytest.mark.parametrize(
    "message",
    [
        "[metal::malloc] Attempting to allocate 96905199616 bytes which is greater than the maximum allowed",
        "[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPUCommandBufferCallbackError)",
        "[malloc] Unable to allocate 1073741824 bytes.",
    ],
)
def test_refused_memory_is_out_of_memory(message):
    with pytest.raises(OutOfMemory, match=r"alloc|Memory"), memory_errors():
        raise RuntimeError(message)


def test_other_errors_of_mlx_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shapes"), memory_errors():
        raise RuntimeError("[matmul] incompatible shapes")


def test_the_record_says_what_was_loaded(backend):
    info = backend.info
    assert (info.name, info.execution, info.weights, info.dtype) == ("mlx-bf16", "mlx", "bfloat16", "float32")
    assert info.weights_bytes == 2 * info.parameters
    assert (info.hidden_size, info.context_length, info.options) == (64, 1024, {"a": 1})
    assert info.device in ("cpu", "metal")
    assert info.batch_tokens == mlx_backend.BATCH_TOKENS[info.device]
    assert (backend.peak_memory() is None) == (info.device == "cpu")


@pytest.mark.skipif(mlx_backend.metal_available(), reason="about CPUs")
def test_a_cpu_computes_in_float32_only(directory):
    assert load_mlx("mlx-fp16", directory, stored="float16").info.dtype == "float32"
    with pytest.raises(UserError, match="float32 only"):
        load_mlx("mlx-fp16", directory, dtype="float16")


def test_a_machine_without_mlx_gets_a_hint(directory, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlx_lm", None)
    assert not mlx_backend.metal_available()
    with pytest.raises(UserError, match="pip install"):
        load_mlx("mlx-q4", directory)
