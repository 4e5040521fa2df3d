"""The train documents that quantisation reads: some of every task, evenly spread over its file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from harness.data import cached_split
from harness.data.sampling import sample_documents
from harness.models.chat import chat_template
from harness.scoring.encoding import TextEncoder, encode_pairs
from harness.tasks import Row, document_key, get_task, trainable_tasks
from harness.tasks.prompts import choose
from harness.tasks.rendering import PLACEHOLDER, load_tasks, render_document


def calibration_documents(data: str, per_task: int) -> Iterator[tuple[str, Row]]:
    """Yield (task, row) of up to `per_task` train documents of every task; of a MuSeRC paragraph its first answer."""
    for task in trainable_tasks():
        rows = [document.row() for document in cached_split(task, "train", data).documents]
        chosen = sample_documents(rows, per_task, seed=0)
        firsts = {document_key(row): row for row in reversed(chosen)}
        yield from ((task, row) for row in list(firsts.values())[:per_task])


def calibration_sequences(
    tokenizer: Any, prompts: Mapping[str, str], data: str, count: int, max_tokens: int
) -> list[list[int]]:
    """Return the token ids of about `count` train documents as a run shows them, each with a right answer.

    Args:
        tokenizer: The model's.
        prompts: Task -> prompt, where it differs from the default one.
        data: The data source, as `run` takes it.
        count: Number of documents; every task gives the same number if it has that many.
        max_tokens: Longer sequences lose tokens from the left, but not their BOS.
    """
    chosen = {task.file.task: task for task in choose(["rsg"], defaults=prompts)}
    tasks = load_tasks(list(chosen.values()), data=PLACEHOLDER, split="validation")
    template = chat_template(tokenizer)
    pairs = []
    for task, row in calibration_documents(data, -(-count // len(trainable_tasks()))):
        requests = render_document(tasks[chosen[task].file.full_name], row, template)
        right = get_task(task).right_choices(row, len(requests))
        pairs.extend([request.args for request, is_right in zip(requests, right, strict=True) if is_right][:1])
    encoder = TextEncoder(tokenizer)
    return [list(sequence.tokens) for sequence in encode_pairs(encoder, pairs[:count], max_tokens)]
