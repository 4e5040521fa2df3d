"""The PyTorch backend against plain transformers: full sequences, no cache, float32, eager attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.gemma3.modeling_gemma3 import eager_attention_forward

from adapters import cpu_attention, torch_backend
from adapters.base import Prefix, Sampling, UserError
from adapters.text import cut_at_stop, end_tokens
from adapters.torch_attention import grouped_attention
from adapters.torch_backend import TorchBackend, load_torch
from tests.tiny_gemma import VOCABULARY_SIZE, make_tiny_gemma

TOLERANCE = 1e-3  # natural logarithms; about 1e-5 is usual
WINDOW = 16  # of the tiny model

RandomSequence = Callable[[int], list[int]]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Matrices this small only wait for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=["tied", "untied"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_gemma(tmp_path_factory.mktemp("gemma"), tie_word_embeddings=request.param == "tied")


@pytest.fixture(scope="module")
def backend(directory: Path) -> TorchBackend:
    return load_torch("torch-cpu", directory, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def model(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()


@pytest.fixture
def random_sequence() -> RandomSequence:
    generator = np.random.default_rng(7)
    return lambda length: [2, *generator.integers(6, VOCABULARY_SIZE, length - 1).tolist()]


def reference_logprobs(model: Any, sequence: Sequence[int]) -> np.ndarray:
    """float64 [len(sequence), vocabulary]."""
    with torch.no_grad():
        logits = model(torch.tensor([list(sequence)]), use_cache=False).logits[0]
    return logits.double().log_softmax(-1).numpy()


def largest_difference(
    backend: TorchBackend, model: Any, sequences: Sequence[Sequence[int]], shared: int = 0, prefix: Prefix | None = None
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


# --- encode -----------------------------------------------------------------------------------------------------------


def test_unequal_rows_without_a_prefix_agree_with_a_full_forward_pass(backend, model, random_sequence):
    sequences = [random_sequence(length) for length in (2, 60, WINDOW, WINDOW + 1, 5)]
    assert largest_difference(backend, model, sequences) < TOLERANCE


@pytest.mark.parametrize("length", [1, 5, WINDOW - 1, WINDOW, WINDOW + 1, 70])
def test_rows_after_a_prefix_agree_even_past_the_sliding_window(backend, model, random_sequence, length):
    start = random_sequence(length)
    _, prefix = backend.hidden_states([start], [[]], keep=True)
    assert prefix.length == length
    sequences = [start + random_sequence(n) for n in (2, 3, 40)]
    assert largest_difference(backend, model, sequences, length, prefix) < TOLERANCE


def test_single_token_rows_after_a_wrapped_prefix_agree(backend, model, random_sequence):
    start = random_sequence(33)
    _, prefix = backend.hidden_states([start], [[]], keep=True)
    rows = [[token] for token in (10, 300, 400)]
    hidden, _ = backend.hidden_states(rows, [[0]] * 3, prefix)
    everything = np.tile(np.arange(VOCABULARY_SIZE), 3)
    found, _ = backend.project(hidden, np.repeat(np.arange(3), VOCABULARY_SIZE), everything)
    expected = np.concatenate([reference_logprobs(model, start + row)[-1] for row in rows])
    assert np.abs(found - expected).max() < TOLERANCE


def test_prefixes_that_extend_each_other_agree_and_none_changes(backend, model, random_sequence):
    whole = random_sequence(80)
    prefix, end, prefixes = None, 0, []
    for step in (5, 9, 1, 1, 30, 1, 20):
        _, prefix = backend.hidden_states([whole[end : end + step]], [[]], prefix, keep=True)
        end += step
        assert prefix.length == end
        prefixes.append(prefix)
    for kept in [*prefixes, *prefixes]:
        sequences = [whole[: kept.length] + random_sequence(n) for n in (3, 25)]
        assert largest_difference(backend, model, sequences, kept.length, kept) < TOLERANCE


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


def test_positions_come_back_in_the_order_of_rows_and_positions(backend, random_sequence):
    rows = [random_sequence(n) for n in (6, 9, 3)]
    everything, _ = backend.hidden_states(rows, [list(range(len(row))) for row in rows])
    chosen, _ = backend.hidden_states(rows, [[5, 0], [], [2]])
    np.testing.assert_array_equal(chosen, everything[[5, 0, 6 + 9 + 2]])


def test_no_position_asked_for_gives_an_empty_array(backend, random_sequence):
    hidden, _ = backend.hidden_states([random_sequence(4)], [[]])
    assert hidden.shape == (0, backend.info.hidden_size)


def test_only_a_single_row_can_be_kept(backend, random_sequence):
    with pytest.raises(ValueError, match="single row"):
        backend.hidden_states([random_sequence(3), random_sequence(3)], [[], []], keep=True)


@pytest.mark.parametrize("query_slice", [1, 5, 33])
def test_long_rows_taken_in_slices_agree_with_a_full_forward_pass(
    backend, model, random_sequence, monkeypatch, query_slice
):
    monkeypatch.setattr(cpu_attention, "QUERY_SLICE", query_slice)
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
    monkeypatch.setattr(cpu_attention, "QUERY_SLICE", query_slice)
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
    monkeypatch.setattr(torch_backend, "VOCABULARY_CHUNK", vocabulary_chunk)
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


def test_very_large_logits_do_not_overflow(backend):
    hidden = np.full((1, backend.info.hidden_size), 300.0, dtype=np.float32)
    weight = backend.model.get_output_embeddings().weight.double().numpy()
    table = torch.from_numpy(hidden.astype(np.float64) @ weight.T).log_softmax(-1).numpy()[0]
    found, _ = backend.project(hidden, np.zeros(VOCABULARY_SIZE, dtype=np.int64), np.arange(VOCABULARY_SIZE))
    np.testing.assert_allclose(found, table, rtol=1e-5, atol=1e-2)


def test_nan_comes_through_and_stays_in_its_own_row(backend):
    hidden = np.ones((3, backend.info.hidden_size), dtype=np.float32)
    hidden[1, 5] = np.nan
    found, _ = backend.project(hidden, np.array([0, 1, 2, 1]), np.array([7, 7, 7, 9]))
    np.testing.assert_array_equal(np.isnan(found), [False, True, False, True])


def test_nothing_to_project_gives_empty_arrays(backend):
    hidden = np.empty((0, backend.info.hidden_size), dtype=np.float32)
    found, greedy = backend.project(hidden, np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))
    assert len(found) == len(greedy) == 0


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


def reference_text(backend: TorchBackend, model: Any, prompt: Sequence[int], tokens: int) -> str:
    output = model.generate(
        torch.tensor([list(prompt)]), max_new_tokens=tokens, do_sample=False, eos_token_id=[1, 5], pad_token_id=0
    )
    return backend.tokenizer.decode(output[0][len(prompt) :], skip_special_tokens=True)


@pytest.mark.parametrize("length", LENGTHS)
def test_greedy_generation_equals_that_of_transformers(backend, model, random_sequence, length):
    prompt = random_sequence(length)
    expected = reference_text(backend, model, prompt, 24)
    assert backend.generate([prompt], Sampling(max_new_tokens=24)) == [expected]
    assert expected


def test_a_batch_of_unequal_prompts_gives_the_texts_of_single_ones(backend, model, random_sequence):
    prompts = [random_sequence(length) for length in LENGTHS]
    expected = [reference_text(backend, model, prompt, 24) for prompt in prompts]
    assert backend.generate(prompts, Sampling(max_new_tokens=24)) == expected
    assert len(set(expected)) > 1


def test_a_batch_of_equal_lengths_gives_the_texts_of_single_ones(backend, model, random_sequence):
    prompts = [random_sequence(20) for _ in range(3)]
    expected = [reference_text(backend, model, prompt, 24) for prompt in prompts]
    assert backend.generate(prompts, Sampling(max_new_tokens=24)) == expected


def test_text_ends_before_the_first_stop_string_of_its_own_row(backend, random_sequence):
    prompts = [random_sequence(20) for _ in range(3)]
    free = backend.generate(prompts, Sampling(max_new_tokens=24))
    stops = (free[0][8:10], free[0][4:6])
    stopped = backend.generate(prompts, Sampling(max_new_tokens=24, stop=stops))
    assert stopped == [cut_at_stop(text, stops)[0] for text in free]
    assert len(stopped[0]) <= 4


@pytest.mark.parametrize(
    ("stop", "expected"),
    [((), ("да\nнет", False)), (("нет", "\n"), ("да", True)), (("xyz",), ("да\nнет", False))],
)
def test_the_earliest_stop_string_cuts(stop, expected):
    assert cut_at_stop("да\nнет", stop) == expected


@pytest.mark.parametrize("stop", [(), ("\n", "K", "й")])
def test_the_callback_ends_with_the_returned_text(backend, random_sequence, stop):
    prompts = [random_sequence(20) for _ in range(3)]
    seen: dict[int, list[str]] = {row: [] for row in range(3)}
    sampling = Sampling(max_new_tokens=16, stop=stop)
    texts = backend.generate(prompts, sampling, on_text=lambda row, text: seen[row].append(text))
    assert [calls[-1] if calls else "" for calls in seen.values()] == texts
    assert max(map(len, seen.values())) > 2


def test_sampling_repeats_with_a_seed_and_differs_with_another(backend, random_sequence):
    prompts = [random_sequence(9) for _ in range(2)]

    def sampled(seed: int) -> list[str]:
        return backend.generate(prompts, Sampling(max_new_tokens=24, temperature=1.5, top_p=0.99, seed=seed))

    assert sampled(1) == sampled(1)
    assert sampled(1) != sampled(2)
    assert sampled(1) != backend.generate(prompts, Sampling(max_new_tokens=24))


def test_a_tiny_top_p_leaves_only_the_greedy_token(backend, random_sequence):
    prompts = [random_sequence(9)]
    sampled = backend.generate(prompts, Sampling(max_new_tokens=12, temperature=1.0, top_p=1e-6, seed=5))
    assert sampled == backend.generate(prompts, Sampling(max_new_tokens=12))


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
