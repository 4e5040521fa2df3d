"""Quantise with mlx-lm's learned methods: DWQ (distils scales and biases) and AWQ (scales and clips weights).

Both run mlx_lm.quant's own code on train documents of the benchmark in place of its English texts.
DWQ: https://github.com/ml-explore/mlx-lm/blob/main/mlx_lm/LEARNED_QUANTS.md; AWQ: Lin et al. 2023, arXiv:2306.00978.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers
from mlx import nn
from mlx_lm.quant import awq, dwq
from mlx_lm.utils import load, quantize_model, save

from adapters.base import library_errors
from harness.errors import UserError

# mlx-lm's own settings.
_DWQ_BATCH, _DWQ_RATE, _DWQ_VALIDATION = 4, 1e-6, 32
_AWQ_GRID = 20
_AWQ_LONGEST = 512  # tokens a row, where no window is shorter
_OTHER_METHOD = "use --method plain or sensitivity"
# Approximate cost in forward passes over all tokens. DWQ: the teacher's, and the student's with its backward pass.
# AWQ: for each scale that it tries in three places of a layer, a part of the layer.
_FORWARDS = {"dwq": 4.0, "awq": 1.5 * _AWQ_GRID}
_TIMED_TOKENS = 128
_LONGEST_SECONDS = 3600.0  # longer work without a GPU is refused

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Calibration:
    """Token ids of texts, and the width to learn for them."""

    sequences: Sequence[Sequence[int]]
    bits: int
    group_size: int


def learn(method: str, source: Path, target: Path, calibration: Calibration) -> None:
    """Write a quantised copy of a model directory. mlx-lm's own output goes to stderr.

    Args:
        method: "dwq" or "awq".
        source: An unquantised model as mlx_lm loads it.
        target: The directory to make.
        calibration: What to learn from.

    Raises:
        UserError: There are too few texts, or the work takes hours because there is no GPU.
    """
    loaded: Any = load(str(source), return_config=True)
    model, tokenizer, config = loaded
    model.set_dtype(mx.bfloat16)
    if method == "awq":
        _check_awq(config)
    tokens = sum(map(len, calibration.sequences))
    if not has_gpu():
        seconds = _FORWARDS[method] * tokens * _seconds_a_token(model, calibration.sequences)
        texts = len(calibration.sequences)
        estimate = f"{method} on {texts} texts takes about {_duration(seconds)}: MLX has no GPU here"
        if seconds > _LONGEST_SECONDS:
            raise UserError(estimate, "give fewer --samples, a smaller model, or use Apple Silicon or CUDA")
        log.info("%s", estimate)
    mx.random.seed(0)
    with contextlib.redirect_stdout(sys.stderr):
        if method == "dwq":
            model, config = _learn_dwq(model, config, calibration)
        else:
            config = _learn_awq(model, config, calibration)
    save(target, source, model, tokenizer, config)


def has_gpu() -> bool:
    """Return whether MLX computes on a GPU."""
    return bool(mx.default_device() == mx.gpu)


def _learn_dwq(model: nn.Module, config: dict[str, Any], calibration: Calibration) -> tuple[nn.Module, dict[str, Any]]:
    """Return a quantised model whose scales and biases were trained towards the original's next-token distributions."""
    sequences = [(list(tokens), 0) for tokens in calibration.sequences]
    held_out = min(_DWQ_VALIDATION, len(sequences) // 4)
    if held_out < _DWQ_BATCH:
        raise UserError(f"dwq needs {4 * _DWQ_BATCH} texts or more", "give more --samples")
    every = len(sequences) // held_out  # the texts are grouped by task, so these are of all tasks
    validation = sequences[::every][:held_out]
    train = [sequence for number, sequence in enumerate(sequences) if number % every or number >= every * held_out]
    student, config = quantize_model(copy.deepcopy(model), config, calibration.group_size, calibration.bits)
    with library_errors("mlx-lm's DWQ cannot quantise this model", _OTHER_METHOD):
        dwq.dwq_quantize(
            student,
            lambda batch, number, split: model(batch),
            mlx.optimizers.Adam(learning_rate=_DWQ_RATE, bias_correction=True),
            train,
            validation,
            batch_size=_DWQ_BATCH,
            max_seq_length=1 + max(map(len, calibration.sequences)),
            seed=0,
        )
    return student, config


def _check_awq(config: dict[str, Any]) -> None:
    """Refuse a model whose parts mlx-lm's AWQ does not know."""
    known = sorted(name for name, parts in awq.AWQ_MODEL_CONFIGS.items() if parts.lm_key is None)
    if config["model_type"] not in known:
        raise UserError(
            f"mlx-lm's AWQ takes no {config['model_type']} models", f"{_OTHER_METHOD}; it takes {', '.join(known)}"
        )


def _learn_awq(model: nn.Module, config: dict[str, Any], calibration: Calibration) -> dict[str, Any]:
    """Scale, clip and quantise the model in place; return its configuration."""
    inputs = _rows(calibration.sequences, getattr(model.args, "sliding_window", None) or _AWQ_LONGEST)
    scales_embeddings = config["model_type"].startswith("gemma")
    if scales_embeddings:
        model.model.embed_tokens = _ScaledEmbedding(model.model.embed_tokens, model.args.hidden_size)
    with library_errors("mlx-lm's AWQ cannot quantise this model", _OTHER_METHOD):
        awq.awq_quantize(
            model,
            inputs,
            awq.AWQ_MODEL_CONFIGS[config["model_type"]],
            group_size=calibration.group_size,
            bits=calibration.bits,
            embed_group_size=calibration.group_size,
            embed_bits=calibration.bits,
            n_grid=_AWQ_GRID,
        )
    if scales_embeddings:
        model.model.embed_tokens = model.model.embed_tokens.inner
    config = awq.update_config(model, config)
    # mlx-lm leaves these at 4 and 64, whatever the matrices have.
    config["quantization"] |= {"bits": calibration.bits, "group_size": calibration.group_size}
    return config


class _ScaledEmbedding(nn.Module):
    """Gemma's embeddings times √width, as its first layer gets them; mlx-lm's AWQ leaves the factor out."""

    def __init__(self, inner: nn.Module, width: int) -> None:
        super().__init__()
        self.inner, self.width = inner, width

    def __call__(self, tokens: mx.array) -> mx.array:
        found = self.inner(tokens)
        return found * mx.array(self.width**0.5, mx.bfloat16).astype(found.dtype)

    def to_quantized(self, **settings: Any) -> _ScaledEmbedding:
        return _ScaledEmbedding(self.inner.to_quantized(**settings), self.width)


def _rows(sequences: Sequence[Sequence[int]], window: int) -> mx.array:
    """Concatenate the texts and cut them into rows of one length, int32 [rows, tokens]: AWQ takes no padding.

    No row is longer than the sliding window, because AWQ's mask ignores the window.
    """
    flat = [token for sequence in sequences for token in sequence]
    width = min(window, len(flat))
    whole = len(flat) // width * width
    return mx.array(flat[:whole], mx.int32).reshape(-1, width)


def _seconds_a_token(model: nn.Module, sequences: Sequence[Sequence[int]]) -> float:
    """Return the time of a forward pass for each token: that of the second pass, since the first reads the weights."""
    row = mx.array([max(sequences, key=len)[:_TIMED_TOKENS]])
    with library_errors("MLX cannot compute this model in bfloat16 here", _OTHER_METHOD):
        mx.eval(model(row))
        started = time.monotonic()
        mx.eval(model(row))
    return (time.monotonic() - started) / row.size


def _duration(seconds: float) -> str:
    hours, minutes = divmod(max(1, round(seconds / 60)), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
