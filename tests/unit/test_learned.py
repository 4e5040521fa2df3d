"""Learned quantisation against plain rounding, on texts it did not learn from."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapters.mlx_weights import mlx_config, read_config
from harness.errors import UserError
from harness.quantization import learned
from harness.quantization.learned import Calibration, learn
from tests.tiny_gemma import VOCABULARY_SIZE, make_tiny_gemma
from tests.tiny_models import make_tiny_model

BITS, GROUP_SIZE = 3, 32


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = make_tiny_gemma(tmp_path_factory.mktemp("models") / "tiny", num_hidden_layers=3)
    (directory / "config.json").write_text(json.dumps(mlx_config(read_config(directory))))
    return directory


def texts(seed: int, count: int = 40) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [[2, *rng.integers(6, VOCABULARY_SIZE, rng.integers(8, 16)).tolist()] for _ in range(count)]


def next_tokens(model: Any) -> np.ndarray:
    """Log-probabilities of the next token at every position of unseen texts, float32 [tokens, vocabulary]."""
    import mlx.core as mx

    rows = [model(mx.array([text]))[0].astype(mx.float32) for text in texts(seed=1)]
    logits = mx.concatenate(rows)
    return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))


def divergence(whole: Any, rounded: Any) -> float:
    before, after = next_tokens(whole), next_tokens(rounded)
    return float((np.exp(before) * (before - after)).sum(axis=-1).mean())


def plainly_quantised(model: Path) -> Any:
    import mlx.core as mx
    from mlx_lm.utils import load, quantize_model

    whole, _, config = load(str(model), return_config=True)
    whole.set_dtype(mx.bfloat16)
    return quantize_model(whole, config, GROUP_SIZE, BITS)[0]


@pytest.mark.parametrize("method", ["dwq", "awq"])
def test_it_is_nearer_to_the_whole_model_than_plain_rounding(
    model: Path,
    tmp_path: Path,
    method: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    from mlx_lm import load

    # mlx-lm's rate moves a scale by a millionth a step: nothing within the few steps of a test.
    monkeypatch.setattr(learned, "_DWQ_RATE", 2e-4)
    with caplog.at_level(logging.INFO):
        learn(method, model, tmp_path / method, Calibration(texts(seed=0), BITS, GROUP_SIZE))
    assert any("takes about" in text for text in caplog.messages) == (not learned.has_gpu())
    assert capfd.readouterr().out == ""
    whole, _ = load(str(model))
    better, _ = load(str(tmp_path / method))
    assert divergence(whole, better) < 0.97 * divergence(whole, plainly_quantised(model))
    quantization = read_config(tmp_path / method)["quantization"]
    assert (quantization["bits"], quantization["group_size"]) == (BITS, GROUP_SIZE)


def test_awq_reads_the_embeddings_as_the_first_layer_does(model: Path) -> None:
    import mlx.core as mx
    from mlx_lm import load

    whole, _ = load(str(model))
    tokens = mx.array([[2, 7, 8, 9]])
    scaled = learned._ScaledEmbedding(whole.model.embed_tokens, whole.args.hidden_size)
    found = scaled(tokens)
    for layer in whole.layers:
        found = layer(found, "causal")
    np.testing.assert_array_equal(
        np.array(whole.model.norm(found).astype(mx.float32)), np.array(whole.model(tokens).astype(mx.float32))
    )


def test_hours_without_a_gpu_are_refused(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if learned.has_gpu():
        pytest.skip("there is a GPU")
    monkeypatch.setattr(learned, "_LONGEST_SECONDS", 1e-6)
    with pytest.raises(UserError, match=r"dwq on 40 texts takes about .*no GPU here.*--samples"):
        learn("dwq", model, tmp_path / "dwq", Calibration(texts(seed=0), BITS, GROUP_SIZE))
    assert not (tmp_path / "dwq").exists()


def test_dwq_needs_texts_to_learn_from_and_others_to_check_with(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="16 texts or more"):
        learn("dwq", model, tmp_path / "dwq", Calibration(texts(seed=0, count=15), BITS, GROUP_SIZE))


def test_awq_of_a_model_without_windows_or_scaled_embeddings(tmp_path: Path) -> None:
    from mlx_lm import load

    model = make_tiny_model("qwen3", tmp_path / "qwen3", num_hidden_layers=2)
    (model / "config.json").write_text(json.dumps(mlx_config(read_config(model))))
    learn("awq", model, tmp_path / "awq", Calibration(texts(seed=0), BITS, GROUP_SIZE))
    whole, _ = load(str(model))
    better, _ = load(str(tmp_path / "awq"))
    assert divergence(whole, better) < divergence(whole, plainly_quantised(model))


@pytest.mark.parametrize(
    ("method", "architecture", "words"),
    [
        ("awq", "gemma2", "takes no gemma2 models"),
        pytest.param(
            "dwq", "mixtral", "in bfloat16 here", marks=pytest.mark.skipif(learned.has_gpu(), reason="there is a GPU")
        ),
    ],
)
def test_what_mlx_lm_cannot_learn_is_said_in_a_line(method: str, architecture: str, words: str, tmp_path: Path) -> None:
    model = make_tiny_model(architecture, tmp_path / architecture)
    (model / "config.json").write_text(json.dumps(mlx_config(read_config(model))))
    with pytest.raises(UserError, match=words):
        learn(method, model, tmp_path / "out", Calibration(texts(seed=0), BITS, GROUP_SIZE))
