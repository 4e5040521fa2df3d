"""Write a model or a checkpoint as a GGUF file, with the heads of a checkpoint beside it."""

from __future__ import annotations

from pathlib import Path

from adapters.gguf_file import quantised_tensor, read_header
from adapters.gguf_types import WHOLE
from adapters.gguf_writer import write_gguf
from adapters.llama_library import load_library
from harness.errors import UserError
from harness.files import file_hash, whole_directory, whole_file
from harness.models.checkpoint import heads_directory, write_merged
from harness.models.licence import licence_of
from harness.models.resolve import LocalModel


def check_library(kind: str) -> None:
    """Refuse a kind that needs llama.cpp where that is not installed.

    Raises:
        UserError: As said.
    """
    if kind not in WHOLE:
        load_library()


def write_model(model: LocalModel, file: Path, kind: str) -> int:
    """Write the file, whole or not at all, and return the bytes of its tensors.

    Args:
        model: Not quantised; of a checkpoint the fused backbone.
        file: NAME.gguf. The heads of a checkpoint go to NAME.rsg.
        kind: One of `adapters.gguf_types.KINDS`.

    Raises:
        UserError: The model comes from a quantised GGUF file, or as `write_gguf`.
    """
    if model.gguf is not None and (found := quantised_tensor(read_header(model.gguf))):
        raise UserError(
            f"{model.gguf} is quantised already: it stores {found[0]} as {found[1]}",
            "name the model that it was made from, or a file in f16, bf16 or f32",
        )
    licence = licence_of(model.path).get("license", "")
    with whole_file(file) as scratch:
        size = write_gguf(model.path, scratch, kind, name=model.name, licence=licence)
        if model.checkpoint is not None:
            change = f"Written as a GGUF file by rsg-harness: {kind}."
            with whole_directory(heads_directory(file)) as directory:
                write_merged(directory, model.checkpoint, change, gguf=file_hash(scratch))
    return size
