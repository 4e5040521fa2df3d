"""Check a model that is to be trained.

Packed questions are compared with the library's own forward pass of each alone, and compiled layers with plain ones.
"""

from __future__ import annotations

import torch

from adapters.base import library_errors
from adapters.torch_backend import plain_logprobs
from harness.errors import UserError
from harness.models.check import CHOICES, CONTEXT, TOLERANCES
from harness.scoring.encoding import ScoredSequence, TextEncoder, encode_pairs
from harness.scoring.packing import pack
from harness.training.model import MultitaskModel, make_inputs, trained_layers

# More than any text of the check has tokens.
_CONTEXT_LENGTH = 1 << 10
# By how much compiled gradients may differ, as a share of their length. PyTorch 2.13 makes Falcon's wrong by about 1.
GRADIENT_TOLERANCES = {"float32": 1e-3, "bfloat16": 0.2}


@torch.no_grad()
def check_packing(model: MultitaskModel, encoder: TextEncoder, dtype: torch.dtype) -> None:
    """Compare log-probabilities of two choices, packed and with the frozen layers apart, with plain ones.

    Args:
        model: At its start.
        encoder: Of its tokenizer.
        dtype: Of the computation.

    Raises:
        UserError: They differ by more than rounding, so that the model would learn from other texts than it is given.
    """
    model.eval()
    device = model.head_weight.device
    sequences = _sequences(encoder)
    inputs = make_inputs([pack(sequences)], model.windows, device)
    with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
        with library_errors("this model cannot be trained on packed questions", "please report the model's name"):
            states = model.read_states(inputs, model.lower(inputs))
        packed = model.log_probabilities(states, inputs)
        plain = torch.cat(
            [plain_logprobs(model.language_model, one.tokens)[one.continuation_start - 1 :] for one in sequences]
        )
    difference = float((packed - plain).abs().max())
    if not difference <= TOLERANCES[str(dtype).removeprefix("torch.")]:  # NaN is refused too
        raise UserError(
            f"this model cannot be trained here: packed questions differ by {difference:.4f} nats a token from the "
            "library's own forward pass",
            "set frozen_layers to 0 in the recipe; if that does not help, please report the model's name",
        )


def compile_and_check(model: MultitaskModel, encoder: TextEncoder, dtype: torch.dtype) -> None:
    """Compile the layers that are trained, and compare their gradients with those of the plain layers.

    Args:
        model: At its start.
        encoder: Of its tokenizer.
        dtype: Of the computation.

    Raises:
        UserError: They differ by more than rounding.
    """
    model.eval()
    expected = _gradients(model, encoder, dtype)
    model.compile_layers()
    with library_errors("torch.compile cannot compile this model", "set compile: false in the recipe"):
        found = _gradients(model, encoder, dtype)
    difference = float((found - expected).norm() / expected.norm().clamp_min(torch.finfo(torch.float32).tiny))
    if not difference <= GRADIENT_TOLERANCES[str(dtype).removeprefix("torch.")]:  # NaN is refused too
        raise UserError(
            f"torch.compile changes the gradients of this model by {100 * difference:.0f}%",
            "set compile: false in the recipe",
        )


def _gradients(model: MultitaskModel, encoder: TextEncoder, dtype: torch.dtype) -> torch.Tensor:
    """Return the gradients of the check's log-probabilities, of all trained layers in one vector, float32."""
    device = model.head_weight.device
    # Two rows: a single one would be compiled apart.
    inputs = make_inputs([pack(_sequences(encoder))] * 2, model.windows, device)
    parameters = list(trained_layers(model).values())
    with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
        states = model.read_states(inputs, model.lower(inputs))
        loss = model.log_probabilities(states, inputs).sum()
    gradients = torch.autograd.grad(loss, parameters, materialize_grads=True) if parameters else []
    return torch.cat([torch.zeros(1, device=device), *(gradient.flatten().float() for gradient in gradients)])


def _sequences(encoder: TextEncoder) -> list[ScoredSequence]:
    return encode_pairs(encoder, [(CONTEXT, choice) for choice in CHOICES], _CONTEXT_LENGTH)
