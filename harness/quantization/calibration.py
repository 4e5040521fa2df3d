"""Train documents that quantisation looks at: some of every task, evenly spread over its file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harness.data import TASKS, cached_split, document_key
from harness.data.sampling import sample_documents
from harness.scoring.encoding import TextEncoder, encode_pairs
from harness.tasks.prompts import choose
from harness.tasks.rendering import load_tasks, render_document, uses_chat_template
from harness.training.examples import right_choices


def calibration_documents(data: str, per_task: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """(task, row) of up to so many train documents of every task; of a MuSeRC paragraph its first answer."""
    for task in TASKS:
        if task == "lidirus":  # has no train split
            continue
        rows = [document.row() for document in cached_split(task, "train", data).documents]
        chosen = sample_documents(rows, per_task, seed=0)
        firsts = {document_key(row): row for row in reversed(chosen)}
        yield from ((task, row) for row in list(firsts.values())[:per_task])


def calibration_sequences(
    tokenizer: Any, prompts: Mapping[str, str] | None, data: str, count: int, max_tokens: int
) -> list[list[int]]:
    """Token ids of about `count` train documents as a run shows them, each with a right answer.

    Args:
        tokenizer: of the model.
        prompts: task -> prompt, where they differ from the usual ones.
        data: as --data takes it.
        count: of documents, the same number from every task that has so many.
        max_tokens: a longer sequence loses tokens from the left, but not its BOS.
    """
    chosen = {task.file.task: task for task in choose(["rsg"], defaults=prompts)}
    tasks = load_tasks(list(chosen.values()), data="mini", split="validation")
    chat = uses_chat_template(tokenizer, "auto")
    pairs = []
    for task, row in calibration_documents(data, -(-count // (len(TASKS) - 1))):
        requests = render_document(tasks[chosen[task].file.full_name], row, tokenizer, chat)
        pairs.extend(_right_answers(task, row, [request.args for request in requests])[:1])
    encoder = TextEncoder(tokenizer)
    return [list(sequence.tokens) for sequence in encode_pairs(encoder, pairs[:count], max_tokens)]


def _right_answers(task: str, row: dict[str, Any], choices: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    right = right_choices(task, row, len(choices))
    return [choice for choice, is_right in zip(choices, right, strict=True) if is_right]
