"""Quantisation that mlx-lm learns from texts: DWQ (scales and biases distilled) and AWQ (weights scaled and clipped).

Both are mlx_lm.quant's own code, given train documents of the benchmark in place of its English texts.
DWQ: https://github.com/ml-explore/mlx-lm/blob/main/mlx_lm/LEARNED_QUANTS.md; AWQ: Lin et al. 2023, arXiv:2306.00978.
"""

from __future__ import annotations

import contextlib
import copy
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers
from mlx import nn
from mlx_lm.quant import awq, dwq
from mlx_lm.utils import load, quantize_model, save

from harness.errors import UserError

# mlx-lm's own settings.
_DWQ_BATCH, _DWQ_RATE, _DWQ_VALIDATION = 4, 1e-6, 32
_AWQ_GRID = 20
# Forward passes over all tokens that a method costs about. DWQ: the teacher's, and the student's with its backward one.
# AWQ: each of the scales that it tries in three places of a layer reruns a part of it.
_FORWARDS = {"dwq": 4.0, "awq": 1.5 * _AWQ_GRID}
_TIMED_TOKENS = 128
_PATIENCE = 3600.0


@dataclass(frozen=True)
class Calibration:
    """Token ids of texts, and how many bits to learn for them."""

    sequences: Sequence[Sequence[int]]
    bits: int
    group_size: int


def learn(
    method: str, source: Path, target: Path, calibration: Calibration, say: Callable[[str], None] = lambda text: None
) -> None:
    """Writes a quantised copy of a model directory.

    Args:
        method: "dwq" or "awq".
        source: an unquantised model as mlx_lm loads it.
        target: the directory to make.
        calibration: what to learn from.
        say: told how long it will take, where MLX has no GPU. mlx-lm's own lines go to stderr.

    Raises:
        UserError: too few texts, or hours of work for want of a GPU.
    """
    loaded: Any = load(str(source), return_config=True)
    model, tokenizer, config = loaded
    model.set_dtype(mx.bfloat16)
    tokens = sum(map(len, calibration.sequences))
    if not has_gpu():
        seconds = _FORWARDS[method] * tokens * _seconds_a_token(model, calibration.sequences)
        texts = len(calibration.sequences)
        estimate = f"{method} on {texts} texts takes about {_duration(seconds)}: MLX has no GPU here"
        if seconds > _PATIENCE:
            raise UserError(estimate, "give fewer --samples, a smaller model, or do it on Apple Silicon or CUDA")
        say(estimate)
    mx.random.seed(0)
    with contextlib.redirect_stdout(sys.stderr):
        if method == "dwq":
            model, config = _learn_dwq(model, config, calibration)
        else:
            config = _learn_awq(model, config, calibration)
    save(target, source, model, tokenizer, config)


def has_gpu() -> bool:
    """Whether MLX computes on one."""
    return bool(mx.default_device() == mx.gpu)


def _learn_dwq(model: nn.Module, config: dict[str, Any], calibration: Calibration) -> tuple[nn.Module, dict[str, Any]]:
    """A quantised model whose scales and biases were trained to give the next-token distributions of the whole one."""
    sequences = [(list(tokens), 0) for tokens in calibration.sequences]
    held_out = min(_DWQ_VALIDATION, len(sequences) // 4)
    if held_out < _DWQ_BATCH:
        raise UserError(f"dwq needs {4 * _DWQ_BATCH} texts or more", "give more --samples")
    every = len(sequences) // held_out  # texts of all tasks, which stand one task after the other
    validation = sequences[::every][:held_out]
    train = [sequence for number, sequence in enumerate(sequences) if number % every or number >= every * held_out]
    student, config = quantize_model(copy.deepcopy(model), config, calibration.group_size, calibration.bits)
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


def _learn_awq(model: nn.Module, config: dict[str, Any], calibration: Calibration) -> dict[str, Any]:
    """Scales, clips and quantises the model in place. Gives its configuration."""
    inputs = _rows(calibration.sequences, model.args.sliding_window)
    embedding = _ScaledEmbedding(model.model.embed_tokens, model.args.hidden_size)
    model.model.embed_tokens = embedding
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
    model.model.embed_tokens = model.model.embed_tokens.inner
    config = awq.update_config(model, config)
    # Which mlx-lm leaves at 4 and 64, whatever the matrices have.
    config["quantization"] |= {"bits": calibration.bits, "group_size": calibration.group_size}
    return config


class _ScaledEmbedding(nn.Module):
    """Gemma's embeddings as its first layer gets them, times √width, which mlx-lm's AWQ forgets."""

    def __init__(self, inner: nn.Module, width: int) -> None:
        super().__init__()
        self.inner, self.width = inner, width

    def __call__(self, tokens: mx.array) -> mx.array:
        found = self.inner(tokens)
        return found * mx.array(self.width**0.5, mx.bfloat16).astype(found.dtype)

    def to_quantized(self, **settings: Any) -> _ScaledEmbedding:
        return _ScaledEmbedding(self.inner.to_quantized(**settings), self.width)


def _rows(sequences: Sequence[Sequence[int]], window: int) -> mx.array:
    """The texts one after the other, cut into rows of one length, int32 [rows, tokens]: AWQ takes no padding.

    No row is longer than the sliding window, which AWQ's mask does not know.
    """
    flat = [token for sequence in sequences for token in sequence]
    width = min(window, len(flat))
    whole = len(flat) // width * width
    return mx.array(flat[:whole], mx.int32).reshape(-1, width)


def _seconds_a_token(model: nn.Module, sequences: Sequence[Sequence[int]]) -> float:
    """Of a forward pass, measured: the second of two, since the first reads the weights."""
    row = mx.array([max(sequences, key=len)[:_TIMED_TOKENS]])
    mx.eval(model(row))
    started = time.monotonic()
    mx.eval(model(row))
    return (time.monotonic() - started) / row.size


def _duration(seconds: float) -> str:
    hours, minutes = divmod(max(1, round(seconds / 60)), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
