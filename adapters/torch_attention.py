"""Grouped-query attention for CPUs, as two matrix products a layer.

At Gemma-3's head size of 256, PyTorch's fused CPU kernel is much slower than plain bfloat16 matrix products, and needs
keys and values repeated for every query head. Here the query heads that share keys are folded into the
rows of one product, so nothing is repeated and oneDNN's bfloat16 products do the work.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

CPU_ATTENTION = "rsg_cpu"

# Queries taken at a time: a slice needs only the keys that it may see, so long rows do not compute what the causal mask
# and the sliding window throw away, and its scores stay in the cache.
QUERY_SLICE = 256


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal scaled dot-product attention with a softmax in float32.

    Args:
        query: [batch, query heads, tokens, head size].
        key, value: [batch, key-value heads, keys, head size]; the last `tokens` keys belong to the queries.
        attention_mask: bool [batch or 1, 1, tokens, keys], True where a token may look; None: causal, no earlier keys.
        scaling: of the dot products.
        sliding_window: a token sees this many keys, itself included; None: all.

    Returns:
        [batch, tokens, query heads, head size], and None for the weights.
    """
    batch, heads, tokens, size = query.shape
    groups, keys = key.shape[1], key.shape[2]
    earlier = keys - tokens
    if attention_mask is None:
        attention_mask = torch.ones(tokens, keys, dtype=torch.bool, device=query.device).tril(earlier)[None, None]
    # Not -inf: a padding token on the left may see nothing, and its NaN would spread through its keys and values.
    blocked = torch.where(attention_mask, 0.0, torch.finfo(torch.float32).min)
    scale = size**-0.5 if scaling is None else scaling
    parts = []
    for start in range(0, tokens, QUERY_SLICE):
        end = min(start + QUERY_SLICE, tokens)
        first = max(0, earlier + start + 1 - sliding_window) if sliding_window else 0
        seen = slice(first, earlier + end)
        folded = query[:, :, start:end].reshape(batch * groups, -1, size)
        scores = torch.bmm(folded, key[:, :, seen].reshape(batch * groups, -1, size).transpose(1, 2)).float()
        scores = scores.view(batch, heads, end - start, -1).mul_(scale).add_(blocked[:, :, start:end, seen])
        weights = torch.softmax(scores, dim=-1).to(query.dtype).view(batch * groups, folded.shape[1], -1)
        mixed = torch.bmm(weights, value[:, :, seen].reshape(batch * groups, -1, size))
        parts.append(mixed.view(batch, heads, end - start, size))
    return torch.cat(parts, dim=2).transpose(1, 2), None


AttentionInterface.register(CPU_ATTENTION, grouped_attention)
AttentionMaskInterface.register(CPU_ATTENTION, sdpa_mask)
