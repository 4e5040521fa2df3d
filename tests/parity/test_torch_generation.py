"""Generation in PyTorch: decoders for single tokens, caches that grow, and texts that are remembered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from adapters.base import Sampling
from adapters.torch_backend import TorchBackend, load_torch
from adapters.torch_cache import FIRST_ROOM, Batch, extend
from adapters.torch_decoder import FAMILY, PackedLinear, _fbgemm, make_stepping
from adapters.torch_generation import NOTHING
from tests.parity.test_backend_contract import reference_text
from tests.tiny_gemma import VOCABULARY_SIZE, make_tiny_gemma
from tests.tiny_models import make_tiny_model

WINDOW = 16  # of the tiny model
needs_fbgemm = pytest.mark.skipif(
    "fbgemm" not in torch.backends.quantized.supported_engines, reason="this PyTorch has no FBGEMM"
)


@pytest.fixture(scope="module")
def backend(directory: Path) -> TorchBackend:
    return load_torch("torch-cpu", directory, device="cpu", dtype="float32")


def random_tokens(length: int, seed: int) -> list[int]:
    return [2, *np.random.default_rng(seed).integers(6, VOCABULARY_SIZE, length - 1).tolist()]


@pytest.fixture
def computed(backend: TorchBackend, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the tokens [rows, tokens] that the prompts' decoder was given."""
    shapes: list[tuple[int, ...]] = []
    decoder = backend.model.get_decoder()
    handle = decoder.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    monkeypatch.setattr(backend._generation, "_remembered", [])
    yield shapes  # type: ignore[misc]
    handle.remove()


# --- one token at a time ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@needs_fbgemm
def test_packed_layers_multiply_by_the_weights_as_float32_does(rows, dtype):
    layers = [torch.nn.Linear(96, size, dtype=torch.bfloat16, bias=size == 160) for size in (160, 32)]
    layers = [layer.to(dtype).requires_grad_(False) for layer in layers]
    # The first three are below float16's normal range.
    layers[0].weight[0, :4] = torch.tensor([3e-7, -1e-5, 2e-30, 5e4]).bfloat16()
    states = torch.randn(rows, 96)
    wide = dtype == torch.bfloat16 and rows == 100  # many rows go by bfloat16
    if wide:
        states = states.bfloat16().float()
    with _fbgemm():
        found = PackedLinear(layers)(states)
    expected = torch.cat([layer.double()(states.double()) for layer in layers], dim=1)
    tolerance = 1e-2 if wide else 1e-5
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    assert found.dtype == torch.float32


@needs_fbgemm
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", FAMILY)
def test_single_tokens_have_the_states_that_the_model_gives_them(architecture, dtype, tmp_path):
    """Rows of different lengths, past the window; in bfloat16 the same weights are compared in float32."""
    directory = make_tiny_model(architecture, tmp_path, dtype="bfloat16")
    model = load_torch("torch", directory, device="cpu", dtype=dtype).model
    exact = load_torch("torch", directory, device="cpu", dtype="float32").model.get_decoder()
    stepping = make_stepping(model.get_decoder())
    assert stepping is not None
    rows = [random_tokens(length, length) for length in (2 * WINDOW, 3, WINDOW)]
    with torch.inference_mode():
        computed = [extend(exact, NOTHING, [row])[0][0] for row in rows]
        batch = Batch(exact, computed, torch.float32)
        for token in (7, 400, 31):
            found = stepping(torch.tensor([[token]] * 3), batch)
            batch.grown()
            for row, states in zip(rows, found, strict=True):
                row.append(token)
                expected = exact(input_ids=torch.tensor([row])).last_hidden_state[0, -1]
                torch.testing.assert_close(states, expected, rtol=3e-2 if dtype == "bfloat16" else 1e-4, atol=1e-3)


