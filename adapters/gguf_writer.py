"""Write a model as a GGUF file, which llama.cpp and what builds on it read.

The layout of names, settings and rows is that of llama.cpp's own converter, conversion/{gemma,llama,qwen}.py; ggml's
quantiser computes the quantised tensors. The weights are read and written in blocks of rows, so that memory holds a few
of these and the tokenizer.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adapters.architecture import Architecture, read_architecture
from adapters.base import UserError
from adapters.gguf_facts import FREQUENCIES
from adapters.gguf_file import read_header, read_tensor
from adapters.gguf_settings import frequency_factors, gguf_architecture, gguf_settings, model_shape
from adapters.gguf_types import KINDS, WHOLE, tensor_type
from adapters.gguf_vocabulary import NO_VOCABULARY, Vocabulary, read_vocabulary
from adapters.mlx_weights import quantization_of, read_config
from adapters.text import load_tokenizer
from adapters.weight_files import as_float32, check_tied_head, stored_tensors

if TYPE_CHECKING:
    import ctypes

# Values that a thread turns into their stored form at a time: 16 MB in float32.
_BLOCK_VALUES = 4 * 1024 * 1024
_ALIGNMENT = 32


@dataclass(frozen=True)
class _Tensor:
    """A tensor to write.

    Attributes:
        source: Its name in transformers; "" for one that transformers computes from its configuration.
        values: As stored in safetensors.
        type: Name of a GGML type.
        rows: In which order its rows are written; None: as they are.
        shift: Is added to every value.
    """

    source: str
    values: np.ndarray
    type: str
    rows: np.ndarray | None = None
    shift: float = 0.0


def write_gguf(
    model_dir: Path, target: Path, kind: str, *, name: str = "", licence: str = "", tokenizer: bool = True
) -> int:
    """Write a GGUF file from a model directory with whole weights; return the bytes of its tensors.

    Args:
        model_dir: Holds config.json, a tokenizer, and safetensors in float32, bfloat16 or float16.
        target: The file to write; one that is there is replaced.
        kind: One of `KINDS`.
        name: What the file calls the model; empty: the directory's name.
        licence: The hub's name of the model's licence, if known.
        tokenizer: Whether the file holds one; without it llama.cpp computes tokens, and encodes no text.

    Raises:
        UserError: The model is quantised or not one that is written here, llama.cpp is needed for the kind and not
            installed, or the disk is too full.
    """
    architecture = read_architecture(model_dir)
    if quantization_of(read_config(model_dir)) is not None:
        raise UserError(f"{model_dir} is quantised", "name the unquantised model")
    settings = gguf_settings(architecture)
    check_tied_head(model_dir, architecture.config.tie_word_embeddings)
    tensors = dict(_tensors(model_dir, architecture, kind))
    encode = _encoder(kind)
    rows = len(tensors["token_embd.weight"].values)
    vocabulary = read_vocabulary(load_tokenizer(model_dir), rows) if tokenizer else NO_VOCABULARY
    if not tokenizer:
        settings["vocab_size"] = rows
    general = {"type": "model", "name": name or model_dir.resolve().name, "license": licence}
    needed = sum(_stored_bytes(tensor) for tensor in tensors.values())
    if needed > shutil.disk_usage(target.parent).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    _write_header(target, gguf_architecture(architecture), kind, general, settings, vocabulary, tensors)
    _append_tensors(target, tensors, encode)
    return needed


def read_back(model_dir: Path, file: Path, kind: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield transformers' names of the tensors of a file that was written from a directory, and their float32 values.

    Args:
        model_dir: What the file was written from.
        file: The file.
        kind: Its kind.
    """
    header = read_header(file)
    for name, tensor in _tensors(model_dir, read_architecture(model_dir), kind):
        if not tensor.source:
            continue
        values = read_tensor(file, header, name) - np.float32(tensor.shift)
        if tensor.rows is not None:
            values[tensor.rows] = values.copy()
        yield tensor.source, values


