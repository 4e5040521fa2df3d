"""LoRA adapters that others trained, with peft or mlx_lm.lora: found, and fused with their base model.

Such a directory holds adapter_config.json and the low-rank matrices, adapter_model.safetensors (peft) or
adapters.safetensors (mlx_lm), alone or beside the files of the base model.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapters.base import library_errors
from adapters.low_rank import ADAPTER, ADAPTER_CONFIG
from adapters.mlx_weights import TOKENIZER_FILES
from harness.errors import UserError
from harness.files import remembered_hash

_MLX_WEIGHTS = "adapters.safetensors"
# How mlx_lm trained -> whether its tensors are low-rank matrices.
_MLX_KINDS = {"lora": True, "full": False}
_FUSE = "name the model that it was trained on, or run `mlx_lm.fuse` and name its result"


def is_adapter(directory: Path) -> bool:
    """Return whether a directory holds an adapter."""
    return (directory / ADAPTER_CONFIG).is_file()


def adapter_base(directory: Path) -> str:
    """Return the model that an adapter changes, as `--model` takes it.

    Raises:
        UserError: The adapter is damaged, or does not say.
    """
    if (directory / "config.json").is_file():
        return str(directory)
    config = _read_config(directory)
    base = config.get("base_model_name_or_path") or config.get("model")
    if not isinstance(base, str) or not base:
        raise UserError(
            f"{directory / ADAPTER_CONFIG} does not name the base model",
            "put the base model's files beside it, or its name under base_model_name_or_path",
        )
    return base


def adapter_fingerprint(directory: Path) -> str:
    """Return the SHA-256 over an adapter's configuration and matrices."""
    digest = hashlib.sha256((directory / ADAPTER_CONFIG).read_bytes())
    digest.update(remembered_hash(_weights_file(directory)).encode())
    return digest.hexdigest()


def fuse_adapter(directory: Path, base_dir: Path, target: Path) -> None:
    """Write the base model with the adapter in it, as an ordinary transformers directory.

    The product of the matrices is added in float32, then rounded to the type that the base model is stored in.

    Args:
        directory: Of the adapter.
        base_dir: Transformers directory of the base model; may be the same.
        target: An existing empty directory.

    Raises:
        UserError: The adapter does not fit the model, or is of an unknown kind.
    """
    import torch

    from adapters.architecture import read_architecture
    from adapters.torch_backend import load_weights
    from adapters.weight_files import INDEX, weight_files
    from harness.quiet import quiet_libraries

    with quiet_libraries(), tempfile.TemporaryDirectory() as scratch:
        # transformers would load an adapter that lies beside the model.
        for file in [base_dir / "config.json", base_dir / INDEX, *weight_files(base_dir)]:
            if file.exists():
                (Path(scratch) / file.name).symlink_to(file.resolve())
        model = load_weights(Path(scratch), read_architecture(base_dir), "auto")
        stored = model.dtype
        model = model.float()
        if (directory / ADAPTER).is_file():
            model = merge_peft(model, directory)
        else:
            _merge_mlx(model, directory)
        with torch.no_grad():
            model.to(stored).save_pretrained(target)
    copy_tokenizer(directory if (directory / "tokenizer.json").is_file() else base_dir, target)


def merge_peft(model: Any, directory: Path) -> Any:
    """Return the model (float32) with an adapter of peft merged into it.

    Raises:
        UserError: The adapter does not fit the model.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    hint = "name the base model that it was trained on"
    with library_errors(f"peft cannot put {directory} into this model", hint):
        wrapped = PeftModel.from_pretrained(model, directory)
        there = set(get_peft_model_state_dict(wrapped))
    with safe_open(directory / ADAPTER, "np") as file:
        unused = sorted(set(file.keys()) - there)
    if unused:
        raise UserError(f"the model has no place for {unused[0]} of {directory}", hint)
    return wrapped.merge_and_unload()


def _merge_mlx(model: Any, directory: Path) -> None:
    """Add an adapter of mlx_lm.lora to the model (float32), by the formulas of its `fuse`."""
    import torch
    from safetensors.torch import load_file

    config = _read_config(directory)
    kind = config.get("fine_tune_type", "lora")
    if kind not in _MLX_KINDS:
        raise UserError(f"{directory} is an adapter of the kind {kind}, which is not fused here", _FUSE)
    tensors = load_file(_weights_file(directory))
    modules = dict(model.named_modules())
    if not _MLX_KINDS[kind]:
        _replace(model, tensors, directory)
        return
    scale = float((config.get("lora_parameters") or {}).get("scale", 1.0))
    for name in sorted({key.rpartition(".")[0] for key in tensors}):
        module = modules.get(name)
        first, second = (tensors.get(f"{name}.{part}") for part in ("lora_a", "lora_b"))
        if first is None or second is None or module is None or first.ndim != 2:
            raise UserError(f"the model has no place for {name} of {directory}", _FUSE)
        change = scale * first.float() @ second.float()
        with torch.no_grad():
            # A linear layer's matrix is stored transposed, an embedding's is not.
            module.weight += change if isinstance(module, torch.nn.Embedding) else change.T


def _replace(model: Any, tensors: Mapping[str, Any], directory: Path) -> None:
    unknown = model.load_state_dict(tensors, strict=False).unexpected_keys
    if unknown:
        raise UserError(f"the model has no place for {unknown[0]} of {directory}", _FUSE)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the files of a tokenizer, and the settings of generation where the target has none."""
    for file in source.iterdir():
        settings = file.name == "generation_config.json" and not (target / file.name).exists()
        if settings or file.name.startswith(TOKENIZER_FILES):
            shutil.copyfile(file, target / file.name)


def _read_config(directory: Path) -> dict[str, Any]:
    try:
        config = json.loads((directory / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{directory / ADAPTER_CONFIG} is not valid JSON: {error}", "copy the adapter again") from error
    if not isinstance(config, dict):
        raise UserError(f"{directory / ADAPTER_CONFIG} is not an adapter's configuration", "copy the adapter again")
    return config


def _weights_file(directory: Path) -> Path:
    for name in (ADAPTER, _MLX_WEIGHTS):
        if (directory / name).is_file():
            return directory / name
    raise UserError(
        f"{directory} holds {ADAPTER_CONFIG}, but neither {ADAPTER} nor {_MLX_WEIGHTS}", "copy the adapter again"
    )
