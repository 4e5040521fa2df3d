"""Which files of a directory are the model: one answer for every backend, or a refusal that names a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

from adapters.base import UserError
from adapters.mlx_backend import load_mlx
from adapters.torch_backend import load_torch
from adapters.weight_files import INDEX, SINGLE, as_float32, stored_tensors, tensor_headers, weight_files
from tests.tiny_models import make_tiny_model

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def write(directory: Path, *names: str) -> None:
    for name in names:
        save_file({name: np.zeros(3, dtype=np.float32)}, directory / name)


def write_index(directory: Path) -> None:
    (directory / INDEX).write_text(json.dumps({"weight_map": {"a": FIRST, "b": SECOND}}))


def test_a_single_file_is_the_model_whatever_adapters_and_heads_lie_beside_it(tmp_path):
    write(tmp_path, SINGLE, "adapter_model.safetensors", "heads.safetensors")
    assert weight_files(tmp_path) == [tmp_path / SINGLE]


def test_an_index_names_the_files(tmp_path):
    write(tmp_path, FIRST, SECOND)
    write_index(tmp_path)
    assert weight_files(tmp_path) == [tmp_path / FIRST, tmp_path / SECOND]
    assert set(tensor_headers(tmp_path)) == {FIRST, SECOND}


@pytest.mark.parametrize(
    ("files", "index", "said"),
    [
        ((FIRST,), True, f"lacks {SECOND}"),
        ((FIRST, SECOND, SINGLE), True, f"{SINGLE} beside the files"),
        ((FIRST, SECOND), False, f"no {INDEX}"),
        ((SINGLE, FIRST), False, f"{FIRST} beside {SINGLE}"),
        (("weights.safetensors",), False, "rename it"),
        ((), False, "no weights"),
    ],
)
def test_anything_unclear_is_refused(tmp_path, files, index, said):
    write(tmp_path, *files)
    if index:
        write_index(tmp_path)
    with pytest.raises(UserError) as refused:
        weight_files(tmp_path)
    assert said in str(refused.value)


def test_pickles_are_named_and_never_loaded(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"pytorch_model\.bin is a pickle"):
        weight_files(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", '{"weight_map": 1}'])
def test_a_damaged_index_is_a_line(tmp_path, content):
    write(tmp_path, FIRST)
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(UserError, match="no index of weights"):
        weight_files(tmp_path)


@pytest.mark.parametrize("kept", [4, 30, -2])
def test_half_a_file_is_a_line(tmp_path, kept):
    write(tmp_path, SINGLE)
    (tmp_path / SINGLE).write_bytes((tmp_path / SINGLE).read_bytes()[:kept])
    with pytest.raises(UserError, match="damaged or incomplete"):
        tensor_headers(tmp_path)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("load", [load_torch, load_mlx])
def test_a_head_of_its_own_in_a_tied_model_is_refused(load: Any, architecture: str, tmp_path: Path) -> None:
    """transformers would take this head, mlx-lm the input's matrix."""
    model_dir = make_tiny_model(architecture, tmp_path / "tied", tie_word_embeddings=True)
    tensors = load_file(model_dir / "model.safetensors")
    [name] = [name for name in tensors if name.endswith(("embed_tokens.weight", "wte.weight"))]
    tensors["lm_head.weight"] = tensors[name].copy()
    save_file(tensors, model_dir / "model.safetensors", metadata={"format": "pt"})
    arguments = {"device": "cpu"} if load is load_torch else {}
    if (load, architecture) != (load_mlx, "gpt2"):  # which mlx-lm does not read in this form
        load("same", model_dir, dtype="float32", **arguments)
    tensors["lm_head.weight"][5] += 1
    save_file(tensors, model_dir / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"a lm_head\.weight of its own"):
        load("other", model_dir, dtype="float32", **arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensors_in_memory_are_those_that_were_stored(tmp_path, dtype):
    weights = {name: torch.randn(5, 3).to(dtype) for name in ("a", "b")}
    for name, file in (("a", FIRST), ("b", SECOND)):
        save_torch({"0": torch.zeros(1, dtype=torch.float16), name: weights[name]}, tmp_path / file)
    write_index(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    found = stored_tensors(tmp_path)
    for name, weight in weights.items():
        assert np.array_equal(as_float32(found[name]), weight.float().numpy())


def test_tensors_that_are_no_plain_numbers_are_refused(tmp_path):
    save_file({"packed": np.zeros(3, dtype=np.uint32)}, tmp_path / SINGLE)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="stores packed as U32"):
        stored_tensors(tmp_path)
