"""Attention for PyTorch: grouped-query attention for CPUs, and attention over packed sequences.

At Gemma-3's head size of 256, PyTorch's fused CPU kernel is much slower than plain bfloat16 matrix products, and needs
keys and values repeated for every query head. Here the query heads that share keys are folded into the rows of one
product, so nothing is repeated and oneDNN's bfloat16 products do the work.

In a packed sequence the order of tokens is not their distance, so the mask alone says who sees whom: nothing may be
left out by the sliding window's width, and masks for both kinds of layer come with the batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

CPU_ATTENTION = "rsg_cpu"
PACKED_ATTENTION = "rsg_packed"

# Queries taken at a time: a slice needs only the keys that it may see, so long rows do not compute what the causal mask
# and the sliding window throw away, and its scores stay in the cache.
QUERY_SLICE = 256


def share_keys(key: torch.Tensor, before: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Let `grouped_attention` put keys and values that all rows share before a layer's own, without repeating them.

    Args:
        key: [batch, key-value heads, tokens, head size], as the layer's cache returns it; its values belong to it.
        before: The shared ones, [1, key-value heads, keys, head size].
    """
    key.before = before  # type: ignore[attr-defined]  # transformers hands the same tensor on to the attention


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute causal scaled dot-product attention with a softmax in float32.

    Args:
        query: [batch, query heads, tokens, head size].
        key, value: [batch, key-value heads, keys, head size], where the size of values may differ; the last `tokens`
            keys belong to the queries. `share_keys` may have put others before them.
        attention_mask: bool [batch or 1, 1, tokens, keys], True where a token may look; None: causal, no earlier keys.
        scaling: Of the dot products.
        sliding_window: A token sees this many keys, itself included; None: all.
        softcap: Limit of the scores, approached by a tanh (Gemma 2); None: no limit.
        s_aux: [query heads], the score of a place that nobody reads (gpt-oss's sinks); None: there is no such place.

    Returns:
        [batch, tokens, query heads, head size], and None for the weights.
    """
    batch, heads, tokens, size = query.shape
    before = getattr(key, "before", None)
    shared = before[0].shape[2] if before else 0
    keys = shared + key.shape[2]
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
        last = earlier + end
        part = query[:, :, start:end]
        # The keys that the slice sees: some that all rows share, and each row's own.
        pieces = [(key, value, slice(max(0, first - shared), last - shared))]
        if before and first < shared:
            pieces.insert(0, (*before, slice(first, shared)))
        scores = torch.empty(batch, heads, end - start, last - first, device=query.device)
        place = 0
        for some_keys, _, seen in pieces:
            width = seen.stop - seen.start
            scores[..., place : place + width] = _products(part, some_keys[:, :, seen].transpose(2, 3))
            place += width
        scores.mul_(scale)
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        scores = scores.add_(blocked[:, :, start:end, first:last])
        if s_aux is not None:
            sinks = s_aux.float().view(1, heads, 1, 1).expand(batch, -1, end - start, 1)
            weights = torch.softmax(torch.cat([scores, sinks], dim=-1), dim=-1)[..., :-1]
        else:
            weights = torch.softmax(scores, dim=-1)
        weights = weights.to(query.dtype)
        place = 0
        mixed: torch.Tensor | None = None
        for _, some_values, seen in pieces:
            width = seen.stop - seen.start
            more = _products(weights[..., place : place + width], some_values[:, :, seen])
            mixed = more if mixed is None else mixed + more
            place += width
        assert mixed is not None
        parts.append(mixed)
    return torch.cat(parts, dim=2).transpose(1, 2), None


def _products(rows: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Multiply the rows of each query head by the matrix of its key-value head.

    Args:
        rows: [batch, query heads, tokens, n].
        matrices: [batch or 1, key-value heads, n, m]; with 1, the rows of the whole batch go into one product.

    Returns:
        [batch, query heads, tokens, m].
    """
    batch, heads, tokens, n = rows.shape
    count, groups, _, m = matrices.shape
    if count == batch:
        found = torch.bmm(rows.reshape(batch * groups, -1, n), matrices.reshape(batch * groups, n, m))
        return found.view(batch, heads, tokens, m)
    by_group = rows.reshape(batch, groups, -1, n).transpose(0, 1).reshape(groups, -1, n)
    found = torch.bmm(by_group, matrices[0])
    return found.view(groups, batch, -1, m).transpose(0, 1).reshape(batch, heads, tokens, m)


def packed_attention(
    module: torch.nn.Module, query: torch.Tensor, *rest: Any, sliding_window: int | None = None, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """Compute `grouped_attention` with the window in the mask; on a GPU, PyTorch's own attention."""
    attend = grouped_attention if query.device.type == "cpu" else sdpa_attention_forward
    return attend(module, query, *rest, **kwargs)


@contextlib.contextmanager
def library_attention(config: Any) -> Iterator[None]:
    """Let a model compute with transformers' own plain attention for a while, to be compared with."""
    ours = config._attn_implementation
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = ours


# On Hopper and newer GPUs PyTorch prefers cuDNN's attention, which makes a plan for every new shape, and hardly two
# batches here have the same one: a training step on an H200 spent seconds on plans.
torch.backends.cuda.enable_cudnn_sdp(False)

for name, attention in ((CPU_ATTENTION, grouped_attention), (PACKED_ATTENTION, packed_attention)):
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, sdpa_mask)
