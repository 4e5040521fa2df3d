"""The next token's logits by an 8-bit product and exact ones: the tokens of the exact product, always."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adapters import torch_vocabulary
from adapters.architecture import Logits
from adapters.torch_vocabulary import CoarseProduct, NextToken

VOCABULARY, WIDTH = 40_000, 64


def head_of(weight: torch.Tensor) -> torch.nn.Linear:
    head = torch.nn.Linear(weight.shape[1], len(weight), bias=False, dtype=weight.dtype)
    head.weight = torch.nn.Parameter(weight, requires_grad=False)
    return head


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16])
def weight(request: pytest.FixtureRequest) -> torch.Tensor:
    """Rows of very different sizes, some with an outlier that makes their rounding coarse, some equal."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(VOCABULARY, WIDTH, generator=generator)
    rows *= torch.rand(VOCABULARY, 1, generator=generator) + 0.5
    rows[::50, 3] *= 30
    rows[7::1000] = rows[11::1000]
    rows[123] = 0
    return rows.to(request.param)


@pytest.fixture(scope="module")
def states() -> torch.Tensor:
    """Ordinary ones, one with outliers, one of zeros, and one that makes all logits nearly equal."""
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(40, WIDTH, generator=generator)
    rows[1, 5] = 60.0
    rows[2] = 0
    rows[3] *= 1e-6
    return rows


@torch.inference_mode()
def test_no_product_is_further_from_the_exact_one_than_the_bound(weight, states):
    coarse = CoarseProduct(weight)
    rough, lengths, lost = coarse(states)
    off = (rough.double() - states.double() @ weight.double().T).abs().numpy()
    bounds = [coarse._bound(coarse._errors, *row) for row in zip(lengths.tolist(), lost.tolist(), strict=True)]
    assert (off <= np.stack(bounds)).all()


@torch.inference_mode()
def test_the_likeliest_token_is_that_of_the_exact_product(weight, states):
    before = weight.clone()
    next_token = NextToken(head_of(weight), Logits())
    assert next_token._coarse is not None
    found = torch.tensor(next_token.likeliest(states))
    exact = states.double() @ weight.double().T
    best = exact.max(dim=1).values
    # Sums in float32 may take either of two tokens whose exact logits are this close.
    assert (best - exact.gather(1, found[:, None])[:, 0] <= 1e-5 * best.abs()).all()
    assert len(set(found.tolist())) > 10
    assert torch.equal(weight, before)


@torch.inference_mode()
def test_a_bias_belongs_to_the_logits(weight, states):
    head = torch.nn.Linear(WIDTH, VOCABULARY, dtype=weight.dtype).requires_grad_(False)
    head.weight.copy_(weight)
    head.bias.copy_(20 * torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(4)))
    next_token = NextToken(head, Logits())
    assert next_token._coarse is not None
    exact = torch.nn.functional.linear(states.double(), weight.double(), head.bias.double())
    assert next_token.likeliest(states) == exact.argmax(dim=1).tolist()
    found = torch.from_numpy(next_token.logits(states, 1.0))
    torch.testing.assert_close(found.max(dim=1).values.double(), exact.max(dim=1).values, rtol=1e-5, atol=1e-4)


@torch.inference_mode()
def test_of_equal_tokens_the_first_is_taken(states):
    weight = torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(3))
    weight[[300, 200, 39_999]] = 3 * states[0]
    assert NextToken(head_of(weight), Logits()).likeliest(states[:1]) == [200]


@torch.inference_mode()
@pytest.mark.parametrize("rule", [Logits(), Logits(scale=0.5), Logits(cap=20.0)])
def test_probable_tokens_have_exact_logits_to_sample_from(weight, states, rule):
    temperature = 0.7
    found = torch.from_numpy(NextToken(head_of(weight), rule).logits(states, temperature)).double()
    exact = torch_vocabulary.apply_rule(states.double() @ weight.double().T, rule)
    probable = exact > exact.max(dim=1, keepdim=True).values - 5 * temperature
    torch.testing.assert_close(found[probable], exact[probable], rtol=1e-4, atol=1e-4)
    probabilities = [torch.softmax(logits / temperature, dim=1) for logits in (found, exact)]
    assert (probabilities[0] - probabilities[1]).abs().sum(dim=1).max() < 0.01


@torch.inference_mode()
def test_a_small_matrix_is_projected_to_exactly():
    weight = torch.randn(100, WIDTH).bfloat16()
    next_token = NextToken(head_of(weight), Logits())
    assert next_token._coarse is None
    state = torch.randn(3, WIDTH)
    np.testing.assert_allclose(next_token.logits(state, 1.0), state @ weight.float().T, rtol=1e-5, atol=1e-5)
    assert next_token.likeliest(state) == (state @ weight.float().T).argmax(dim=1).tolist()


@torch.inference_mode()
def test_without_the_8_bit_product_16_bits_and_exact_ones_find_the_same_tokens(weight, states, monkeypatch):
    expected = NextToken(head_of(weight), Logits()).likeliest(states.bfloat16())

    def missing(self: CoarseProduct, *_: object) -> None:
        raise AttributeError("no such product in this PyTorch")

    monkeypatch.setattr(CoarseProduct, "__init__", missing)
    next_token = NextToken(head_of(weight), Logits())
    assert next_token._coarse is None
    assert next_token.likeliest(states.bfloat16()) == expected
