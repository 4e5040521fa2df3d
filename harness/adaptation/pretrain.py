"""Continue the pre-training of a model with new tokens for some steps: only their rows first, then LoRA too.

The rows of old tokens stay as they are; LoRA is merged into the layers at the end. Texts are packed: they are
concatenated, each after a BOS, and cut into sequences of one length.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from adapters.architecture import Logits, read_architecture
from adapters.text import load_tokenizer
from adapters.torch_backend import load_weights, pick_device, pick_dtype
from adapters.torch_vocabulary import apply_rule
from harness.adaptation.options import Pretraining
from harness.errors import UserError
from harness.progress import Bar
from harness.quiet import quiet_libraries
from harness.training.frozen_norm import replace_frozen_norms
from harness.training.model import add_lora
from harness.training.recipe import LoraRecipe
from harness.training.split import decoder_layers
from harness.training.state import load_state, save_state

# Positions projected to the vocabulary at a time; the backward pass computes their logits again.
_POSITIONS = 256
_SAVE_EVERY = 25
# Adam's epsilon for rows. A row whose token has not occurred in a batch gets small gradients from the softmax alone.
# Adam would turn each into a full step and drive the row away. This epsilon is about a tenth of the gradient of a token
# that occurs and keeps those steps small. Without those gradients, new tokens take too much of the probability: 25%
# where they are 9% of the text.
_ROW_EPSILON = 1e-3
_WARMUP_SHARE = 0.1


def pack_texts(encoded: Sequence[Sequence[int]], length: int) -> np.ndarray:
    """Return token ids of texts, each with its BOS, as int64 [rows, length]; the tokens after the last row are dropped.

    Raises:
        UserError: The texts do not fill one row.
    """
    flat = np.array([token for tokens in encoded for token in tokens], dtype=np.int64)
    rows = len(flat) // length
    if not rows:
        raise UserError(f"the corpus has {len(flat)} tokens, fewer than one sequence of {length}", "give more text")
    return flat[: rows * length].reshape(rows, length)


def pretrain(model_dir: Path, first_new: int, texts: Sequence[str], plan: Pretraining, work: Path) -> None:
    """Train the model in `model_dir` and write the result there.

    Args:
        model_dir: From `write_model`.
        first_new: Id of the first new token.
        texts: The texts to learn from.
        plan: Steps and rates.
        work: The directory of states to resume from.

    Raises:
        UserError: There is too little text, the loss is not finite, or the disk is full.
    """
    tokenizer = load_tokenizer(model_dir)
    order = list(texts)
    random.Random(plan.seed).shuffle(order)
    rows = pack_texts(tokenizer(order).input_ids, plan.sequence_tokens)
    device = torch.device(pick_device("auto"))
    dtype = pick_dtype("auto", device.type)
    torch.manual_seed(plan.seed)
    with quiet_libraries():
        architecture = read_architecture(model_dir)
        model = load_weights(model_dir, architecture, dtype).requires_grad_(False)
        trained = Rows(model.to(device), architecture.logits, first_new, dtype)
        _, layers = decoder_layers(model.get_decoder())
        wrapper = add_lora(model, LoraRecipe(), range(len(layers)), dtype) if plan.lora_steps else None
    lora = {name: part for name, part in wrapper.named_parameters() if "lora_" in name} if wrapper else {}
    state = {"rows": trained.rows, **lora}
    replace_frozen_norms(layers)
    optimiser = torch.optim.AdamW(
        [
            {"params": [trained.rows], "peak": plan.row_learning_rate, "eps": _ROW_EPSILON},
            {"params": list(lora.values()), "peak": plan.lora_learning_rate},
        ],
        lr=plan.row_learning_rate,
        weight_decay=0.0,
    )
    done = load_state(work, state, optimiser)
    started = time.monotonic() - done.seconds
    per_step = max(1, plan.batch_tokens // plan.sequence_tokens)
    with Bar("training", plan.steps, "step", done=done.step) as bar:
        while done.step < plan.steps:
            batch = rows[np.arange(done.step * per_step, (done.step + 1) * per_step) % len(rows)]
            if wrapper is not None:
                (wrapper.enable_adapter_layers if done.step >= plan.row_steps else wrapper.disable_adapter_layers)()
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * _rate_share(done.step, plan)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not torch.float32):
                loss = trained.loss(torch.from_numpy(batch).to(device))
            if not torch.isfinite(loss):
                hint = "train for fewer steps, or report it"
                raise UserError(f"the loss is {loss.item()} at step {done.step + 1}", hint)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(
                [parameter for parameter in state.values() if parameter.requires_grad], plan.max_gradient_norm
            )
            optimiser.step()
            done.step += 1
            done.seconds = time.monotonic() - started
            bar.advance(1, f"loss {loss.item():.3f}")
            if done.step % _SAVE_EVERY == 0 or done.step == plan.steps:
                save_state(work, done, state, optimiser)
    trained.write(model_dir, wrapper)


def _rate_share(step: int, plan: Pretraining) -> float:
    """Return the share of the peak rate: each of the two phases has a warm-up and a linear decay."""
    start, steps = (0, plan.row_steps) if step < plan.row_steps else (plan.row_steps, plan.lora_steps)
    place = step - start + 1
    warmup = max(1, round(_WARMUP_SHARE * steps))
    return min(place / warmup, (steps - place + 1) / max(1, steps - warmup))


class Rows:
    """The model with its new rows as a separate float32 parameter."""

    def __init__(self, model: Any, rule: Logits, first_new: int, dtype: torch.dtype) -> None:
        self.model = model
        self.rule = rule
        self.first = first_new
        matrix = model.get_input_embeddings().weight.detach()
        self.old = matrix[:first_new]
        self.rows = torch.nn.Parameter(matrix[first_new:].float())
        self.dtype = dtype
        self.scale = float(getattr(model.get_input_embeddings(), "scalar_embed_scale", 1.0))  # Gemma scales its rows

    def loss(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the mean cross-entropy of the next token, in nats. `tokens`: int64 [rows, length]."""
        is_new = (tokens >= self.first).unsqueeze(-1)
        old = functional.embedding(tokens.clamp(max=self.first - 1), self.old)
        new = functional.embedding((tokens - self.first).clamp(min=0), self.rows).to(self.dtype)
        embedded = torch.where(is_new, new, old) * torch.tensor(self.scale, dtype=self.dtype)
        states = self.model.get_decoder()(inputs_embeds=embedded, use_cache=False).last_hidden_state
        states, wanted = states[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
        losses = [
            checkpoint(self._loss_sum, some, targets, self.rows, use_reentrant=False)
            for some, targets in zip(states.split(_POSITIONS), wanted.split(_POSITIONS), strict=True)
        ]
        return torch.stack(losses).sum() / len(wanted)

    def _loss_sum(self, states: torch.Tensor, wanted: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        logits = torch.cat(
            [functional.linear(states, self.old), functional.linear(states, rows.to(self.dtype))], dim=-1
        )
        return functional.cross_entropy(apply_rule(logits.float(), self.rule), wanted, reduction="sum")

    @torch.no_grad()
    def write(self, model_dir: Path, wrapper: Any) -> None:
        """Write the trained model over the one that was read, in the same stored type.

        Args:
            model_dir: The model's directory.
            wrapper: peft's, whose LoRA is merged into the layers; or None.
        """
        stored = read_architecture(model_dir).config.dtype
        with quiet_libraries():
            model = self.model.float()
            model.get_input_embeddings().weight[self.first :] = self.rows
            if wrapper is not None:
                wrapper.enable_adapter_layers()
                model = wrapper.merge_and_unload()
            model.to(stored).save_pretrained(model_dir)
