"""The multitask model: one Gemma-3 text model, its lower layers frozen, and a row of head weights for each answer.

The lower part (embeddings and frozen layers) and the upper part (the rest) run separately, so that the output of the
lower part can be kept from one epoch to the next.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from adapters.torch_attention import PACKED_ATTENTION
from harness.errors import UserError
from harness.models.heads import HeadLayout
from harness.quiet import quiet_libraries
from harness.scoring.packing import PackedBatch, PackedSequence, stack
from harness.training.frozen_norm import replace_frozen_norms
from harness.training.recipe import LoraRecipe, Recipe

# Positions projected to the whole vocabulary at a time: 128 rows of 262,144 logits are 128 MB in float32.
POSITION_CHUNK = 128
# Least standard deviation by which a hidden state is divided: values that hardly differ between documents stay small.
SMALLEST_SCALE = 0.05


@dataclass(frozen=True)
class Inputs:
    """A batch on the device.

    Attributes:
        tokens, positions: int64 [rows, longest].
        masks: layer type -> bool [rows, 1, longest, longest].
        reads: Places in the flattened batch whose hidden states are read, int64 [reads].
        sources: Index of each prediction into `reads`, int64 [predictions].
        predicted: Token or head row, int64 [predictions].
        choices: The choice that each prediction is a part of, counted over the batch, int64 [predictions].
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    masks: dict[str, torch.Tensor]
    reads: torch.Tensor
    sources: torch.Tensor
    predicted: torch.Tensor
    choices: torch.Tensor


