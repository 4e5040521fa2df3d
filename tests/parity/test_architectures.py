"""Every architecture gives the log-probabilities of a plain transformers forward pass, also after a shared prefix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3ForConditionalGeneration

from adapters.architecture import read_architecture
from adapters.base import Backend, Sampling, UserError
from adapters.mlx_backend import load_mlx
from adapters.torch_backend import load_torch
from harness.models.check import check_backend
from harness.scoring.encoding import TextEncoder
from tests.tiny_gemma import VOCABULARY_SIZE
from tests.tiny_models import ARCHITECTURES, WINDOW, make_tiny_gemma_with_vision, make_tiny_model

TOLERANCE = 1e-3  # nats
GELU_TOLERANCE = 3e-3  # mlx-lm computes Gemma 1 with another approximation of GELU than transformers
RECURRENT = ("mamba", "qwen3_next")
# mlx-lm has no such model, or reads other names of weights than transformers writes.
NOT_IN_MLX = ("bloom", "falcon", "gpt2", "gpt_neox", "gpt_oss", "mamba", "opt")


@pytest.fixture(scope="module", params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def directory(architecture: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(architecture, tmp_path_factory.mktemp(architecture))


@pytest.fixture(scope="module")
def expected(directory: Path) -> tuple[list[int], np.ndarray]:
    """Tokens of a text, and log-probabilities [tokens - 1, vocabulary] of what follows each."""
    tokens = [2, *np.random.default_rng(7).integers(6, VOCABULARY_SIZE, 3 * WINDOW).tolist()]
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        logits = model.eval()(torch.tensor([tokens])).logits[0, :-1].double()
    return tokens, torch.log_softmax(logits, dim=-1).numpy()


def assert_right(
    backend: Backend, expected: tuple[list[int], np.ndarray], length: int, tolerance: float = TOLERANCE
) -> None:
    """Compare whole texts, and two texts of different lengths after a prefix, of up to `length` tokens."""
    tokens, logprobs = expected[0][:length], expected[1]
    hidden, _ = backend.hidden_states([tokens], [range(length - 1)])
    found, greedy = backend.project(hidden, np.arange(length - 1), np.array(tokens[1:]))
    np.testing.assert_allclose(found, logprobs[np.arange(length - 1), tokens[1:]], atol=tolerance)
    assert greedy.tolist() == (logprobs[: length - 1].argmax(-1) == tokens[1:]).tolist()
    if not backend.shares_prefixes:
        return
    start = length // 2
    _, prefix = backend.hidden_states([tokens[:start]], [[]], keep=True)
    for _ in range(2):  # the prefix stays as it was
        rows = [tokens[start:-1], tokens[start : start + 2]]
        hidden, _ = backend.hidden_states(rows, [[len(rows[0]) - 1], [1]], prefix)
        found, _ = backend.project(hidden, np.arange(2), np.array([tokens[-1], tokens[start + 2]]))
        places = [length - 2, start + 1]
        np.testing.assert_allclose(found, logprobs[places, [tokens[-1], tokens[start + 2]]], atol=tolerance)


def test_torch(architecture: str, directory: Path, expected: tuple[list[int], np.ndarray]) -> None:
    backend = load_torch("torch", directory, device="cpu", dtype="float32")
    assert backend.shares_prefixes == (architecture not in RECURRENT)
    assert_right(backend, expected, len(expected[0]))
    assert check_backend(backend, TextEncoder(backend.tokenizer)) < TOLERANCE


def test_unequal_prompts_are_continued_as_by_transformers(architecture: str, directory: Path) -> None:
    """In float32, past the sliding window, with rows that end at different steps."""
    generator = np.random.default_rng(5)
    prompts = [[2, *generator.integers(6, VOCABULARY_SIZE, size).tolist()] for size in (3, 2 * WINDOW, 8)]
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    ids = [
        model.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False, pad_token_id=0, eos_token_id=[1, 5])
        for prompt in prompts
    ]
    backend = load_torch("torch", directory, device="cpu", dtype="float32")
    expected = [
        backend.tokenizer.decode(row[0][len(prompt) :], skip_special_tokens=True)
        for row, prompt in zip(ids, prompts, strict=True)
    ]
    assert backend.generate(prompts, Sampling(20)) == expected
    assert backend.generate(prompts[1:2], Sampling(20), remember=True) == expected[1:2]


@pytest.mark.parametrize("execution", ["torch", "mlx"])
def test_the_text_part_of_a_model_with_pictures(execution: str, tmp_path: Path) -> None:
    directory = make_tiny_gemma_with_vision(tmp_path / "gemma3")
    tokens = [2, *np.random.default_rng(7).integers(6, VOCABULARY_SIZE - 1, 3 * WINDOW).tolist()]
    whole: Any = Gemma3ForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = whole(torch.tensor([tokens])).logits[0, :-1].double()
    backend: Backend = (
        load_torch("torch", directory, device="cpu", dtype="float32")
        if execution == "torch"
        else load_mlx("mlx", directory, dtype="float32")
    )
    assert_right(backend, (tokens, torch.log_softmax(logits, dim=-1).numpy()), len(tokens))
    assert backend.info.parameters < whole.num_parameters()


def test_mlx(architecture: str, directory: Path, expected: tuple[list[int], np.ndarray]) -> None:
    if architecture in NOT_IN_MLX:
        with pytest.raises(UserError, match="mlx-lm"):
            load_mlx("mlx", directory, dtype="float32")
        return
    backend = load_mlx("mlx", directory, dtype="float32")
    # mlx-lm leaves out the windows of some models: these have a shorter context here.
    assert backend.info.context_length >= (read_architecture(directory).window or 0)
    length = min(len(expected[0]), backend.info.context_length)
    assert_right(backend, expected, length, GELU_TOLERANCE if architecture == "gemma" else TOLERANCE)
