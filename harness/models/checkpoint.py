"""The checkpoint of a multitask model: a directory of safetensors and JSON, read by training and by every backend.

rsg_checkpoint.json          what it is: base model, heads, prompts, training record, hash of every file
heads.safetensors            `weight` [rows, hidden size], `bias` [rows]; the JSON says which rows are whose
adapter_model.safetensors    LoRA in peft's format, with adapter_config.json; or
layers.safetensors           the changed layers, named as in transformers' causal language model
README.md                    the model card

Where the model is a GGUF file, NAME.gguf, all but the model stands beside it in the directory NAME.rsg.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from harness.errors import UserError
from harness.files import file_hash, whole_directory
from harness.models.heads import HeadLayout, Heads
from harness.models.lora import copy_tokenizer, merge_peft
from harness.records.base import Record, read_record, write_record
from harness.tasks import HeadKind, get_task, task_names
from harness.tasks.prompts import ChosenTask, prompt_hash

FORMAT_VERSION = 1
DESCRIPTION = "rsg_checkpoint.json"
HEADS = "heads.safetensors"
LAYERS = "layers.safetensors"
_GGUF, _BESIDE_GGUF = ".gguf", ".rsg"


class BaseReference(Record):
    """The model that was trained further. `sha256`: of its configuration, tokenizer and weights."""

    model: str  # as --model takes it
    origin: str
    sha256: str


class TaskHead(Record):
    """The head of one task, and the prompt that it reads."""

    kind: HeadKind
    labels: tuple[str, ...]  # in the order of the rows; empty where candidates differ by document
    first_row: int
    prompt: str
    prompt_sha256: str


class ValidationRecord(Record):
    """Metrics on validation: task -> metric -> value, and the mean of the official ones."""

    limit: int | None  # documents a task
    mean: float
    figures: dict[str, dict[str, float]]


class StartRecord(Record):
    """The checkpoint that a training continued. `sha256`: of its description."""

    name: str
    step: int
    sha256: str


class TrainingRecord(Record):
    """What a checkpoint says about its training."""

    recipe: dict[str, Any]
    step: int
    validation: ValidationRecord
    data: dict[str, str]  # "task split" -> fingerprint
    distilled: dict[str, Any] | None = None
    start: StartRecord | None = None
    documents: dict[str, int]  # task -> documents trained on
    versions: dict[str, str]
    machine: dict[str, Any]
    git_commit: str | None
    command: str
    processes: int = 1


class Checkpoint(Record):
    """rsg_checkpoint.json."""

    format_version: int = FORMAT_VERSION
    name: str
    base: BaseReference
    adaptation: Literal["lora", "layers", "merged"]  # merged: the whole model stands in the directory
    frozen_layers: int
    weights: str = "whole"  # a backend: the base model's weights are rounded as it stores them, the adapter is not
    pooling: Literal["last_token"] = "last_token"
    chat_template: bool
    tasks: dict[str, TaskHead]
    head_rows: int
    training: TrainingRecord
    files: dict[str, str]  # name -> SHA-256
    gguf: str | None = None  # SHA-256 of the GGUF file that holds the model; None: it stands in the directory

    def prompts(self) -> dict[str, str]:
        """Return task -> the prompt that its head reads, for tasks that borrow a head too."""
        own = {task: head.prompt for task, head in self.tasks.items()}
        borrowed = {name: own[owner] for name in task_names() if (owner := get_task(name).borrows) in own}
        return {**own, **borrowed}

    def layout(self) -> HeadLayout:
        """Return where the rows of each head stand."""
        return HeadLayout(
            {task: head.kind for task, head in self.tasks.items()},
            {task: head.first_row for task, head in self.tasks.items()},
            self.head_rows,
        )


def heads_directory(gguf: Path) -> Path:
    """Return where the heads and the description of a checkpoint stand whose model is a GGUF file."""
    return gguf.with_suffix(_BESIDE_GGUF)


def gguf_file(directory: Path, checkpoint: Checkpoint) -> Path | None:
    """Return the GGUF file that holds a checkpoint's model; None where the directory holds it.

    Raises:
        UserError: The file is missing, or it is another one.
    """
    if checkpoint.gguf is None:
        return None
    file = directory.with_suffix(_GGUF)
    if not file.is_file():
        raise UserError(f"{file} is missing, the model of {directory}", "copy it there")
    if file_hash(file) != checkpoint.gguf:
        raise UserError(f"{file} is not the model that the heads in {directory} belong to", "copy both again")
    return file


def is_checkpoint(directory: Path) -> bool:
    """Return whether the directory holds a checkpoint's description."""
    return (directory / DESCRIPTION).is_file()


