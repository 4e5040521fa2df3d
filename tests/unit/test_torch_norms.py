"""Fused RMS norms against transformers' own, and norms that are left alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from adapters.torch_norms import fuse_norms, library_norms

WIDTH = 96


@pytest.mark.parametrize("kind", [Gemma3RMSNorm, LlamaRMSNorm, Qwen3RMSNorm])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_a_fused_norm_gives_the_numbers_of_transformers(kind: type[nn.Module], dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(kind(WIDTH, eps=1e-6)).to(dtype)
    model[0].weight.copy_(torch.randn(WIDTH) * 0.3)
    states = (torch.randn(7, 11, WIDTH) * 5).to(dtype)
    expected = model(states)
    fuse_norms(model)
    assert "forward" in vars(model[0])
    found = model(states)
    assert found.dtype == dtype
    # One in some thousand numbers is rounded the other way.
    torch.testing.assert_close(found, expected, rtol=1e-6 if dtype is torch.float32 else 2**-7, atol=0)


class CubedRMSNorm(nn.Module):
    """A norm of no form that is known."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(WIDTH)), 1e-6

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return states * torch.rsqrt(states.abs().pow(3).mean(-1, keepdim=True) + self.eps) * self.weight


@torch.inference_mode()
def test_a_norm_of_another_form_is_left_alone() -> None:
    model = nn.Sequential(CubedRMSNorm())
    states = torch.randn(5, WIDTH)
    expected = model(states)
    fuse_norms(model)
    assert "forward" not in vars(model[0])
    torch.testing.assert_close(model(states), expected, rtol=0, atol=0)


@torch.inference_mode()
def test_the_library_s_own_norms_compute_where_they_are_compared_with() -> None:
    model = nn.Sequential(LlamaRMSNorm(WIDTH))
    fuse_norms(model)
    fused = model[0].forward
    with library_norms(model):
        assert model[0].forward.__func__ is LlamaRMSNorm.forward
    assert model[0].forward is fused
