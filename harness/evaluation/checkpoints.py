"""What a run needs to know of a multitask checkpoint before the model is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.models.checkpoint import Checkpoint, read_checkpoint
from harness.models.resolve import checkpoint_directory
from harness.tasks.prompts import ChosenTask, prompt_hash


def open_checkpoint(model: str) -> Checkpoint | None:
    """The description of the checkpoint that --model names; None for other models.

    Raises:
        UserError: it is damaged.
    """
    directory = checkpoint_directory(model)
    return read_checkpoint(directory) if directory else None


def checkpoint_warnings(checkpoint: Checkpoint, chosen: Sequence[ChosenTask], num_fewshot: int) -> Iterator[str]:
    """What makes the heads read other texts than they were trained on."""
    if num_fewshot:
        yield "the heads were trained without few-shot examples before the question"
    for task in chosen:
        if task.file.name not in checkpoint.tasks:
            continue
        head = checkpoint.tasks[task.file.name]
        if task.prompt != head.prompt:
            yield f"{task.file.name}'s head was trained on the prompt {head.prompt}, not {task.prompt}"
        elif prompt_hash(task) != head.prompt_sha256:
            yield f"the prompt {task.prompt} of {task.file.name} has changed since its head was trained"
