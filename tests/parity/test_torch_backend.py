"""The PyTorch backend against plain transformers: full sequences, no cache, float32, eager attention."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.models.gemma3.modeling_gemma3 import eager_attention_forward

from adapters import torch_attention, torch_backend, torch_vocabulary
from adapters.base import Sampling, UserError
from adapters.text import cut_at_stop, end_tokens
from adapters.torch_attention import grouped_attention
from adapters.torch_backend import TorchBackend, load_torch
from tests.parity.test_backend_contract import largest_difference, reference_text
from tests.tiny_gemma import VOCABULARY_SIZE, make_tiny_gemma

TOLERANCE = 1e-3  # natural logarithms; about 1e-5 is usual
WINDOW = 16  # of the tiny model


@pytest.fixture(scope="module")
def backend(directory: Path) -> TorchBackend:
    return load_torch("torch-cpu", directory, device="cpu", dtype="float32")


# --- hidden states ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("query_slice", [1, 5, 33])
def test_long_rows_taken_in_slices_agree_with_a_full_forward_pass(
    backend, model, random_sequence, monkeypatch, query_slice
):
    monkeypatch.setattr(torch_attention, "QUERY_SLICE", query_slice)
    start = random_sequence(21)
    _, prefix = backend.hidden_states([start], [[]], keep=True)
    assert largest_difference(backend, model, [random_sequence(n) for n in (70, 34)]) < TOLERANCE
    assert largest_difference(backend, model, [start + random_sequence(n) for n in (50, 6)], 21, prefix) < TOLERANCE


# --- attention --------------------------------------------------------------------------------------------------------


class Attention(torch.nn.Module):
    """What transformers' eager attention reads of its layer."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.num_key_value_groups = groups
        self.training = False


def visible(tokens: int, keys: int, window: int | None) -> torch.Tensor:
    """bool [tokens, keys], written out place by place."""
    earlier = keys - tokens
    return torch.tensor(
        [
            [key <= earlier + query and (window is None or key > earlier + query - window) for key in range(keys)]
            for query in range(tokens)
        ]
    )


@pytest.mark.parametrize("query_slice", [3, 256])
@pytest.mark.parametrize("window", [None, 1, 2, 9])
@pytest.mark.parametrize(("tokens", "earlier"), [(1, 0), (1, 12), (17, 0), (10, 6), (4, 20)])
def test_grouped_attention_is_that_of_transformers(monkeypatch, query_slice, window, tokens, earlier):
    monkeypatch.setattr(torch_attention, "QUERY_SLICE", query_slice)
    generator = torch.Generator().manual_seed(tokens)
    keys = tokens + earlier
    query = torch.randn(2, 6, tokens, 8, generator=generator)
    key, value = (torch.randn(2, 2, keys, 8, generator=generator) for _ in range(2))
    mask = visible(tokens, keys, window)[None, None]
    found, weights = grouped_attention(Attention(3), query, key, value, mask, scaling=0.3, sliding_window=window)
    assert weights is None
    additive = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
    eager, _ = eager_attention_forward(Attention(3), query, key, value, additive, scaling=0.3)
    torch.testing.assert_close(found, eager)
    fused = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=0.3, enable_gqa=True
    )
    torch.testing.assert_close(found, fused.transpose(1, 2))


@pytest.mark.parametrize("earlier", [0, 5])
def test_attention_without_a_mask_is_causal_and_scaled_by_the_head_size(earlier):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 2, 7, 16, generator=generator)
    key, value = (torch.randn(1, 1, 7 + earlier, 16, generator=generator) for _ in range(2))
    found, _ = grouped_attention(Attention(2), query, key, value, None)
    fused = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=visible(7, 7 + earlier, None), enable_gqa=True
    )
    torch.testing.assert_close(found, fused.transpose(1, 2))


def test_a_token_that_may_see_nothing_does_not_become_nan():
    """Padding on the left sees nothing; as NaN it would spread to the tokens that look past it."""
    query, key, value = (torch.randn(1, 1, 3, 8) for _ in range(3))
    mask = visible(3, 3, None)[None, None].clone()
    mask[..., 0] = False  # the first key is padding, so the first query is left with no key
    found, _ = grouped_attention(Attention(1), query, key, value, mask)
    assert torch.isfinite(found).all()


# --- project ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocabulary_chunk", [1, 100, VOCABULARY_SIZE - 1, VOCABULARY_SIZE, 10_000])
@pytest.mark.parametrize("position_chunk", [1, 7, 10_000])
def test_log_probabilities_do_not_depend_on_the_chunks(backend, monkeypatch, vocabulary_chunk, position_chunk):
    monkeypatch.setattr(torch_vocabulary, "VOCABULARY_CHUNK", vocabulary_chunk)
    monkeypatch.setattr(torch_backend, "POSITION_CHUNK", position_chunk)
    generator = np.random.default_rng(3)
    hidden = generator.normal(size=(15, backend.info.hidden_size)).astype(np.float32) * 2
    weight = backend.model.get_output_embeddings().weight.double().numpy()
    table = torch.from_numpy(hidden.astype(np.float64) @ weight.T).log_softmax(-1).numpy()
    # Unsorted, repeated, every border of a chunk, and the most probable token of every row.
    sources = np.concatenate([generator.integers(0, 15, 60), np.arange(15), [14, 0, 6, 7]]).astype(np.int64)
    edges = [0, VOCABULARY_SIZE - 1, 99, 100]
    tokens = np.concatenate([generator.integers(0, VOCABULARY_SIZE, 60), table.argmax(1), edges]).astype(np.int64)
    found, greedy = backend.project(hidden, sources, tokens)
    np.testing.assert_allclose(found, table[sources, tokens], atol=1e-4, rtol=0)
    np.testing.assert_array_equal(greedy, table[sources].argmax(1) == tokens)
    assert greedy[60:75].all()


