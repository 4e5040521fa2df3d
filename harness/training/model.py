"""The multitask model: one language model, its lower layers frozen, and a row of head weights for each answer.

The frozen layers and the rest run separately, so that the output of the frozen ones can be kept from one epoch to the
next.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface
from transformers.pytorch_utils import Conv1D

from adapters.architecture import Architecture, model_class, read_architecture
from adapters.base import library_errors
from adapters.torch_attention import PACKED_ATTENTION, packed_attention
from adapters.torch_backend import load_weights, shares_prefixes
from adapters.torch_vocabulary import apply_rule
from harness.errors import UserError, nearest_hint
from harness.models.heads import HeadLayout, pair_scores
from harness.quiet import quiet_libraries
from harness.scoring.packing import PackedBatch, PackedSequence, stack
from harness.training.frozen_norm import replace_frozen_norms
from harness.training.recipe import LoraRecipe, Recipe
from harness.training.split import SplitDecoder, decoder_layers

# Positions projected to the whole vocabulary at a time: 128 rows of 262,144 logits are 128 MB in float32.
POSITION_CHUNK = 128
# A layer is compiled anew for one row or several, with or without gradients, and where nothing below it is trained.
# PyTorch stops compiling after 8.
COMPILED_GRAPHS = 16
# Least standard deviation by which a hidden state is divided: values that hardly differ between documents stay small.
SMALLEST_SCALE = 0.05


@dataclass(frozen=True)
class Inputs:
    """A batch on the device.

    Attributes:
        decoder: The decoder's arguments: tokens and positions int64 [rows, longest], and the mask of each kind of
            layer, bool [rows, 1, longest, longest].
        reads: Places in the flattened batch whose hidden states are read, int64 [reads].
        sources: Index of each prediction into `reads`, int64 [predictions].
        predicted: Token or head row, int64 [predictions].
        choices: The choice that each prediction is a part of, counted over the batch, int64 [predictions].
    """

    decoder: dict[str, Any]
    reads: torch.Tensor
    sources: torch.Tensor
    predicted: torch.Tensor
    choices: torch.Tensor


def make_inputs(packed: Sequence[PackedSequence], windows: Mapping[str, int | None], device: torch.device) -> Inputs:
    """Stack packed sequences into a batch.

    Args:
        packed: One or more sequences.
        windows: As `Architecture.windows`.
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

    masks = {kind: on_device(batch.mask(window)) for kind, window in windows.items()}
    return Inputs(
        decoder={
            "input_ids": on_device(batch.tokens),
            "position_ids": on_device(batch.positions),
            # Models with layers of one kind take no dictionary.
            "attention_mask": masks if len(masks) > 1 else next(iter(masks.values())),
            "use_cache": False,
        },
        reads=on_device(reads.astype(np.int64)),
        sources=on_device(sources.astype(np.int64)),
        predicted=on_device(np.concatenate([one.predictions[:, 1] for one in packed]).astype(np.int64)),
        choices=on_device(choices.astype(np.int64)),
    )