def make_inputs(packed: Sequence[PackedSequence], window: int, device: torch.device) -> Inputs:
    """Stack packed sequences into a batch.

    Args:
        packed: One or more sequences.
        window: The model's sliding window, in tokens.
        device: Where the batch goes.
    """
    batch: PackedBatch = stack(packed)
    width = batch.tokens.shape[1]
    places = np.concatenate([row * width + one.predictions[:, 0] for row, one in enumerate(packed)])
    first_choice = np.cumsum([0, *(one.sequences for one in packed)])
    choices = np.concatenate([first + one.predictions[:, 2] for first, one in zip(first_choice, packed, strict=False)])
    reads, sources = np.unique(places, return_inverse=True)

    def on_device(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(device)

    return Inputs(
        tokens=on_device(batch.tokens),
        positions=on_device(batch.positions),
        masks={
            "full_attention": on_device(batch.mask()),
            "sliding_attention": on_device(batch.mask(window)),
        },
        reads=on_device(reads.astype(np.int64)),
        sources=on_device(sources.astype(np.int64)),
        predicted=on_device(np.concatenate([one.predictions[:, 1] for one in packed]).astype(np.int64)),
        choices=on_device(choices.astype(np.int64)),
    )


class MultitaskModel(nn.Module):
    """A backbone and heads.

    Args:
        language_model: Gemma3ForCausalLM, with or without LoRA layers.
        frozen: Number of the lowest layers that never change; nor do the embeddings.
        layout: Of the heads.
    """

    def __init__(self, language_model: Any, frozen: int, layout: HeadLayout) -> None:
        super().__init__()
        self.language_model = language_model
        self.layout = layout
        text_model = language_model.model
        text_model.config._attn_implementation = PACKED_ATTENTION
        layers = len(text_model.layers)
        # Views of the same modules; in a tuple, so that they are no children of this module and count only once.
        self._parts = (_part(text_model, 0, frozen), _part(text_model, frozen, layers))
        self.window = int(text_model.config.sliding_window)
        # Row 0 of the layout is the constant zero and no parameter.
        rows, width = layout.rows - 1, text_model.config.hidden_size
        self.head_weight = nn.Parameter(torch.zeros(rows, width))
        self.head_bias = nn.Parameter(torch.zeros(rows))
        self.head_start: torch.Tensor
        self.head_center: torch.Tensor
        self.head_scale: torch.Tensor
        self.register_buffer("head_start", torch.zeros(rows, width))
        self.register_buffer("head_center", torch.zeros(rows, width))
        self.register_buffer("head_scale", torch.ones(rows, width))
        # Learned log σ² of each task, used where the recipe weights losses by uncertainty.
        self.log_variances = nn.Parameter(torch.zeros(len(layout.kinds)))

    @torch.no_grad()
    def start_from_verbalizers(self, task: str, verbalizers: Sequence[Sequence[int]]) -> None:
        """Start a head at the vocabulary's rows of its verbalizers, so that training starts from zero-shot answers.

        Once the head is standardised, what all documents have in common no longer favours one answer.

        Args:
            task: With a classification or sigmoid head.
            verbalizers: Token ids of each label's word.
        """
        vocabulary = self.language_model.get_output_embeddings().weight
        rows = [vocabulary[torch.tensor(list(tokens))].float().mean(0) for tokens in verbalizers]
        places = self._places(task)
        if self.layout.kinds[task] == "classification":
            self.head_start[places] = torch.stack(rows).to(self.head_start)
        elif self.layout.kinds[task] == "sigmoid":
            self.head_start[places] = (rows[1] - rows[0]).to(self.head_start)[None]

    @torch.no_grad()
    def standardise(self, task: str, states: torch.Tensor) -> None:
        """Let a head read centred hidden states, and train on scaled ones.

        At the last token of one prompt Gemma-3's states are nearly the same for all documents: a few values of about
        100 that never change, and differences below 1. On plain states, a step of the optimiser moves mostly the sum
        that all documents have in common.

        Args:
            task: Of the head.
            states: What the head reads of some training documents, float32 [n, hidden size].
        """
        places = self._places(task)
        self.head_center[places] = states.mean(0).to(self.head_center)
        self.head_scale[places] = states.std(0).clamp_min(SMALLEST_SCALE).to(self.head_scale)

    def _places(self, task: str) -> list[int]:
        return [row - 1 for row in self.layout.rows_of(task)]

    @torch.no_grad()
    def lower(self, inputs: Inputs) -> torch.Tensor:
        """Return the hidden states after the frozen layers, [rows, longest, hidden size]."""
        return _run(self._parts[0], inputs, inputs_embeds=None)

    def heads(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (weight [rows, hidden size], bias [rows]) over plain hidden states, with the constant row."""
        weight = self.head_start + self.head_weight / self.head_scale
        bias = self.head_bias - (weight * self.head_center).sum(-1)
        return functional.pad(weight, (0, 0, 1, 0)), functional.pad(bias, (1, 0))

    def forward(self, inputs: Inputs, lower: torch.Tensor, task: str) -> torch.Tensor:
        """Return the scores of all choices of a batch of one task, float32 [choices].

        They are sums of log-probabilities for a likelihood head, else scores whose softmax over a question's choices
        gives probabilities.

        Args:
            inputs: From `make_inputs`.
            lower: From the method of this name.
            task: Of the whole batch.
        """
        states = self.read_states(inputs, lower)
        if self.layout.kinds[task] == "likelihood":
            parts = self._log_probabilities(states, inputs)
        else:
            with torch.autocast(states.device.type, enabled=False):
                weight, bias = self.heads()
                parts = (states.float()[inputs.sources] * weight[inputs.predicted]).sum(-1) + bias[inputs.predicted]
        count = int(inputs.choices.max()) + 1
        return torch.zeros(count, device=parts.device).index_add(0, inputs.choices, parts)

    def read_states(self, inputs: Inputs, lower: torch.Tensor) -> torch.Tensor:
        """Return the last hidden states where the batch is read, [reads, hidden size]."""
        return _run(self._parts[1], inputs, inputs_embeds=lower).flatten(0, 1)[inputs.reads]

    def _log_probabilities(self, states: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        """Return the log-probabilities of the predicted tokens; the normalisers are computed in the weights' type."""
        vocabulary = self.language_model.get_output_embeddings().weight
        normalisers = [
            torch.logsumexp(functional.linear(some.to(vocabulary.dtype), vocabulary).float(), dim=-1)
            for some in states.split(POSITION_CHUNK)
        ]
        with torch.autocast(states.device.type, enabled=False):
            logits = (states.float()[inputs.sources] * vocabulary[inputs.predicted].float()).sum(-1)
        return logits - torch.cat(normalisers)[inputs.sources]


def _part(text_model: Any, start: int, end: int) -> Any:
    """Return a text model of the layers `start` to `end` that shares the modules of the whole one."""
    part = copy.copy(text_model)
    part._modules = dict(text_model._modules)
    part.config = copy.copy(text_model.config)
    part.config.layer_types = text_model.config.layer_types[start:end]
    part.config.num_hidden_layers = end - start
    part.layers = nn.ModuleList(list(text_model.layers)[start:end])
    if end < len(text_model.layers):
        part.norm = nn.Identity()
    return part


def _run(part: Any, inputs: Inputs, inputs_embeds: torch.Tensor | None) -> torch.Tensor:
    return part(
        input_ids=inputs.tokens if inputs_embeds is None else None,
        inputs_embeds=inputs_embeds,
        attention_mask=inputs.masks,
        position_ids=inputs.positions,
        use_cache=False,
    ).last_hidden_state


def count_layers(recipe: Recipe, model_dir: Path) -> int:
    """Return the number of the model's layers.

    Raises:
        UserError: The recipe freezes more.
    """
    layers = Gemma3TextConfig.from_pretrained(model_dir).num_hidden_layers
    if recipe.frozen_layers > layers:
        raise UserError(
            f"the recipe freezes {recipe.frozen_layers} layers, and the model has {layers}",
            f"set frozen_layers to {layers - 1} or fewer ({layers}: only the heads are trained)",
        )
    return layers


def build_model(
    recipe: Recipe, model_dir: Path, layout: HeadLayout, device: torch.device, dtype: torch.dtype
) -> tuple[MultitaskModel, Any]:
    """Load the model that a recipe trains, at its start.

    Trained weights are float32, the others of `dtype`.

    Args:
        recipe: What is frozen, and whether LoRA is used.
        model_dir: transformers directory of the base model.
        layout: Of the heads.
        device: Where the model goes.
        dtype: Type of the weights that are not trained.

    Returns:
        The model, and peft's wrapper of the backbone (None without LoRA).

    Raises:
        UserError: The recipe freezes more layers than there are.
    """
    layers = count_layers(recipe, model_dir)
    torch.manual_seed(recipe.seed)
    with quiet_libraries():
        language_model: Any = Gemma3ForCausalLM.from_pretrained(model_dir, dtype=dtype)
        language_model.requires_grad_(False)
        upper = list(range(recipe.frozen_layers, layers))
        wrapper = None
        if upper and recipe.lora is not None:
            wrapper = add_lora(language_model, recipe.lora, upper, dtype)
        elif upper:
            for number in upper:
                language_model.model.layers[number].float().requires_grad_(True)
        replace_frozen_norms(language_model.model.layers[recipe.frozen_layers :])
    return MultitaskModel(language_model, recipe.frozen_layers, layout).to(device), wrapper


def add_lora(language_model: Any, lora: LoraRecipe, layers: Sequence[int], dtype: torch.dtype) -> Any:
    """Put LoRA matrices into these layers, to be trained under autocast to `dtype`; return peft's wrapper."""
    from peft import LoraConfig, get_peft_model

    wrapper = get_peft_model(
        language_model,
        LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=list(lora.targets),
            layers_to_transform=list(layers),
            layers_pattern="layers",
        ),
    )
    for module in language_model.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            # Autocast casts inputs and weights to one type; peft would first cast every input to float32.
            module.cast_input_dtype_enabled = dtype is torch.float32
    return wrapper


def trained_parameters(model: MultitaskModel, recipe: Recipe) -> dict[str, nn.Parameter]:
    """Return the parameters that training changes, by name."""
    found = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if recipe.loss.weights != "uncertainty":
        del found["log_variances"]
    return found