@pytest.fixture(scope="module")
def bfloat16_backend(directory: Path) -> TorchBackend:
    return load_torch("torch-cpu", directory, device="cpu", dtype="bfloat16")


def test_a_bfloat16_model_projects_as_exactly_as_float32(bfloat16_backend, random_sequence):
    assert bfloat16_backend.info.dtype == "bfloat16"
    hidden, _ = bfloat16_backend.hidden_states([random_sequence(40)], [list(range(40))])
    weight = bfloat16_backend.model.get_output_embeddings().weight.double()
    table = (torch.from_numpy(hidden).double() @ weight.T).log_softmax(-1).numpy()
    sources = np.repeat(np.arange(40), VOCABULARY_SIZE)
    found, _ = bfloat16_backend.project(hidden, sources, np.tile(np.arange(VOCABULARY_SIZE), 40))
    assert np.abs(found - table.ravel()).max() < TOLERANCE


@pytest.fixture(params=["none", "ieee"])
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    """The process's own setting for float32 products, whatever the backend does meanwhile."""
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = request.param
    yield request.param
    torch.backends.mkldnn.matmul.fp32_precision = before


def test_the_global_precision_of_products_is_as_before(bfloat16_backend, precision):
    hidden = np.ones((1, bfloat16_backend.info.hidden_size), dtype=np.float32)
    bfloat16_backend.project(hidden, np.zeros(1, dtype=np.int64), np.array([5]))
    assert torch.backends.mkldnn.matmul.fp32_precision == precision
    with pytest.raises(RuntimeError):  # hidden states of another width
        bfloat16_backend.project(hidden[:, :3], np.zeros(1, dtype=np.int64), np.array([5]))
    assert torch.backends.mkldnn.matmul.fp32_precision == precision


# --- generate ---------------------------------------------------------------------------------------------------------

LENGTHS = (3, 40, WINDOW, 1, WINDOW + 1)


@pytest.mark.parametrize("length", LENGTHS)
def test_greedy_generation_equals_that_of_transformers(backend, model, random_sequence, length):
    prompt = random_sequence(length)
    expected = reference_text(backend, model, prompt, 24)
    assert backend.generate([prompt], Sampling(max_new_tokens=24)) == [expected]
    assert expected


def test_a_batch_of_equal_lengths_gives_the_texts_of_single_ones(backend, model, random_sequence):
    prompts = [random_sequence(20) for _ in range(3)]
    expected = [reference_text(backend, model, prompt, 24) for prompt in prompts]
    assert backend.generate(prompts, Sampling(max_new_tokens=24)) == expected


@pytest.mark.parametrize(
    ("stop", "expected"),
    [((), ("да\nнет", False)), (("нет", "\n"), ("да", True)), (("xyz",), ("да\nнет", False))],
)
def test_the_earliest_stop_string_cuts(stop, expected):
    assert cut_at_stop("да\nнет", stop) == expected


def test_generation_ends_at_an_end_token(directory, tmp_path, random_sequence):
    prompt = random_sequence(20)
    free = load_torch("torch-cpu", directory, device="cpu", dtype="float32")
    ids = free.model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False, pad_token_id=0)[0][
        20:
    ].tolist()
    end = next(token for token in ids[3:] if token not in ids[:3] and token > 5)
    tied = free.model.config.tie_word_embeddings
    ending = load_torch(
        "torch-cpu",
        make_tiny_gemma(tmp_path, eos_token_id=[1, end], tie_word_embeddings=tied),
        device="cpu",
        dtype="float32",
    )
    whole = free.generate([prompt], Sampling(max_new_tokens=24))[0]
    ended = ending.generate([prompt], Sampling(max_new_tokens=24))[0]
    # An end token that is no special one stays in the text, and nothing follows it.
    assert ended == free.tokenizer.decode(ids[: ids.index(end) + 1], skip_special_tokens=True)
    assert len(ended) < len(whole)


def test_the_end_of_the_text_and_of_a_turn_end_an_answer(backend):
    assert end_tokens(backend.tokenizer, 1) == {1, 5}


# --- loading ----------------------------------------------------------------------------------------------------------


def test_float16_is_refused_with_what_to_do_instead(directory):
    with pytest.raises(UserError, match="overflows in float16") as caught:
        load_torch("torch-cpu", directory, device="cpu", dtype="float16")
    assert "bfloat16" in caught.value.hint


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_a_user_error(directory, device):
    there = torch.cuda.is_available() if device == "cuda" else torch.backends.mps.is_available()
    if there:
        pytest.skip(f"this machine has {device}")
    with pytest.raises(UserError, match=f"no {device} device"):
        load_torch(f"torch-{device}", directory, device=device, dtype="auto")


def test_the_backend_says_what_it_loaded(backend, directory):
    info = backend.info
    stored = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    assert (info.name, info.execution, info.device, info.dtype) == ("torch-cpu", "torch", "cpu", "float32")
    assert (info.weights, info.weights_bytes) == ("bfloat16", stored)
    assert (info.hidden_size, info.context_length) == (64, 1024)
    assert info.parameters == sum(parameter.numel() for parameter in backend.model.parameters())
    assert backend.peak_memory() is None


def test_the_type_of_the_weights_is_that_of_the_model_not_of_its_heads(tmp_path):
    from safetensors.torch import save_file

    make_tiny_gemma(tmp_path)
    save_file({"weight": torch.zeros(1, 2)}, tmp_path / "heads.safetensors")
    info = load_torch("torch", tmp_path, device="cpu", dtype="float32").info
    assert info.weights == "bfloat16"
