"""Give more bits to the parts of a model whose rounding changes its answers most.

One part after the other (a layer's attention, a layer's feed-forward, the vocabulary matrix) is rounded as MLX would
store it, and the answers to a few train documents are compared with those of the unrounded model by the mean
Kullback–Leibler divergence of the choices. `choose_bits` then spends a budget of bits on the parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.models.options import ModelOptions
from harness.models.resolve import LocalModel
from harness.progress import Bar

# Widths that MLX's affine mode offers.
BITS = (2, 3, 4, 5, 6, 8)
DOCUMENTS_PER_TASK = 8
_SCALE_BITS = 32  # a bfloat16 scale and a bfloat16 bias for every group


@dataclass(frozen=True)
class Part:
    """Matrices that get the same number of bits.

    Attributes:
        name: `layers.3.mlp`, `embed_tokens`.
        matrices: Their names in the model, without `.weight`.
        weights: The number of weights that they hold.
        divergence: Mean over tasks of the mean KL divergence of the choices, in nats, when only this part is rounded.
    """

    name: str
    matrices: tuple[str, ...]
    weights: int
    divergence: float


def measure_sensitivity(model: str, local: LocalModel, bits: int, group_size: int, data: str) -> list[Part]:
    """Return the parts in the model's order, each with the divergence that it causes alone.

    Args:
        model: An unquantised model, as `run` takes it.
        local: The same model on this machine.
        bits: The width to round to, in mode affine.
        group_size: Weights that share a scale.
        data: The source of the train documents.

    Raises:
        UserError: The documents cannot be read.
    """
    import numpy as np

    from adapters.torch_backend import TorchBackend
    from harness.evaluation.predict import Predictor
    from harness.models.open import open_model
    from harness.quantization.calibration import calibration_documents
    from harness.quantization.rounding import matrix_sizes, rounded

    opened = open_model(ModelOptions(model=model), local)
    assert isinstance(opened.backend, TorchBackend)
    network = opened.backend.model
    predictor = Predictor(opened)
    documents = list(calibration_documents(data, DOCUMENTS_PER_TASK))
    requests = predictor.render(documents)
    unrounded = predictor.log_probabilities(requests)
    parts = []
    matrices_of = _parts(matrix_sizes(network))
    with Bar("rounding one part after the other", len(matrices_of), "part") as bar:
        for name, sizes in matrices_of.items():
            with rounded(network, sizes, bits, group_size):
                found = predictor.log_probabilities(requests)
            by_task: dict[str, list[float]] = {}
            for (task, _), before, after in zip(documents, unrounded, found, strict=True):
                by_task.setdefault(task, []).append(float((np.exp(before) * (before - after)).sum()))
            divergence = float(np.mean([np.mean(values) for values in by_task.values()]))
            parts.append(Part(name, tuple(sizes), sum(sizes.values()), divergence))
            bar.advance(1)
    return parts


def _parts(sizes: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Group matrix -> weights by part: `model.layers.3.mlp.up_proj` belongs to `layers.3.mlp`."""
    parts: dict[str, dict[str, int]] = {}
    for name, size in sizes.items():
        part = name.removeprefix("model.")
        parts.setdefault(part.rpartition(".")[0] or part, {})[name] = size
    return parts


def average_bits(parts: Sequence[Part], bits: Mapping[str, int], group_size: int) -> float:
    """Return the bits a weight, scales included, where `bits` gives each part's width by its name."""
    total = sum(part.weights for part in parts)
    return _SCALE_BITS / group_size + sum(bits[part.name] * part.weights for part in parts) / total


def choose_bits(parts: Sequence[Part], lowest: int, group_size: int, target_bits: float) -> dict[str, int]:
    """Return the width of every part, at most `target_bits` a weight on average.

    The part that gains most for the bits that it costs is raised first, until the budget is spent. One more bit halves
    the rounding error, and small errors change the KL divergence by their square: a part of divergence d at `lowest`
    bits is taken to have d / 4 ** (bits − lowest) at `bits`.

    Args:
        parts: Measured at `lowest` bits.
        lowest: The width that every part has at least.
        group_size: Weights that share a scale.
        target_bits: Bits a weight, scales included.
    """
    chosen = {part.name: lowest for part in parts}
    open_parts = {part.name: part for part in parts}
    while open_parts:
        raises = {name: _raise(part, chosen[name], lowest) for name, part in open_parts.items()}
        name = max(raises, key=lambda found: raises[found][0])
        raised = {**chosen, name: raises[name][1]}
        if average_bits(parts, raised, group_size) <= target_bits:
            chosen = raised
        else:  # too large for what is left of the budget; a smaller part may fit
            del open_parts[name]
        open_parts = {name: part for name, part in open_parts.items() if chosen[name] < BITS[-1]}
    return chosen


def _raise(part: Part, bits: int, lowest: int) -> tuple[float, int]:
    """Return (divergence gained for each bit that the next width costs, the next width)."""
    higher = min(offered for offered in BITS if offered > bits)
    gained = part.divergence * (4.0 ** (lowest - bits) - 4.0 ** (lowest - higher))
    return gained / ((higher - bits) * part.weights), higher