def read_checkpoint(directory: Path) -> Checkpoint:
    """Return the description of a checkpoint whose files are whole.

    Raises:
        UserError: A damaged or missing file, which is named, or another format version.
    """
    checkpoint = read_record(
        directory / DESCRIPTION,
        Checkpoint,
        version=FORMAT_VERSION,
        version_key="format_version",
        hint="copy the checkpoint again, or train it again",
    )
    for name, expected in checkpoint.files.items():
        try:
            found = file_hash(directory / name)
        except OSError as error:
            raise UserError(f"{directory / name} is missing", "copy the checkpoint again") from error
        if found != expected:
            raise UserError(f"{directory / name} is damaged: its hash is not the recorded one", "copy it again")
    return checkpoint


def read_heads(directory: Path) -> Heads:
    """Return the heads of a checkpoint.

    Raises:
        UserError: The checkpoint is damaged.
    """
    from safetensors.numpy import load_file

    checkpoint = read_checkpoint(directory)
    tensors = load_file(directory / HEADS)
    return Heads(checkpoint.layout(), tensors["weight"].astype(np.float32), tensors["bias"].astype(np.float32))


def checkpoint_warnings(checkpoint: Checkpoint, chosen: Sequence[ChosenTask], num_fewshot: int) -> Iterator[str]:
    """Yield what makes the heads read other texts than those they were trained on."""
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


def write_checkpoint(
    directory: Path,
    description: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, Any]],
    texts: Mapping[str, str],
) -> None:
    """Write a checkpoint, whole or not at all.

    Args:
        directory: Must not exist yet.
        description: Fields of `Checkpoint` without `files`.
        tensors: File name -> tensors (torch).
        texts: File name -> text.

    Raises:
        UserError: The disk is full or the directory cannot be written.
    """
    from safetensors.torch import save

    contents = {name: save(dict(parts)) for name, parts in tensors.items()}
    contents |= {name: text.encode() for name, text in texts.items()}
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    checkpoint = Checkpoint(
        **description, files={name: value for name, value in hashes.items() if not name.endswith(".md")}
    )
    hint = "what was saved before still stands: free some space and continue with --resume"
    with whole_directory(directory, hint) as scratch:
        for name, content in contents.items():
            (scratch / name).write_bytes(content)
        (scratch / DESCRIPTION).write_text(checkpoint.model_dump_json(indent=2) + "\n", encoding="utf-8")


def write_merged(directory: Path, source: Path, change: str, name: str | None = None, gguf: str | None = None) -> None:
    """Make a checkpoint of a directory that holds the fused and changed backbone of another checkpoint.

    Args:
        directory: config.json, model*.safetensors, tokenizer; empty where the backbone is a GGUF file.
        source: The checkpoint that it was made from, whose heads, description and card are taken over.
        change: What was done to the backbone, a sentence for the card.
        name: Of the new checkpoint; None: as before, where a record tells the two apart by their weights.
        gguf: SHA-256 of the GGUF file, if that holds the backbone.
    """
    checkpoint = read_checkpoint(source)
    shutil.copyfile(source / HEADS, directory / HEADS)
    card = (source / "README.md").read_text(encoding="utf-8")
    (directory / "README.md").write_text(f"{card}\n{change}\n", encoding="utf-8")
    model = () if gguf else ("config.json", *(file.name for file in directory.glob("model*.safetensors")))
    merged = checkpoint.model_copy(
        update={
            "adaptation": "merged",
            "weights": "whole",
            "name": name or checkpoint.name,
            "files": {file: file_hash(directory / file) for file in sorted({HEADS, *model})},
            "gguf": gguf,
        }
    )
    write_record(directory / DESCRIPTION, merged)


def fuse(directory: Path, checkpoint: Checkpoint, base_dir: Path, target: Path) -> None:
    """Write the base model with the checkpoint's changes in it, as an ordinary transformers directory.

    LoRA is added in float32, then rounded to the type that the base model is stored in.

    Args:
        directory: Of the checkpoint.
        checkpoint: Its description.
        base_dir: Transformers directory of the base model.
        target: An existing empty directory.
    """
    import torch
    from safetensors.torch import load_file

    from adapters.architecture import read_architecture
    from adapters.torch_backend import load_weights
    from harness.quiet import quiet_libraries

    with quiet_libraries():
        model = load_weights(base_dir, read_architecture(base_dir), "auto")
        stored = model.dtype
        if checkpoint.adaptation == "lora":
            model = merge_peft(model.float(), directory)
        else:
            unknown = model.load_state_dict(load_file(directory / LAYERS), strict=False).unexpected_keys
            if unknown:
                raise UserError(f"{directory / LAYERS} does not fit the base model: {unknown[0]}", "copy it again")
        with torch.no_grad():
            model.to(stored).save_pretrained(target)
    copy_tokenizer(base_dir, target)


def head_descriptions(layout: HeadLayout, prompts: Mapping[str, tuple[str, str]]) -> dict[str, TaskHead]:
    """Return task -> its head, for the description. `prompts`: task -> (name, SHA-256)."""
    return {
        task: TaskHead(
            kind=kind,
            labels=get_task(task).labels,
            first_row=layout.starts[task],
            prompt=prompts[task][0],
            prompt_sha256=prompts[task][1],
        )
        for task, kind in layout.kinds.items()
    }
