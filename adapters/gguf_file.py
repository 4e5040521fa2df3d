"""Read the header and the tensors of a GGUF file, without its arrays, which hold hundreds of thousands of tokens."""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from adapters.base import UserError
from adapters.gguf_types import WHOLE

_MAGIC = b"GGUF"
_POINTER = b"version https://git-lfs"
# How llama.cpp names the parts of a split model.
_PART = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_VERSIONS = (2, 3)
_ALIGNMENT = 32  # of the tensors in a file that names none
# Type of a value in the header -> its layout, in the notation of `struct`.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# Blocks dequantised together. The package gguf takes 16 rows at a time, and rows this long are four times as fast as
# those of a small model.
_ROW_BLOCKS = 256
_LAYERS_OF_27B = (46, 62)  # of Gemma 2 and 3


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in the file.

    Attributes:
        shape: In numpy's order.
        kind: A number of `gguf.GGMLQuantizationType`.
        offset: In bytes, from the first tensor.
    """

    shape: tuple[int, ...]
    kind: int
    offset: int


class ArrayLength(int):
    """The length of an array in the header, whose values are skipped."""


@dataclass(frozen=True)
class Header:
    """The header of a GGUF file.

    Attributes:
        values: By key; of an array its `ArrayLength`.
        tensors: By name.
        data_start: Where the first tensor begins, in bytes.
    """

    values: dict[str, Any]
    tensors: dict[str, StoredTensor]
    data_start: int


def part_files(file: Path) -> list[Path]:
    """Return the files of a model, the first one first; models that are not split have one.

    Raises:
        UserError: The file is a later part, or parts are missing.
    """
    found = _PART.fullmatch(file.name)
    if found is None:
        return [file]
    name, number, count = found["name"], int(found["number"]), int(found["count"])
    parts = [file.with_name(f"{name}-{part:05d}-of-{count:05d}.gguf") for part in range(1, count + 1)]
    if number != 1:
        raise UserError(f"{file.name} is part {number} of a model", f"name its first part, {parts[0].name}")
    if missing := next((part for part in parts if not part.is_file()), None):
        raise UserError(f"{file} lacks its part {missing.name}", "copy all parts into one directory")
    return parts


def quantised_tensor(header: Header) -> tuple[str, str] | None:
    """Return the name and the type of a quantised tensor; None where all are stored in 16 bits or more."""
    from gguf import GGMLQuantizationType

    names = {int(kind): kind.name for kind in GGMLQuantizationType}
    types = ((name, names.get(tensor.kind, f"type {tensor.kind}")) for name, tensor in header.tensors.items())
    return next(((name, stored) for name, stored in types if stored.lower() not in WHOLE), None)


def read_header(file: Path) -> Header:
    """Return the header of a GGUF file.

    Raises:
        UserError: The file is damaged, or it is not a GGUF file.
    """
    with file.open("rb") as stream:
        start = stream.read(len(_MAGIC))
        if start and start == _POINTER[: len(start)]:
            raise UserError(f"{file} is a Git LFS pointer, not the file itself", "run `git lfs pull`")
        if start != _MAGIC:
            raise UserError(f"{file} is not a GGUF file", "name an existing .gguf file")
        try:
            (version, tensor_count, value_count) = _unpack(stream, "IQQ")
            if version not in _VERSIONS:
                raise UserError(f"{file} is of GGUF version {version}, which is not supported", "convert it again")
            values = dict(_read_entry(stream) for _ in range(value_count))
            tensors = dict(_read_tensor(stream) for _ in range(tensor_count))
        except (struct.error, UnicodeDecodeError, KeyError, OverflowError, MemoryError) as error:
            raise _damaged(file) from error
        alignment = values.get("general.alignment", _ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise _damaged(file)
        return Header(values, tensors, math.ceil(stream.tell() / alignment) * alignment)


def _damaged(file: Path) -> UserError:
    return UserError(f"{file} is damaged, incomplete or of an unknown kind", "copy the file again")


def _unpack(stream: BinaryIO, layout: str) -> tuple[Any, ...]:
    return struct.unpack(f"<{layout}", stream.read(struct.calcsize(f"<{layout}")))


def _read_string(stream: BinaryIO) -> str:
    (length,) = _unpack(stream, "Q")
    return stream.read(length).decode()


def _read_entry(stream: BinaryIO) -> tuple[str, Any]:
    key = _read_string(stream)
    (kind,) = _unpack(stream, "I")
    return key, _read_value(stream, kind)


def _read_value(stream: BinaryIO, kind: int) -> Any:
    """Return a value, or the length of an array, whose values are skipped."""
    if kind == _STRING:
        return _read_string(stream)
    if kind != _ARRAY:
        return _unpack(stream, _SCALARS[kind])[0]
    element, length = _unpack(stream, "IQ")
    if element in _SCALARS:
        stream.seek(length * struct.calcsize(f"<{_SCALARS[element]}"), 1)
    else:
        for _ in range(length):
            _read_value(stream, element)
    return ArrayLength(length)


def _read_tensor(stream: BinaryIO) -> tuple[str, StoredTensor]:
    name = _read_string(stream)
    (dimensions,) = _unpack(stream, "I")
    shape = _unpack(stream, f"{dimensions}Q")
    kind, offset = _unpack(stream, "IQ")
    return name, StoredTensor(shape[::-1], kind, offset)


def gemma_query_scalar(fields: dict[str, Any]) -> int:
    """Return by whose root Gemma 2 and 3 divide attention's scores, which GGUF does not store.

    As llama.cpp has it: the head size, but in the 27B models, known by their number of layers, hidden size / heads.
    """
    if fields["num_hidden_layers"] in _LAYERS_OF_27B:
        return int(fields["hidden_size"] // fields["num_attention_heads"])
    return int(fields["head_dim"])


def read_tensor(file: Path, header: Header, name: str) -> np.ndarray:
    """Return a tensor of the file, dequantised to float32.

    Raises:
        UserError: The file is too short, or the tensor's type is unknown.
    """
    stored = header.tensors[name]
    content = np.memmap(file, mode="r", dtype=np.uint8)
    try:
        return _dequantised(content[header.data_start + stored.offset :], stored)
    except (ValueError, NotImplementedError) as error:
        raise _damaged(file) from error


def _dequantised(content: np.ndarray, stored: StoredTensor) -> np.ndarray:
    """Return the tensor that `content` begins with, in float32.

    Raises:
        ValueError: The content is too short, or the type of the tensor is unknown.
        NotImplementedError: The package gguf cannot read tensors of this type.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    kind = GGMLQuantizationType(stored.kind)
    block_values, block_bytes = GGML_QUANT_SIZES[kind]
    blocks = math.prod(stored.shape) // block_values
    rows = content[: blocks * block_bytes].reshape(-1, math.gcd(blocks, _ROW_BLOCKS) * block_bytes)
    return dequantize(rows, kind).reshape(stored.shape)
