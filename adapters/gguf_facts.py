"""What reading and writing GGUF files share: how llama.cpp names things, and what it stores for them."""

from __future__ import annotations

import numpy as np

from adapters.text import CUTTING_PATTERN

# How a byte-level tokenizer cuts a text before it joins bytes, by llama.cpp's name for it (src/llama-vocab.cpp): the
# regular expression, None for GPT-2's own. Of names for the same expression the first is the one that is written.
CUTS: dict[str, str | None] = {
    **dict.fromkeys(("gpt-2", "mpt", "olmo", "jais"), None),
    **dict.fromkeys(
        ("llama-bpe", "llama-v3", "llama3", "falcon3", "smaug-bpe", "dbrx"), CUTTING_PATTERN % r"\p{N}{1,3}"
    ),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), CUTTING_PATTERN % r"\p{N}"),
}
# Each digit alone, then GPT-2's expression.
SINGLE_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell")
# With these a piece that is a token is taken whole, whatever its merges say, and BOS stands in front by default.
IGNORE_MERGES = ("llama-bpe", "llama-v3", "llama3", "falcon3")
# The name for Llama 3's expression where pieces are joined by the merges alone.
JOINED_LLAMA3 = "smaug-bpe"
# The tensor that holds Llama 3's scaling of positions.
FREQUENCIES = "rope_freqs.weight"


def llama3_factors(size: int, theta: float, factor: float, low: float, high: float, length: int) -> np.ndarray:
    """Return by what Llama 3's scaling of positions divides each frequency, which GGUF stores.

    Args:
        size: Values of a head that are rotated.
        theta: `rope_theta`.
        factor, low, high: `factor`, `low_freq_factor`, `high_freq_factor`.
        length: `original_max_position_embeddings`, in tokens.

    Returns:
        float64 [size / 2].
    """
    wavelengths = 2 * np.pi * theta ** (np.arange(0, size, 2) / size)
    smooth = (length / wavelengths - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    return np.where(wavelengths > length / low, factor, np.where(wavelengths < length / high, 1.0, between))
