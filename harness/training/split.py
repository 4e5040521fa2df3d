"""A decoder in two parts, below and above a layer, for any of transformers' models.

A part is the decoder itself with some of its layers passing on what they are given, so embeddings, masks, positions and
the final norm stay the library's own. Models whose layers need more from below than hidden states (keys and values that
layers share, say) cannot be split so; the check of a model to be trained finds that out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn


def decoder_layers(decoder: Any) -> tuple[str, nn.ModuleList]:
    """Return the layers of a decoder, and the name under which it holds them ("layers", "h")."""
    for name, child in decoder.named_children():
        if isinstance(child, nn.ModuleList) and len(child) == decoder.config.num_hidden_layers:
            return name, child
    raise TypeError(f"{type(decoder).__name__} holds no list of layers")


class SplitDecoder:
    """The lowest layers of a decoder, and the rest.

    Args:
        decoder: Whose modules both parts share.
        frozen: Number of layers in the lower part.
    """

    def __init__(self, decoder: Any, frozen: int) -> None:
        name, layers = decoder_layers(decoder)
        self._frozen, self._total = frozen, len(layers)
        self._in_tuples = _returns_tuple(decoder, layers[0])
        self._border: torch.Tensor | None = None  # hidden states between the two parts
        below = [self._replaced(layer, self._pass_on) for layer in layers[:frozen]]
        above = [self._replaced(layer, self._pass_on) for layer in layers[frozen:]]
        if below and above:
            below[0] = self._replaced(layers[0], self._give)
            above[0] = self._replaced(layers[frozen], self._keep)
        self._lower = _with_layers(decoder, name, [*layers[:frozen], *above])
        self._upper = _with_layers(decoder, name, [*below, *layers[frozen:]])

    @torch.no_grad()
    def lower(self, inputs: dict[str, Any]) -> torch.Tensor | None:
        """Return the hidden states after the lower part, [rows, longest, hidden size]; None where it has no layers.

        Args:
            inputs: The decoder's arguments.
        """
        if not self._frozen:
            return None
        output = self._lower(**inputs).last_hidden_state
        return output if self._frozen == self._total else self._border

    def upper(self, inputs: dict[str, Any], states: torch.Tensor | None) -> torch.Tensor:
        """Return the last hidden states, [rows, longest, hidden size].

        Args:
            inputs: The decoder's arguments.
            states: From `lower`.
        """
        if states is not None and self._frozen == self._total:
            return states
        self._border = states
        return self._upper(**inputs).last_hidden_state

    def _pass_on(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return (hidden_states, None) if self._in_tuples else hidden_states

    def _keep(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self._border = hidden_states
        return self._pass_on(hidden_states)

    def _give(self, *args: Any, **kwargs: Any) -> Any:
        assert self._border is not None
        return self._pass_on(self._border)

    def _replaced(self, layer: nn.Module, forward: Callable[..., Any]) -> nn.Module:
        """Return a copy of a layer that computes `forward`; the decoder may read its other attributes."""
        replaced = copy.copy(layer)
        replaced.forward = forward
        return replaced


def _with_layers(decoder: Any, name: str, layers: Sequence[nn.Module]) -> Any:
    part = copy.copy(decoder)
    part._modules = {**decoder._modules, name: nn.ModuleList(layers)}
    return part


@torch.no_grad()
def _returns_tuple(decoder: Any, layer: nn.Module) -> bool:
    found: list[bool] = []
    hook = layer.register_forward_hook(lambda module, args, output: found.append(isinstance(output, tuple)))
    token = torch.zeros(1, 1, dtype=torch.long, device=decoder.device)
    with torch.autocast(decoder.device.type, torch.bfloat16):  # weights may be of several types
        decoder(input_ids=token, use_cache=False)
    hook.remove()
    return found[0]
