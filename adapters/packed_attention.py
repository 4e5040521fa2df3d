"""Attention for packed sequences, where the mask alone says who sees whom.

The order of tokens in a packed sequence is not their distance, so nothing may be left out by the sliding window's
width; masks for both kinds of layer come with the batch.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from adapters.torch_attention import grouped_attention

PACKED_ATTENTION = "rsg_packed"


def packed_attention(
    module: torch.nn.Module, query: torch.Tensor, *rest: Any, sliding_window: int | None = None, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """`grouped_attention`, with the window in the mask; on a GPU, PyTorch's own attention."""
    attend = grouped_attention if query.device.type == "cpu" else sdpa_attention_forward
    return attend(module, query, *rest, **kwargs)


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
AttentionMaskInterface.register(PACKED_ATTENTION, sdpa_mask)