@needs_fbgemm
def test_weights_that_float16_cannot_hold_are_left_to_the_model(tmp_path):
    for name, change in (("fine", lambda w: w), ("finer", lambda w: w + 1e-6), ("large", lambda w: w * 1e7)):
        model = load_torch("torch", make_tiny_gemma(tmp_path / name), device="cpu", dtype="float32").model
        with torch.no_grad():
            layer = model.model.layers[2].mlp.up_proj
            layer.weight.copy_(change(layer.weight))
        assert (make_stepping(model.get_decoder()) is None) == (name != "fine")


@pytest.mark.parametrize("architecture", ["gpt2", "mixtral", "gemma2"])
def test_other_decoders_are_left_to_transformers(architecture, tmp_path):
    model = load_torch("torch", make_tiny_model(architecture, tmp_path), device="cpu", dtype="float32").model
    assert make_stepping(model.get_decoder()) is None


@needs_fbgemm
def test_the_model_stays_as_it_was(directory):
    engine = torch.backends.quantized.engine
    model = load_torch("torch", directory, device="cpu", dtype="float32").model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert make_stepping(model.get_decoder()) is not None
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.backends.quantized.engine == engine


# --- texts ------------------------------------------------------------------------------------------------------------


def test_a_text_longer_than_the_first_buffers_is_that_of_transformers(backend, model):
    prompt, tokens = random_tokens(5, 1), 2 * FIRST_ROOM + 10
    assert backend.generate([prompt], Sampling(tokens)) == [reference_text(backend, model, prompt, tokens)]


def test_rows_that_end_early_leave_the_others_as_they_are(backend, model):
    prompts = [random_tokens(length, length) for length in (9, 30, 4, 17, 12)]
    free = [reference_text(backend, model, prompt, 40) for prompt in prompts]
    stops = tuple(text[place : place + 3] for text, place in zip(free, (20, 2, 30, 9, 5), strict=True))
    expected = [text[: min(at for stop in stops if (at := text.find(stop)) >= 0)] for text in free]
    assert len({len(text) for text in expected}) > 2
    assert backend.generate(prompts, Sampling(40, stop=stops)) == expected


def test_a_bfloat16_model_continues_as_its_weights_do_in_float32(directory, model):
    """The first token comes from a pass in bfloat16; what follows is computed in float32 on the same weights."""
    rough = load_torch("torch-cpu", directory, device="cpu", dtype="bfloat16")
    texts = rough.generate([random_tokens(30, seed) for seed in range(8)], Sampling(24))
    expected = [reference_text(rough, model, random_tokens(30, seed), 24) for seed in range(8)]
    agree = sum(text[:4] == other[:4] for text, other in zip(texts, expected, strict=True))
    assert agree >= 5


# --- beginnings in common ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [20, 45])
def test_what_all_prompts_of_a_batch_share_is_computed_once(backend, model, computed, shared):
    start = random_tokens(shared, 3)
    prompts = [start + random_tokens(length, length)[1:] for length in (9, 4, 20)]
    expected = [reference_text(backend, model, prompt, 24) for prompt in prompts]
    assert backend.generate(prompts, Sampling(24)) == expected
    assert computed[:2] == [(1, shared), (3, 19)]


def test_equal_prompts_are_computed_once(backend, model, computed):
    prompt = random_tokens(33, 4)
    assert backend.generate([prompt] * 3, Sampling(9)) == [reference_text(backend, model, prompt, 9)] * 3
    assert computed[:2] == [(1, 32), (3, 1)]


def dialogue(backend: TorchBackend, remember: bool, turns: int = 4) -> tuple[list[str], list[list[int]]]:
    """Each prompt is the one before with its answer and a further question, as in the bot."""
    prompt, texts, prompts = random_tokens(20, 8), [], []
    for turn in range(turns):
        prompts.append(prompt)
        [text] = backend.generate([prompt], Sampling(12), remember=remember)
        texts.append(text)
        answer = backend.tokenizer(text, add_special_tokens=False).input_ids
        prompt = [*prompt, *answer, *random_tokens(8, 50 + turn)[1:]]
    return texts, prompts


