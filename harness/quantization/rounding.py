"""Round matrices of a loaded PyTorch model to the values that MLX would store, for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch

from adapters.mlx_weights import VALUES_PER_BLOCK


def matrix_sizes(model: torch.nn.Module) -> dict[str, int]:
    """Return the number of weights of every matrix that MLX would quantise, by its name without `.weight`."""
    return {
        name: module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, torch.nn.Embedding)) and name != "lm_head"  # tied to the embeddings
    }


@contextlib.contextmanager
def rounded(model: torch.nn.Module, names: Iterable[str], bits: int, group_size: int) -> Iterator[None]:
    """Inside the block, let these matrices hold what MLX would store in `bits` bits (mode affine)."""
    weights = [model.get_parameter(f"{name}.weight") for name in names]
    before = [weight.detach().clone() for weight in weights]
    try:
        for weight in weights:
            weight.data.copy_(round_matrix(weight.detach().cpu(), bits, group_size))
        yield
    finally:
        for weight, kept in zip(weights, before, strict=True):
            weight.data.copy_(kept)


def round_matrix(weight: torch.Tensor, bits: int, group_size: int) -> torch.Tensor:
    """Return a matrix [rows, columns] as MLX stores it (mode affine, bfloat16 scales), in float32."""
    import mlx.core as mx
    import numpy as np

    result = torch.empty(weight.shape, dtype=torch.float32)
    rows = max(1, VALUES_PER_BLOCK // weight.shape[1])
    for start in range(0, len(weight), rows):
        block = mx.array(weight[start : start + rows].float().numpy()).astype(mx.bfloat16)
        packed, scales, biases = mx.quantize(block, group_size=group_size, bits=bits)
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
        values = mx.dequantize(packed, scales, biases, group_size=group_size, bits=bits)
        result[start : start + rows] = torch.from_numpy(np.array(values))
    return result
