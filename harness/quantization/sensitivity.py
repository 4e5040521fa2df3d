"""Which matrices of a model bear few bits badly, measured on its own answers.

One part of the model after the other (a layer's attention, a layer's feed-forward, the vocabulary matrix) is rounded as
MLX would store it, and the answers to a few train documents are compared with those of the whole model: the mean
Kullback–Leibler divergence of the choices.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from adapters.torch_backend import TorchBackend
from harness.evaluation.options import Progress
from harness.evaluation.predict import Predictor
from harness.quantization.calibration import calibration_documents
from harness.quantization.mixing import Part

DOCUMENTS_PER_TASK = 8


def measure_sensitivity(name: str, bits: int, group_size: int, data: str, progress: Progress) -> list[Part]:
    """The divergence that each part causes alone, in the model's order.

    Args:
        name: as --model takes it; an unquantised model.
        bits, group_size: to round to, mode affine.
        data: where the train documents are. LiDiRus has none and is never looked at.
        progress: told of the parts done.

    Raises:
        UserError: the documents cannot be read.
    """
    predictor = Predictor(name, "torch")
    backend = predictor.backend
    assert isinstance(backend, TorchBackend)
    documents = list(calibration_documents(data, DOCUMENTS_PER_TASK))
    requests = predictor.render(documents)
    whole = predictor.log_probabilities(requests)
    parts = []
    names = _parts(backend.matrix_sizes())
    done = progress("rounding one part after the other", len(names))
    for part, matrices in names.items():
        with backend.rounded(matrices, bits, group_size):
            rounded = predictor.log_probabilities(requests)
        by_task: dict[str, list[float]] = {}
        for (task, _), before, after in zip(documents, whole, rounded, strict=True):
            by_task.setdefault(task, []).append(float((np.exp(before) * (before - after)).sum()))
        divergence = float(np.mean([np.mean(found) for found in by_task.values()]))
        parts.append(Part(part, tuple(matrices), sum(matrices.values()), divergence))
        done(1)
    return parts


def _parts(sizes: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Matrix -> weights, by part: `model.layers.3.mlp.up_proj` belongs to `layers.3.mlp`."""
    parts: dict[str, dict[str, int]] = {}
    for name, size in sizes.items():
        part = name.removeprefix("model.")
        parts.setdefault(part.rpartition(".")[0] or part, {})[name] = size
    return parts