class MultitaskModel(nn.Module):
    """A backbone and heads.

    Args:
        language_model: transformers' causal language model, with or without LoRA layers.
        architecture: Of this model.
        frozen: Number of the lowest layers that never change; nor do the embeddings.
        layout: Of the heads.
        computed_type: Of the computation.
    """

    def __init__(
        self,
        language_model: Any,
        architecture: Architecture,
        frozen: int,
        layout: HeadLayout,
        computed_type: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.language_model = language_model
        self.layout = layout
        self.windows = architecture.windows
        self.computed_type = computed_type
        self._logits = architecture.logits
        self._frozen = frozen
        self._split = SplitDecoder(language_model.get_decoder(), frozen)
        # Row 0 of the layout is the constant zero and no parameter.
        rows, width = layout.rows - 1, architecture.config.hidden_size
        self.head_weight = nn.Parameter(self._first_weights(rows, width))
        self.head_bias = nn.Parameter(torch.zeros(rows))
        self.head_start: torch.Tensor
        self.head_center: torch.Tensor
        self.head_scale: torch.Tensor
        self.register_buffer("head_start", torch.zeros(rows, width))
        self.register_buffer("head_center", torch.zeros(rows, width))
        self.register_buffer("head_scale", torch.ones(rows, width))
        self._continued: set[str] = set()
        # Learned log σ² of each task, used where the recipe weights losses by uncertainty.
        self.log_variances = nn.Parameter(torch.zeros(len(layout.kinds)))

    def compile_layers(self) -> None:
        """Let torch.compile fuse what the trained layers compute between matrix products.

        Attention stays as it is, so that one graph serves sequences of every length.
        """
        torch._dynamo.config.recompile_limit = COMPILED_GRAPHS
        AttentionInterface.register(PACKED_ATTENTION, torch.compiler.disable(packed_attention))
        for layer in self._upper_layers():
            layer.forward = torch.compile(layer.forward, dynamic=True)

    def _first_weights(self, rows: int, width: int) -> torch.Tensor:
        """Return zeros, but random features for pair heads, whose distances could not grow from zero."""
        weights = torch.zeros(rows, width)
        for task, kind in self.layout.kinds.items():
            if kind == "pair":
                features = self._places(task)[1:]
                # On standardised states, two texts are then 1 apart on average.
                weights[features] = torch.randn(len(features), width) / (2 * len(features) * width) ** 0.5
        return weights

    def train(self, mode: bool = True) -> MultitaskModel:
        """Switch to training or back. What is frozen knows no dropout, so that its output can be kept."""
        super().train(mode)
        self.language_model.get_decoder().eval()
        for layer in self._upper_layers():
            layer.train(mode)
        return self

    def _upper_layers(self) -> Iterable[Any]:
        """Return the layers that are trained, in full or by LoRA."""
        return decoder_layers(self.language_model.get_decoder())[1][self._frozen :]

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
    def continue_head(self, task: str, weight: torch.Tensor, bias: torch.Tensor) -> None:
        """Start a head where an earlier training ended; standardising will not change its scores.

        Args:
            task: Of the head.
            weight: Over plain hidden states, [rows, hidden size].
            bias: [rows].
        """
        places = self._places(task)
        self.head_start[places] = weight.to(self.head_start)
        self.head_weight[places] = 0
        self.head_bias[places] = bias.to(self.head_bias)
        self._continued.add(task)

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
        if task in self._continued:
            self.head_bias[places] += (self.head_start[places] * self.head_center[places]).sum(-1)

    def _places(self, task: str) -> list[int]:
        return [row - 1 for row in self.layout.rows_of(task)]

    def lower(self, inputs: Inputs) -> torch.Tensor | None:
        """Return the hidden states after the frozen layers, [rows, longest, hidden size]; None without any."""
        return self._split.lower(inputs.decoder)

    def heads(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (weight [rows, hidden size], bias [rows]) over plain hidden states, with the constant row."""
        weight = self.head_start + self.head_weight / self.head_scale
        bias = self.head_bias - (weight * self.head_center).sum(-1)
        return functional.pad(weight, (0, 0, 1, 0)), functional.pad(bias, (1, 0))

    def forward(self, inputs: Inputs, lower: torch.Tensor | None, task: str) -> torch.Tensor:
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
            parts = self.log_probabilities(states, inputs)
        else:
            with torch.autocast(states.device.type, enabled=False):
                weight, bias = self.heads()
                parts = (states.float()[inputs.sources] * weight[inputs.predicted]).sum(-1) + bias[inputs.predicted]
        count = int(inputs.choices.max()) + 1
        scores = torch.zeros(count, device=parts.device).index_add(0, inputs.choices, parts)
        if self.layout.kinds[task] != "pair":
            return scores
        second = pair_scores(scores.view(-1, 2, len(self.layout.rows_of(task))))
        return torch.stack([torch.zeros_like(second), second], dim=-1).flatten()

    def read_states(self, inputs: Inputs, lower: torch.Tensor | None) -> torch.Tensor:
        """Return the last hidden states where the batch is read, [reads, hidden size]."""
        return self._split.upper(inputs.decoder, lower).flatten(0, 1)[inputs.reads]

    def log_probabilities(self, states: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        """Return the log-probabilities of the predicted tokens, float32 [predictions].

        The normalisers are computed in the weights' type.

        Args:
            states: From `read_states`.
            inputs: The batch.
        """
        head, rule = self.language_model.get_output_embeddings(), self._logits
        normalisers = [
            torch.logsumexp(apply_rule(head(some.to(head.weight.dtype)).float(), rule), dim=-1)
            for some in states.split(POSITION_CHUNK)
        ]
        with torch.autocast(states.device.type, enabled=False):
            logits = (states.float()[inputs.sources] * head.weight[inputs.predicted].float()).sum(-1)
            if head.bias is not None:
                logits = logits + head.bias[inputs.predicted].float()
        return apply_rule(logits, rule) - torch.cat(normalisers)[inputs.sources]


def check_trainable(recipe: Recipe, model_dir: Path) -> Architecture:
    """Return the model's architecture, if the recipe fits it; nothing is loaded or written.

    Raises:
        UserError: It freezes more layers than there are, names projections for LoRA that the model has not, or the
            model's layers cannot read packed questions.
    """
    architecture = read_architecture(model_dir)
    with torch.device("meta"), quiet_libraries():
        language_model = model_class(architecture)(architecture.config)
    decoder = language_model.get_decoder()
    takes_positions = "position_ids" in inspect.signature(decoder.forward).parameters
    if not takes_positions or not shares_prefixes(language_model):
        raise UserError(
            f"{architecture.model_type} cannot be trained here: not all of its layers read questions that are packed "
            "into one row",
            "choose a model of attention with positions, such as Qwen/Qwen3-0.6B",
        )
    _, layers = decoder_layers(decoder)
    if recipe.frozen_layers > len(layers):
        raise UserError(
            f"the recipe freezes {recipe.frozen_layers} layers, and the model has {len(layers)}",
            f"set frozen_layers to {len(layers) - 1} or fewer ({len(layers)}: only the heads are trained)",
        )
    there = _linear_layers(layers)
    for target in (recipe.lora and recipe.lora.targets) or ():
        if target not in there:
            raise UserError(f"lora.targets: the model has no {target!r}", nearest_hint(target, there, "targets"))
    return architecture


def require_compiler(device: torch.device) -> None:
    """Raise UserError if torch.compile cannot make code for this device."""
    with library_errors(
        "compile: true needs a C++ compiler (on a GPU, Triton) that works",
        "install g++ (on macOS: xcode-select --install), name one in CXX, or set compile: false in the recipe",
    ):
        torch.compile(lambda x: x + 1)(torch.zeros(1, device=device))


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
        UserError: The recipe does not fit the model, or the model cannot be trained.
    """
    architecture = check_trainable(recipe, model_dir)
    torch.manual_seed(recipe.seed)
    with quiet_libraries():
        architecture.config._attn_implementation = _attention(architecture)
        language_model = load_weights(model_dir, architecture, dtype)
        language_model.requires_grad_(False)
        _, layers = decoder_layers(language_model.get_decoder())
        upper = range(recipe.frozen_layers, len(layers))
        wrapper = None
        if upper and recipe.lora is not None:
            wrapper = add_lora(language_model, recipe.lora, upper, dtype)
        else:
            for number in upper:
                layers[number].float().requires_grad_(True)
        replace_frozen_norms(layers[recipe.frozen_layers :])
    model = MultitaskModel(language_model, architecture, recipe.frozen_layers, layout, dtype)
    return model.to(device), wrapper


def _attention(architecture: Architecture) -> str:
    """Return the name of an attention that takes masks of packed sequences."""
    return PACKED_ATTENTION if model_class(architecture)._supports_attention_backend else "sdpa"


def add_lora(language_model: Any, lora: LoraRecipe, layers: Sequence[int], dtype: torch.dtype) -> Any:
    """Put LoRA matrices into these layers, to be trained under autocast to `dtype`; return peft's wrapper."""
    from peft import LoraConfig, get_peft_model

    name, modules = decoder_layers(language_model.get_decoder())
    wrapper = get_peft_model(
        language_model,
        LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=list(lora.targets or _linear_layers(modules)),
            layers_to_transform=list(layers),
            layers_pattern=name,
            # GPT-2 stores the transposed matrices.
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in modules.modules()),
        ),
    )
    for module in language_model.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            # Autocast casts inputs and weights to one type; peft would first cast every input to float32.
            module.cast_input_dtype_enabled = dtype is torch.float32
    return wrapper


def _linear_layers(modules: nn.Module) -> list[str]:
    """Return the names of all linear layers within a decoder's layers (q_proj, ...), in their order."""
    linear = (nn.Linear, Conv1D)
    return list(
        dict.fromkeys(name.split(".")[-1] for name, part in modules.named_modules() if isinstance(part, linear))
    )


def trained_layers(model: MultitaskModel) -> dict[str, nn.Parameter]:
    """Return what is trained of the backbone; without LoRA, named as in transformers' causal language model."""
    prefix = "language_model."
    return {
        name.removeprefix(prefix): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and name.startswith(prefix)
    }


def trained_parameters(model: MultitaskModel, recipe: Recipe) -> dict[str, nn.Parameter]:
    """Return the parameters that training changes, by name."""
    found = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if recipe.loss.weights != "uncertainty":
        del found["log_variances"]
    return found
