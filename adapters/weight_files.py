"""Which files of a directory are the model's weights, decided once for every backend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from adapters.base import UserError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# How the tensors of a text decoder are named in a model that has other parts too -> in the text model alone.
TEXT_PREFIXES = {
    "language_model.model.": "model.",
    "model.language_model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "lm_head.": "lm_head.",
}
_FLOATS: dict[str, Any] = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
# Pickles run code when they are loaded.
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def weight_files(model_dir: Path) -> list[Path]:
    """Return the safetensors files that hold the model: those of the index, else model.safetensors.

    Libraries disagree about directories that hold more than one model's files: transformers takes model.safetensors
    before an index, mlx-lm adds up every model*.safetensors. So a directory is refused unless it is clear.

    Raises:
        UserError: No weights, a file that the index names is missing, or files of two models.
    """
    single, index = model_dir / SINGLE, model_dir / INDEX
    others = sorted(path.name for path in model_dir.glob("model*.safetensors") if path.name != SINGLE)
    if index.is_file():
        named = _shards(index)
        missing = [name for name in named if not (model_dir / name).is_file()]
        if missing:
            raise UserError(f"{model_dir} lacks {missing[0]}, which {INDEX} names", "copy all files of the model")
        stray = [name for name in [*others, *([SINGLE] if single.is_file() else [])] if name not in named]
        if stray:
            raise UserError(
                f"{model_dir} holds {stray[0]} beside the files that {INDEX} names",
                "remove the files that are not the model's",
            )
        return [model_dir / name for name in named]
    if single.is_file():
        if others:
            raise UserError(
                f"{model_dir} holds {others[0]} beside {SINGLE}", "remove the files that are not the model's"
            )
        return [single]
    if others:
        raise UserError(f"{model_dir} holds {others[0]} but no {INDEX}", "copy all files of the model")
    return _without_usual_name(model_dir)


def _shards(index: Path) -> list[str]:
    """Return the names of the files that an index lists."""
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{index} is no index of weights", "copy the model again") from error
    return sorted(names)


def _without_usual_name(model_dir: Path) -> list[Path]:
    """Raise the error for a directory without model.safetensors."""
    found = sorted(path.name for path in model_dir.glob("*.safetensors"))
    if found:
        raise UserError(f"{model_dir} holds {found[0]}, but no {SINGLE}", f"rename it, if it is the model: {SINGLE}")
    pickles = sorted(path.name for pattern in _PICKLES for path in model_dir.glob(pattern))
    if pickles:
        raise UserError(
            f"{model_dir} has no weights in safetensors", f"{pickles[0]} is a pickle, which is never loaded: convert it"
        )
    raise UserError(f"{model_dir} has no weights (*.safetensors)", "copy the weights beside config.json")


def check_tied_head(model_dir: Path, tied: bool) -> None:
    """Refuse a model whose output matrix is stored apart and differs, though its configuration says that it is tied.

    transformers would take the stored one, mlx-lm that of the input for most models.

    Args:
        model_dir: A model directory.
        tied: `tie_word_embeddings` of the text decoder's configuration.

    Raises:
        UserError: As said, or as `tensor_headers`.
    """
    names = text_headers(model_dir) if tied else {}
    heads = [name for name in names if name.endswith("lm_head.weight")]
    inputs = [name for name in names if name.endswith(("embed_tokens.weight", "wte.weight", "embed_in.weight"))]
    if len(heads) == len(inputs) == 1 and _content(model_dir, heads[0]) != _content(model_dir, inputs[0]):
        raise UserError(
            f"{model_dir} has a {heads[0]} of its own, but its config.json ties the output to the input matrix",
            'write "tie_word_embeddings": false into config.json, if this head is meant',
        )


def _content(model_dir: Path, name: str) -> bytes:
    """Return a tensor's content as it is stored."""
    for file in weight_files(model_dir):
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            entry = json.loads(stream.read(length)).get(name)
            if entry:
                start, end = entry["data_offsets"]
                stream.seek(8 + length + start)
                return stream.read(end - start)
    raise KeyError(name)


def text_headers(model_dir: Path) -> dict[str, Any]:
    """Return `tensor_headers` of the text decoder alone, without a vision tower and the like."""
    headers = tensor_headers(model_dir)
    config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    if not isinstance(config.get("text_config"), dict):
        return headers
    return {name: header for name, header in headers.items() if name.startswith(tuple(TEXT_PREFIXES))}


def tensor_headers(model_dir: Path) -> dict[str, Any]:
    """Return dtype, shape and data_offsets of every tensor by name, from the headers alone.

    Raises:
        UserError: As `weight_files`, or a file is damaged.
    """
    return {name: entry for file in weight_files(model_dir) for name, entry in _file_headers(file)[0].items()}


def _file_headers(file: Path) -> tuple[dict[str, Any], int]:
    """Return the headers of a file's tensors, and where in it their data start.

    Raises:
        UserError: The file is damaged.
    """
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > file.stat().st_size:
                raise ValueError("the header is longer than the file")
            found = json.loads(stream.read(length))
            found.pop("__metadata__", None)
        ends = max((entry["data_offsets"][1] for entry in found.values()), default=0)
        if 8 + length + ends != file.stat().st_size:
            raise ValueError("its size differs from what its header says")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is damaged or incomplete: {error}", "copy the model again") from error
    return found, 8 + length


def stored_tensors(model_dir: Path) -> dict[str, np.ndarray]:
    """Map the text decoder's tensors into memory, by their names in the text model alone.

    Returns:
        Name -> array in the type that is stored: float32, float16, or for bfloat16 its bits as uint16.

    Raises:
        UserError: As `tensor_headers`, or a tensor is of another type.
    """
    names = set(text_headers(model_dir))
    found = {}
    for file in weight_files(model_dir):
        headers, start = _file_headers(file)
        content = np.memmap(file, mode="r", dtype=np.uint8)
        for name in names & headers.keys():
            dtype, (first, last) = headers[name]["dtype"], headers[name]["data_offsets"]
            if dtype not in _FLOATS:
                raise UserError(f"{file} stores {name} as {dtype}", "name a model whose weights are not quantised")
            values = content[start + first : start + last].view(_FLOATS[dtype]).reshape(headers[name]["shape"])
            found[_text_name(name)] = values
    return found


def as_float32(stored: np.ndarray) -> np.ndarray:
    """Return an array of `stored_tensors` in float32."""
    if stored.dtype == np.uint16:
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32)


def _text_name(name: str) -> str:
    prefix = next((prefix for prefix in TEXT_PREFIXES if name.startswith(prefix)), "")
    return TEXT_PREFIXES.get(prefix, "") + name.removeprefix(prefix)
