"""Linear layers and MLPs by oneDNN against their own code in float64, and modules that are left alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import Gemma3TextConfig, LlamaConfig, Qwen3Config
from transformers.models.gemma3.modeling_gemma3 import Gemma3MLP
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP

from adapters.torch_linear import library_linear, use_onednn

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")

SIZES = {"hidden_size": 48, "intermediate_size": 112, "num_attention_heads": 4}
MAKERS = {
    "gemma3": lambda: Gemma3MLP(Gemma3TextConfig(**SIZES)),
    "gemma3, exact GELU": lambda: Gemma3MLP(Gemma3TextConfig(hidden_activation="gelu", **SIZES)),
    "llama": lambda: LlamaMLP(LlamaConfig(**SIZES)),
    "llama with biases": lambda: LlamaMLP(LlamaConfig(mlp_bias=True, **SIZES)),
    "qwen3": lambda: Qwen3MLP(Qwen3Config(**SIZES)),
}


@pytest.fixture(autouse=True)
def wide_registers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")


def make(kind: str) -> nn.Module:
    torch.manual_seed(1)
    return MAKERS[kind]().requires_grad_(False)


def changed(module: nn.Module) -> set[str]:
    return {name for name, part in module.named_modules() if "forward" in vars(part)}


@pytest.mark.parametrize("kind", MAKERS)
@torch.inference_mode()
def test_an_mlp_gives_its_own_numbers(kind: str) -> None:
    mlp, states = make(kind), torch.randn(3, 7, 48)
    expected = copy.deepcopy(mlp).double()(states.double())
    use_onednn(mlp)
    assert changed(mlp) == {"", "gate_proj", "up_proj", "down_proj"}
    torch.testing.assert_close(mlp(states).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", MAKERS)
@torch.inference_mode()
def test_in_16_bits_an_mlp_is_rounded_less_than_by_its_own_code(kind: str) -> None:
    mlp, states = make(kind).bfloat16(), torch.randn(64, 48).bfloat16()
    exact, own = copy.deepcopy(mlp).double()(states.double()), mlp(states)
    use_onednn(mlp)
    assert changed(mlp) == ({""} if torch.ops.mkldnn._is_mkldnn_bf16_supported() else set())
    found = mlp(states)
    assert found.dtype is torch.bfloat16
    assert (found - exact).norm() <= (own - exact).norm()


class ScaledMLP(LlamaMLP):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 1.5


@torch.inference_mode()
def test_an_mlp_that_computes_something_else_keeps_its_code() -> None:
    mlp, states = ScaledMLP(LlamaConfig(**SIZES)), torch.randn(5, 48)
    expected = mlp(states)
    use_onednn(mlp)
    assert changed(mlp) == {"gate_proj", "up_proj", "down_proj"}
    torch.testing.assert_close(mlp(states), expected)


def test_other_processors_keep_pytorch_s_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    mlp = make("llama")
    use_onednn(mlp)
    assert not changed(mlp)


def test_other_types_keep_pytorch_s_products() -> None:
    mlp = make("llama").double()
    use_onednn(mlp)
    assert not changed(mlp)


@torch.inference_mode()
def test_a_copy_computes_with_its_own_weights() -> None:
    mlp, states = make("llama"), torch.randn(5, 48)
    use_onednn(mlp)
    other = copy.deepcopy(mlp)
    other.down_proj.weight.mul_(2)
    torch.testing.assert_close(other(states), 2 * mlp(states))


def test_the_library_s_own_code_computes_where_it_is_compared_with() -> None:
    mlp = make("gemma3")
    use_onednn(mlp)
    before = changed(mlp)
    with library_linear(mlp):
        assert not changed(mlp)
        mlp.act_fn.forward = len  # someone else's stays
        with library_linear(mlp):
            assert changed(mlp) == {"act_fn"}
    assert changed(mlp) == before | {"act_fn"}