def _tensors(model_dir: Path, architecture: Architecture, kind: str) -> Iterator[tuple[str, _Tensor]]:
    """Yield llama.cpp's names of the tensors, and what is stored for them.

    Raises:
        UserError: llama.cpp has no name for a tensor, or the kind does not fit its rows.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    config, shape = architecture.config, model_shape(architecture)
    number = next(number for number, name in MODEL_ARCH_NAMES.items() if name == shape.architecture)
    names = get_tensor_name_map(number, shape.layers)
    factors = frequency_factors(config)
    if factors is not None:
        yield FREQUENCIES, _Tensor("", factors.astype(np.float32), "F32")
    for source, values in sorted(stored_tensors(model_dir).items()):
        if source.endswith("rotary_emb.inv_freq") or (source == "lm_head.weight" and shape.tied):
            continue
        name = names.get_name(source, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise UserError(
                f"{model_dir} holds {source}, which llama.cpp does not know in a {shape.architecture} model",
                "use the torch backend",
            )
        rows = None
        if shape.architecture == "llama" and source.rpartition(".")[0].endswith(("q_proj", "k_proj")):
            heads = shape.heads if ".q_proj" in source else shape.key_heads
            rows = _neighbours(len(values), heads)
        # Gemma multiplies by 1 + weight.
        shift = 1.0 if shape.architecture == "gemma3" and source.endswith("norm.weight") else 0.0
        yield name, _Tensor(source, values, tensor_type(kind, name, values.shape, shape), rows, shift)


def _neighbours(rows: int, heads: int) -> np.ndarray:
    """Return the order of rows in which the two values that are rotated together stand side by side in each head."""
    return np.arange(rows).reshape(heads, 2, -1).swapaxes(1, 2).ravel()


def _stored_bytes(tensor: _Tensor) -> int:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    values, size = GGML_QUANT_SIZES[GGMLQuantizationType[tensor.type]]
    return tensor.values.size // values * size


def _write_header(
    target: Path,
    architecture: str,
    kind: str,
    general: Mapping[str, str],
    settings: Mapping[str, Any],
    vocabulary: Vocabulary,
    tensors: Mapping[str, _Tensor],
) -> None:
    """Write all but the tensors' data."""
    from gguf import GGML_QUANT_VERSION, GGMLQuantizationType, GGUFWriter, LlamaFileType

    logging.getLogger("gguf").setLevel(logging.WARNING)
    writer = GGUFWriter(target, architecture)
    file_type = LlamaFileType["ALL_F32" if kind == "f32" else f"MOSTLY_{kind.upper()}"]
    values = {
        **{f"general.{key}": value for key, value in general.items()},
        "general.file_type": int(file_type),
        "general.quantization_version": GGML_QUANT_VERSION,
        **{f"{architecture}.{key}": value for key, value in settings.items()},
    }
    for key, value in values.items():
        _add(writer, key, value)
    if vocabulary.tokens:
        writer.add_token_list(vocabulary.tokens)
        writer.add_token_types(vocabulary.types)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges is not None:
        writer.add_token_merges(vocabulary.merges)
    for key, value in vocabulary.settings.items():
        if isinstance(value, list):
            writer.add_chat_template(value)
        else:
            _add(writer, f"tokenizer.{key}", value)
    for name, tensor in tensors.items():
        writer.add_tensor_info(
            name, tensor.values.shape, np.dtype(np.float32), _stored_bytes(tensor), GGMLQuantizationType[tensor.type]
        )
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()


def _add(writer: Any, key: str, value: int | float | str | bool) -> None:
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    add[type(value)](key, value)


def _append_tensors(target: Path, tensors: Mapping[str, _Tensor], encode: Callable[[np.ndarray, str], bytes]) -> None:
    """Write the data of the tensors, each at a multiple of the alignment."""
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with target.open("ab") as stream, ThreadPoolExecutor(workers) as pool:

        def pad() -> None:
            stream.write(bytes(-stream.tell() % _ALIGNMENT))

        for name, tensor in tensors.items():
            pad()
            blocks = list(_blocks(tensor.values.shape))
            for start in range(0, len(blocks), workers):  # not all at once, for the sake of memory
                parts = blocks[start : start + workers]
                for data in pool.map(lambda part, of=tensor, name=name: encode(_block(name, of, part), of.type), parts):
                    stream.write(data)
        pad()


def _blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Yield slices of a tensor's first dimension."""
    step = max(1, _BLOCK_VALUES // max(1, int(np.prod(shape[1:]))))
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


def _block(name: str, tensor: _Tensor, part: slice) -> np.ndarray:
    """Return rows of a tensor as they are written, in float32.

    Raises:
        UserError: Its type cannot store them.
    """
    rows = tensor.values[part] if tensor.rows is None else tensor.values[tensor.rows[part]]
    values = as_float32(rows) + np.float32(tensor.shift)
    largest = np.finfo(np.float16 if tensor.type == "F16" else np.float32).max
    if not np.abs(values).max() <= largest:
        raise UserError(f"{name} holds numbers that {tensor.type} cannot store", "use bf16, or copy the model again")
    return values


def _encoder(kind: str) -> Callable[[np.ndarray, str], bytes]:
    """Return what turns float32 rows into the bytes of a type.

    Raises:
        UserError: The kind is unknown, or it needs llama.cpp, which is not installed.
    """
    from gguf import GGMLQuantizationType, quantize

    if kind not in KINDS:
        raise UserError(f"unknown kind {kind!r}", f"kinds: {', '.join(KINDS)}")

    def whole(rows: np.ndarray, stored: str) -> bytes:
        return quantize(rows, GGMLQuantizationType[stored]).tobytes()

    if kind in WHOLE:
        return whole
    from adapters.llama_library import load_library

    library = load_library()

    def quantised(rows: np.ndarray, stored: str) -> bytes:
        if stored == "F32":
            return whole(rows, stored)
        return _quantised(library, rows, GGMLQuantizationType[stored])

    return quantised


def _quantised(library: ctypes.CDLL, rows: np.ndarray, stored: int) -> bytes:
    """Return rows as ggml's quantiser stores them."""
    import ctypes

    source = np.ascontiguousarray(rows)
    count, width = source.shape
    result = np.empty(count * library.ggml_row_size(stored, width), dtype=np.uint8)
    pointer = source.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    library.ggml_quantize_chunk(stored, pointer, result.ctypes.data, 0, count, width, None)
    return result.tobytes()
