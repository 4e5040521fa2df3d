"""Which matrices of a model bear few bits badly, measured on its own answers.

One part of the model after the other (a layer's attention, a layer's feed-forward, the vocabulary matrix) is rounded as
MLX would store it, and the answers to a few train documents are compared with those of the whole model: the mean
Kullback–Leibler divergence of the choices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from adapters.torch_backend import TorchBackend
from harness.data import TASKS, cached_split, document_key
from harness.data.sampling import sample_documents
from harness.evaluation.catalogue import choose
from harness.evaluation.checkpoints import open_checkpoint
from harness.evaluation.language_model import PlannedModel
from harness.evaluation.loading import load_model
from harness.evaluation.options import Progress, RunOptions
from harness.evaluation.rendering import load_tasks, render_document, uses_chat_template
from harness.heads import log_softmax
from harness.models import LocalModel
from harness.quantization.mixing import Part

DOCUMENTS_PER_TASK = 8


def measure_sensitivity(
    model: LocalModel,
    name: str,
    bits: int,
    group_size: int,
    data: str,
    progress: Progress,
) -> list[Part]:
    """The divergence that each part causes alone, in the model's order.

    Args:
        model: unquantised.
        name: as --model named it; its checkpoint decides the prompts.
        bits, group_size: to round to, mode affine.
        data: where the train documents are. LiDiRus has none and is never looked at.
        progress: told of the parts done.

    Raises:
        UserError: the documents cannot be read.
    """
    backend, heads = load_model(model, RunOptions(backend="torch"))
    assert isinstance(backend, TorchBackend)
    checkpoint = open_checkpoint(name)
    chosen = choose(["rsg"], defaults=checkpoint.prompts() if checkpoint else None)
    tasks = load_tasks(chosen, data=data, split="validation")
    chat = uses_chat_template(backend.tokenizer, "auto")
    language_model = PlannedModel(backend, backend.info.batch_tokens, heads=heads)
    documents = list(_calibration_documents(tasks, data, backend.tokenizer, chat))
    requests = [request for _, document in documents for request in document]

    def answers() -> list[np.ndarray]:
        scores = iter(language_model.loglikelihood(requests))
        return [log_softmax([next(scores)[0] for _ in document]) for _, document in documents]

    whole = answers()
    parts = []
    names = _parts(backend.matrix_sizes())
    done = progress("rounding one part after the other", len(names))
    for part, matrices in names.items():
        with backend.rounded(matrices, bits, group_size):
            rounded = answers()
        by_task: dict[str, list[float]] = {}
        for (task, _), before, after in zip(documents, whole, rounded, strict=True):
            by_task.setdefault(task, []).append(float((np.exp(before) * (before - after)).sum()))
        divergence = float(np.mean([np.mean(found) for found in by_task.values()]))
        parts.append(Part(part, tuple(matrices), sum(matrices.values()), divergence))
        done(1)
    return parts


def _calibration_documents(
    tasks: Mapping[str, Any], data: str, tokenizer: Any, chat: bool
) -> Iterator[tuple[str, list[Any]]]:
    """(task, the requests of one document), some documents of every task's train split."""
    number = 0
    for task in TASKS:
        if task == "lidirus":
            continue
        rows = [document.row() for document in cached_split(task, "train", data).documents]
        chosen = sample_documents(rows, DOCUMENTS_PER_TASK, seed=0)
        firsts = {document_key(row): row for row in reversed(chosen)}  # of a MuSeRC paragraph its first answer
        for row in list(firsts.values())[:DOCUMENTS_PER_TASK]:
            requests = render_document(tasks[f"rsg_{task}"], row, tokenizer, chat)
            for request in requests:
                request.doc_id = number
            number += 1
            yield task, requests


def _parts(sizes: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Matrix -> weights, by part: `model.layers.3.mlp.up_proj` belongs to `layers.3.mlp`."""
    parts: dict[str, dict[str, int]] = {}
    for name, size in sizes.items():
        part = name.removeprefix("model.")
        parts.setdefault(part.rpartition(".")[0] or part, {})[name] = size
    return parts
