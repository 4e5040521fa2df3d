"""The checkpoint of a multitask model: a directory of safetensors and JSON, read by training and by every backend.

rsg_checkpoint.json          what it is: base model, heads, prompts, training record, hash of every file
heads.safetensors            `weight` [rows, hidden size], `bias` [rows]; which rows are whose is in the JSON
adapter_model.safetensors    LoRA in peft's format, with adapter_config.json; or
layers.safetensors           the changed layers, named as in Gemma3ForCausalLM
README.md                    the model card
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from harness.errors import UserError
from harness.files import file_hash
from harness.models.heads import BORROWED, HeadKind, HeadLayout, Heads

FORMAT_VERSION = 1
DESCRIPTION = "rsg_checkpoint.json"
HEADS = "heads.safetensors"
ADAPTER = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
LAYERS = "layers.safetensors"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BaseReference(_Part):
    """The model that was trained further. `sha256`: of its configuration, tokenizer and weights."""

    model: str  # as --model takes it
    origin: str
    sha256: str


class TaskHead(_Part):
    """The head of one task, and the prompt that it reads."""

    kind: HeadKind
    labels: tuple[str, ...]  # in the order of the rows; empty where candidates differ by document
    first_row: int
    prompt: str
    prompt_sha256: str


class Checkpoint(_Part):
    """rsg_checkpoint.json."""

    format_version: int = FORMAT_VERSION
    name: str
    base: BaseReference
    adaptation: Literal["lora", "layers", "merged"]  # merged: the whole model stands in the directory
    frozen_layers: int
    pooling: Literal["last_token"] = "last_token"
    chat_template: bool
    tasks: dict[str, TaskHead]
    head_rows: int
    training: dict[str, Any]  # recipe, data fingerprints, steps, figures on validation, versions
    files: dict[str, str]  # name -> SHA-256

    def prompts(self) -> dict[str, str]:
        """Task -> the prompt that its head reads; a task that borrows a head reads the prompt of the same name."""
        own = {task: head.prompt for task, head in self.tasks.items()}
        return {**own, **{task: own[owner] for task, owner in BORROWED.items() if owner in own}}

    def layout(self) -> HeadLayout:
        return HeadLayout(
            {task: head.kind for task, head in self.tasks.items()},
            {task: head.first_row for task, head in self.tasks.items()},
            self.head_rows,
        )


def is_checkpoint(directory: Path) -> bool:
    return (directory / DESCRIPTION).is_file()


def read_checkpoint(directory: Path) -> Checkpoint:
    """The description of a checkpoint whose files are whole.

    Raises:
        UserError: a damaged or missing file, which is named, or another format version.
    """
    path = directory / DESCRIPTION
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values["format_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"cannot read {path}: {error}", "copy the checkpoint anew") from error
    if version != FORMAT_VERSION:
        raise UserError(f"{path} has format version {version}, and this program reads {FORMAT_VERSION}", "train anew")
    try:
        checkpoint = Checkpoint.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path} is damaged: {where}: {first['msg']}", "copy the checkpoint anew") from error
    for name, expected in checkpoint.files.items():
        try:
            found = file_hash(directory / name)
        except OSError as error:
            raise UserError(f"{directory / name} is missing", "copy the checkpoint anew") from error
        if found != expected:
            raise UserError(f"{directory / name} is damaged: its hash is not the recorded one", "copy it anew")
    return checkpoint


def read_heads(directory: Path) -> Heads:
    """The heads of a checkpoint.

    Raises:
        UserError: the checkpoint is damaged.
    """
    from safetensors.numpy import load_file

    checkpoint = read_checkpoint(directory)
    tensors = load_file(directory / HEADS)
    return Heads(checkpoint.layout(), tensors["weight"].astype(np.float32), tensors["bias"].astype(np.float32))


def write_checkpoint(
    directory: Path,
    description: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, Any]],
    texts: Mapping[str, str],
) -> None:
    """Writes a checkpoint, whole or not at all.

    Args:
        directory: must not exist yet.
        description: fields of `Checkpoint` without `files`.
        tensors: file name -> tensors (torch).
        texts: file name -> text.

    Raises:
        UserError: the disk is full or the directory cannot be written.
    """
    from safetensors.torch import save

    contents = {name: save(dict(parts)) for name, parts in tensors.items()}
    contents |= {name: text.encode() for name, text in texts.items()}
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    hashed = {name: value for name, value in hashes.items() if not name.endswith(".md")}
    checkpoint = Checkpoint(**description, files=hashed)
    contents[DESCRIPTION] = (checkpoint.model_dump_json(indent=2) + "\n").encode()
    write_directory(directory, contents)


def write_directory(directory: Path, contents: Mapping[str, bytes]) -> None:
    """Makes a directory with these files, whole or not at all: written beside it, synced, renamed.

    Raises:
        UserError: the disk is full or the place cannot be written.
    """
    scratch = None
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
        for name, content in contents.items():
            with (scratch / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        scratch.chmod(0o755)
        scratch.rename(directory)
    except OSError as error:
        raise UserError(
            f"cannot save {directory}: {error.strerror}",
            "what was saved before still stands: free some space and go on with --resume",
        ) from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def write_merged(directory: Path, source: Path, change: str, name: str | None = None) -> None:
    """Makes a checkpoint of a directory that holds the fused and changed backbone of another checkpoint.

    Args:
        directory: config.json, model*.safetensors, tokenizer.
        source: the checkpoint that it was made from, whose heads, description and card are taken over.
        change: what was done to the backbone, a sentence for the card.
        name: of the new checkpoint; None: as before, where a record tells the two apart by their weights.
    """
    checkpoint = read_checkpoint(source)
    shutil.copyfile(source / HEADS, directory / HEADS)
    card = (source / "README.md").read_text(encoding="utf-8")
    (directory / "README.md").write_text(f"{card}\n{change}\n", encoding="utf-8")
    files = {HEADS, "config.json", *(file.name for file in directory.glob("model*.safetensors"))}
    merged = checkpoint.model_copy(
        update={
            "adaptation": "merged",
            "name": name or checkpoint.name,
            "files": {file: file_hash(directory / file) for file in sorted(files)},
        }
    )
    (directory / DESCRIPTION).write_text(merged.model_dump_json(indent=2) + "\n", encoding="utf-8")


def fuse(directory: Path, checkpoint: Checkpoint, base_dir: Path, target: Path) -> None:
    """Writes the base model with the checkpoint's changes in it, as an ordinary transformers directory.

    LoRA is added in float32, then rounded to the type that the base model is stored in.

    Args:
        directory: of the checkpoint.
        checkpoint: its description.
        base_dir: transformers directory of the base model.
        target: an existing empty directory.
    """
    import torch
    from safetensors.torch import load_file
    from transformers import Gemma3ForCausalLM

    from harness.quiet import quiet_libraries

    with quiet_libraries():
        model: Any = Gemma3ForCausalLM.from_pretrained(base_dir, dtype="auto")
        stored = model.dtype
        if checkpoint.adaptation == "lora":
            from peft import PeftModel

            model = PeftModel.from_pretrained(model.float(), directory).merge_and_unload()
        else:
            missing = model.load_state_dict(load_file(directory / LAYERS), strict=False).unexpected_keys
            if missing:
                raise UserError(f"{directory / LAYERS} does not fit the base model: {missing[0]}", "copy it anew")
        with torch.no_grad():
            model.to(stored).save_pretrained(target)
    for file in base_dir.iterdir():
        if file.name.startswith(("tokenizer", "special_tokens", "chat_template", "generation_config")):
            shutil.copyfile(file, target / file.name)


def head_descriptions(layout: HeadLayout, prompts: Mapping[str, tuple[str, str]]) -> dict[str, TaskHead]:
    """Task -> its head, for the description. `prompts`: task -> (name, SHA-256)."""
    from harness.data import LABELS

    return {
        task: TaskHead(
            kind=kind,
            labels=LABELS[task],
            first_row=layout.starts[task],
            prompt=prompts[task][0],
            prompt_sha256=prompts[task][1],
        )
        for task, kind in layout.kinds.items()
    }
