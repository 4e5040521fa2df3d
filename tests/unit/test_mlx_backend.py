"""The MLX backend beyond the contract: ends of turns, sampling, the record, errors of MLX."""

from __future__ import annotations

import subprocess
import sys
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


def test_generation_ends_at_the_end_of_a_turn(backend, directory, prompts):
    assert backend._stop_tokens == {1, 5}
    free = backend.generate(prompts, Sampling(max_new_tokens=10))
    first = backend.tokenizer.convert_tokens_to_ids("<unused3>")
    ending = load_mlx("mlx-bf16", directory, dtype="float32", stored="bfloat16")
    ending._stop_tokens = frozenset({first})
    ended = ending.generate(prompts, Sampling(max_new_tokens=10))
    assert free[0].startswith("<unused3>")
    assert ended[0] == ""
    assert any(ended)


def test_samples_are_drawn_from_the_nucleus_in_the_right_proportions():
    import mlx.core as mx

    draw = mlx_backend._sampler(mx, Sampling(max_new_tokens=1, temperature=1.0, top_p=0.75, seed=0))
    logprobs = mx.broadcast_to(mx.log(mx.array([0.1, 0.5, 0.3, 0.1])), (4000, 4))
    shares = np.bincount(np.array(draw(logprobs)), minlength=4) / 4000
    np.testing.assert_allclose(shares, [0, 0.625, 0.375, 0], atol=0.03)


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