def test_a_dialogue_has_the_same_texts_whether_or_not_it_is_remembered(backend, model, computed):
    texts, prompts = dialogue(backend, remember=True)
    remembered = sum(rows * tokens for rows, tokens in computed)
    computed.clear()
    assert dialogue(backend, remember=False)[0] == texts
    assert texts == [reference_text(backend, model, prompt, 12) for prompt in prompts]
    assert len(prompts[-1]) > 3 * WINDOW
    assert remembered < 0.5 * sum(rows * tokens for rows, tokens in computed)


def test_the_next_turn_computes_only_what_is_new(backend, computed):
    prompt = random_tokens(40, 9)
    backend.generate([prompt], Sampling(5), remember=True)
    computed.clear()
    backend.generate([prompt + random_tokens(7, 1)[1:]], Sampling(5), remember=True)
    assert computed[0] in [(1, 6), (1, 7)]  # 7 where the first new token is not the one that was generated


def test_a_prompt_that_departs_from_a_remembered_text_is_right_past_the_window(backend, model, computed):
    first = random_tokens(3 * WINDOW, 10)
    backend.generate([first], Sampling(8), remember=True)
    departing = first[: 2 * WINDOW + 3] + random_tokens(20, 11)[1:]
    assert backend.generate([departing], Sampling(24), remember=True) == [reference_text(backend, model, departing, 24)]
    assert computed[-1] == (1, 19)


def test_dialogues_of_several_users_are_remembered_beside_each_other(backend, model, computed):
    prompts = [random_tokens(30 + length, length) for length in (1, 2, 3)]
    backend.generate(prompts, Sampling(6), remember=True)
    computed.clear()
    longer = [prompt + random_tokens(5, 20)[1:] for prompt in prompts]
    expected = [reference_text(backend, model, prompt, 12) for prompt in longer]
    assert backend.generate(longer, Sampling(12), remember=True) == expected
    assert sum(rows * tokens for rows, tokens in computed) < 24


def test_the_oldest_texts_are_forgotten(backend, computed, monkeypatch):
    monkeypatch.setattr("adapters.growing.REMEMBERED_TOKENS", 100)
    for seed in range(6):
        backend.generate([random_tokens(40, seed)], Sampling(4), remember=True)
    kept = [text.tokens[:40] for text in backend._generation._remembered]
    assert kept == [tuple(random_tokens(40, seed)) for seed in (4, 5)]


def test_a_call_that_remembers_nothing_does_not_use_what_was_remembered(backend, computed):
    prompt = random_tokens(30, 12)
    backend.generate([prompt], Sampling(4), remember=True)
    computed.clear()
    backend.generate([prompt], Sampling(4))
    assert computed[0] == (1, 30)


def test_the_backend_can_be_asked_while_a_text_grows(backend, model):
    """The bot answers questions between two tokens of a conversation."""
    prompt, other = random_tokens(20, 13), random_tokens(9, 14)
    hidden, _ = backend.hidden_states([other], [[8]])
    seen = []

    def ask(number: int, text: str) -> None:
        found, _ = backend.hidden_states([other], [[8]])
        seen.append(np.array_equal(found, hidden))

    assert backend.generate([prompt], Sampling(12), ask) == [reference_text(backend, model, prompt, 12)]
    assert seen
    assert all(seen)


def test_a_callback_that_raises_ends_the_generation(backend):
    class Enough(Exception):
        pass

    def stop(number: int, text: str) -> None:
        raise Enough

    with pytest.raises(Enough):
        backend.generate([random_tokens(9, 15)], Sampling(12), stop, remember=True)
    assert backend.generate([random_tokens(9, 15)], Sampling(3))


@pytest.fixture(autouse=True)
def nothing_is_left(backend: TorchBackend) -> Iterator[None]:
    yield
    backend._generation._remembered.clear()
