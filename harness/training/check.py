"""Check a model that is to be trained: packed questions against the library's own forward pass of each alone."""

from __future__ import annotations

import torch

from adapters.base import library_errors
from adapters.torch_backend import plain_logprobs
from harness.errors import UserError
from harness.models.check import CHOICES, CONTEXT, TOLERANCES
from harness.scoring.encoding import TextEncoder, encode_pairs
from harness.scoring.packing import pack
from harness.training.model import MultitaskModel, make_inputs

# More than any text of the check has tokens.
_CONTEXT_LENGTH = 1 << 10


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
    sequences = encode_pairs(encoder, [(CONTEXT, choice) for choice in CHOICES], _CONTEXT_LENGTH)
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
