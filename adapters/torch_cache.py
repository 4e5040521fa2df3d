"""Keys and values of growing texts: computed once, laid side by side for a batch, kept for texts that begin alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

# Tokens for which a batch has room at first; after that its buffers grow by half.
FIRST_ROOM = 128


@dataclass(frozen=True)
class Computed:
    """Tokens and, for each layer, their keys and values [1, key-value heads, tokens, head size].

    A layer is None if it reads another one's (Gemma 3n). Layers with a sliding window keep all tokens as well, so any
    beginning of the text can be taken; the attention mask leaves out what lies before the window.
    """

    tokens: tuple[int, ...]
    layers: tuple[tuple[torch.Tensor, torch.Tensor] | None, ...]

    def beginning(self, length: int) -> Computed:
        """Return the first tokens. The memory is shared."""
        layers = [layer and (layer[0][:, :, :length], layer[1][:, :, :length]) for layer in self.layers]
        return Computed(self.tokens[:length], tuple(layers))

    def copied(self, dtype: torch.dtype) -> Computed:
        """Return a copy in memory of its own."""
        layers = [layer and (_copy(layer[0], dtype), _copy(layer[1], dtype)) for layer in self.layers]
        return Computed(self.tokens, tuple(layers))


def _copy(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)


def extend(decoder: Any, start: Computed, rows: Sequence[Sequence[int]]) -> tuple[list[Computed], torch.Tensor]:
    """Compute rows of tokens, each after the same start.

    Args:
        decoder: transformers' decoder.
        start: What stands before every row; may be empty.
        rows: Token ids; no row is empty. Shorter ones are padded on the right, where the causal mask hides it.

    Returns:
        Start and row together for each row, and the hidden state after each row's last token [rows, hidden size].
    """
    cache = DynamicCache(config=decoder.config)
    layers: list[Any] = [DynamicLayer() for _ in cache.layers]
    cache.layers = layers
    for layer, known in zip(cache.layers, start.layers, strict=False):
        if known is not None:
            layer.update(*(part.expand(len(rows), -1, -1, -1) for part in known))
    device = next(decoder.parameters()).device
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
    states = decoder(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state
    last = torch.tensor([len(row) - 1 for row in rows], device=device)
    hidden = states[torch.arange(len(rows), device=device), last]
    computed = []
    for number, row in enumerate(rows):
        tokens = (*start.tokens, *row)
        only, upto = slice(number, number + 1), slice(len(tokens))
        parts = [
            None if layer.keys is None else (layer.keys[only, :, upto], layer.values[only, :, upto]) for layer in layers
        ]
        computed.append(Computed(tokens, tuple(parts)))
    return computed, hidden


class Batch:
    """The cache of texts that grow side by side, a token at a time. They end at the same column, on the right.

    Args:
        decoder: transformers' decoder that computes the tokens.
        texts: What is computed so far.
        dtype: Of the keys and values.
    """

    def __init__(self, decoder: Any, texts: Sequence[Computed], dtype: torch.dtype) -> None:
        width = max(len(text.tokens) for text in texts)
        self._padding = [width - len(text.tokens) for text in texts]
        self._layers = [
            DynamicLayer() if parts[0] is None else GrowingLayer([part for part in parts if part], width, dtype)
            for parts in zip(*(text.layers for text in texts), strict=True)
        ]
        self._width = width
        self.cache = DynamicCache(config=decoder.config)
        self.cache.layers = list(self._layers)

    def positions(self, device: torch.device) -> torch.Tensor:
        """Return the position of the next token of each row, int64 [rows, 1]; [1, 1] where all are the same."""
        padding = torch.tensor(self._padding if any(self._padding) else [0], device=device)
        return self._width - padding[:, None]

    def mask(self, device: torch.device) -> torch.Tensor | None:
        """Return which columns the next token of each row may see, bool [rows, columns]; None: all."""
        if not any(self._padding):
            return None
        columns = torch.arange(self._width + 1, device=device)
        return columns[None] >= torch.tensor(self._padding, device=device)[:, None]

    def grown(self) -> None:
        """Note that every row has got a token."""
        self._width += 1

    def row(self, number: int, tokens: Sequence[int]) -> Computed:
        """Return what is computed of a row, whose tokens are given. The memory is shared."""
        first = self._padding[number]
        parts = [
            layer.row(number, first, self._width) if isinstance(layer, GrowingLayer) else None for layer in self._layers
        ]
        return Computed(tuple(tokens[: self._width - first]), tuple(parts))

    def drop(self, number: int) -> None:
        """Remove a row; the last row takes its number."""
        self._padding[number] = self._padding[-1]
        self._padding.pop()
        for layer in self._layers:
            if isinstance(layer, GrowingLayer):
                layer.drop(number)


class GrowingLayer(DynamicLayer):
    """Keys and values of one layer for some rows, in buffers with room, so that a token does not copy the others.

    Args:
        rows: Keys and values of each row, [1, key-value heads, tokens, head size].
        width: The columns that they fill, aligned on the right.
        dtype: Of the buffers.
    """

    def __init__(self, rows: Sequence[tuple[torch.Tensor, torch.Tensor]], width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self._buffers = [self._filled([row[part] for row in rows], width, dtype) for part in (0, 1)]
        self._rows, self._width = len(rows), width
        self.dtype, self.device = dtype, rows[0][0].device
        self.is_initialized = True
        self._show()

    @staticmethod
    def _filled(rows: Sequence[torch.Tensor], width: int, dtype: torch.dtype) -> torch.Tensor:
        _, heads, _, size = rows[0].shape
        buffer = torch.zeros(len(rows), heads, width + FIRST_ROOM, size, dtype=dtype, device=rows[0].device)
        for target, row in zip(buffer, rows, strict=True):
            target[:, width - row.shape[2] : width] = row[0]
        return buffer

    def _show(self) -> None:
        self.keys, self.values = (buffer[: self._rows, :, : self._width] for buffer in self._buffers)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append a token's keys and values; return those of all tokens."""
        if self._width == self._buffers[0].shape[2]:
            more = self._width // 2 + 1
            self._buffers = [torch.nn.functional.pad(buffer, (0, 0, 0, more)) for buffer in self._buffers]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[: self._rows, :, self._width] = states[:, :, 0]
        self._width += 1
        self._show()
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Return the number of columns, padding included."""
        return self._width

    def row(self, number: int, first: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a row's keys and values from column `first` to `end`."""
        keys, values = (buffer[number : number + 1, :, first:end] for buffer in self._buffers)
        return keys, values

    def drop(self, number: int) -> None:
        """Remove a row; the last row takes its place."""
        self._rows -= 1
        if number < self._rows:
            for buffer in self._buffers:
                buffer[number] = buffer[self._rows]
        self._show()
