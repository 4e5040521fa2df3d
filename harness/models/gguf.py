"""Convert a GGUF file of a Gemma-3 to an ordinary transformers directory.

`Gemma3ForCausalLM.from_pretrained(gguf_file=...)` gives the same weights and configuration in a minute: it parses the
header, which holds 262,144 tokens, three times in Python. Here the header is read once, and its arrays are skipped.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from harness.errors import UserError

ARCHITECTURE = "gemma3"
_NO_LANGUAGE_MODELS = ("clip", "mmproj")
_MAGIC = b"GGUF"
_POINTER = b"version https://git-lfs"
_VERSIONS = (2, 3)
_ALIGNMENT = 32  # of the tensors in a file that names none
# Type of a value in the header -> its layout, in the notation of `struct`.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# Blocks dequantised together. The package gguf takes 16 rows at a time, and rows this long are four times as fast as
# those of a small model.
_ROW_BLOCKS = 256
# Key in the header -> field of Gemma3TextConfig.
_CONFIG_FIELDS = {
    "general.name": "_model_name_or_path",
    "gemma3.context_length": "max_position_embeddings",
    "gemma3.block_count": "num_hidden_layers",
    "gemma3.feed_forward_length": "intermediate_size",
    "gemma3.embedding_length": "hidden_size",
    "gemma3.rope.freq_base": "rope_theta",
    "gemma3.attention.key_length": "head_dim",
    "gemma3.attention.head_count": "num_attention_heads",
    "gemma3.attention.head_count_kv": "num_key_value_heads",
    "gemma3.attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "gemma3.attention.sliding_window": "sliding_window",
    "gemma3.vocab_size": "vocab_size",
    "tokenizer.ggml.bos_token_id": "bos_token_id",
    "tokenizer.ggml.eos_token_id": "eos_token_id",
    "tokenizer.ggml.unknown_token_id": "unk_token_id",
    "tokenizer.ggml.padding_token_id": "pad_token_id",
}


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


@dataclass(frozen=True)
class Header:
    """The header of a GGUF file.

    Attributes:
        values: By key; of an array only its length.
        tensors: By name.
        data_start: Where the first tensor begins, in bytes.
    """

    values: dict[str, Any]
    tensors: dict[str, StoredTensor]
    data_start: int


def convert_gguf(file: Path, target: Path) -> None:
    """Write the file's weights, dequantised to bfloat16, its configuration and its tokenizer.

    Args:
        file: The GGUF file.
        target: An existing empty directory.

    Raises:
        UserError: A damaged file, or a model other than Gemma-3.
    """
    header = read_header(file)
    architecture = header.values.get("general.architecture")
    if architecture in _NO_LANGUAGE_MODELS:
        raise UserError(f"{file} holds the vision part of a model, which writes no text", "name the model's other file")
    if architecture != ARCHITECTURE:
        raise UserError(
            f"{file} holds a {architecture} model, and only Gemma-3 is converted from GGUF",
            "name a transformers or MLX directory of the model",
        )
    import torch
    from transformers import Gemma3ForCausalLM, GemmaTokenizer

    from harness.quiet import quiet_libraries

    config = _configuration(file, header)
    with quiet_libraries():
        loaded: Any = Gemma3ForCausalLM.from_pretrained(
            None,
            config=config,
            state_dict=_weights(file, header, config),
            dtype=torch.bfloat16,
            output_loading_info=True,
        )
        model, report = loaded
        if missing := sorted(report["missing_keys"]):
            raise UserError(f"{file} lacks {len(missing)} weights, {missing[0]} among them", "copy the file again")
        model.save_pretrained(target)
        GemmaTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(target)


def read_header(file: Path) -> Header:
    """Return the header of a GGUF file.

    Raises:
        UserError: The file is damaged, or it is not a GGUF file.
    """
    with file.open("rb") as stream:
        start = stream.read(len(_MAGIC))
        if start == _POINTER[: len(start)]:
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
    return length


def _read_tensor(stream: BinaryIO) -> tuple[str, StoredTensor]:
    name = _read_string(stream)
    (dimensions,) = _unpack(stream, "I")
    shape = _unpack(stream, f"{dimensions}Q")
    kind, offset = _unpack(stream, "IQ")
    return name, StoredTensor(shape[::-1], kind, offset)


def _configuration(file: Path, header: Header) -> Any:
    """Return the Gemma3TextConfig that the header describes."""
    from transformers import Gemma3TextConfig

    if "tokenizer.ggml.tokens" not in header.values:
        raise UserError(f"{file} holds no tokenizer", "name another file")
    fields = {field: header.values[key] for key, field in _CONFIG_FIELDS.items() if key in header.values}
    fields.setdefault("vocab_size", header.values["tokenizer.ggml.tokens"])
    kind = header.values.get("gemma3.rope.scaling.type", "none")
    if kind == "linear":
        fields["rope_scaling"] = {"rope_type": "linear", "factor": header.values["gemma3.rope.scaling.factor"]}
    elif kind != "none":
        raise UserError(f"{file} scales its positions by {kind}, which is not supported", "name another file")
    return Gemma3TextConfig.from_dict({**fields, "tie_word_embeddings": "output.weight" not in header.tensors})


def _weights(file: Path, header: Header, config: Any) -> dict[str, Any]:
    """Return transformers' names -> tensors in bfloat16."""
    import torch
    from gguf import MODEL_ARCH, get_tensor_name_map
    from transformers import Gemma3ForCausalLM

    with torch.device("meta"):
        names = list(Gemma3ForCausalLM(config).state_dict())
    known = get_tensor_name_map(MODEL_ARCH.GEMMA3, config.num_hidden_layers)
    content = np.memmap(file, mode="r", dtype=np.uint8)
    weights = {}
    for name in names:
        module, _, suffix = name.rpartition(".")
        stored = header.tensors.get(f"{known.get_name(module)}.{suffix}")
        if stored is None:
            continue
        try:
            values = _dequantised(content[header.data_start + stored.offset :], stored)
        except (ValueError, NotImplementedError) as error:
            raise _damaged(file) from error
        if name.endswith("norm.weight"):
            values = values - 1  # llama.cpp stores the factor, transformers its difference from 1
        weights[name] = torch.from_numpy(np.require(values, requirements="W")).to(torch.bfloat16)
    return weights


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
