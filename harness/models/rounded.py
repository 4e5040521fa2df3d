"""A model whose weights are rounded as MLX stores them: what an adapter that stays beside them is trained on."""

from __future__ import annotations

from pathlib import Path

from adapters.mlx_weights import dequantized_state, ensure_mlx_model
from harness.files import cached_directory
from harness.models.lora import copy_tokenizer
from harness.quiet import quiet_libraries


def write_rounded(base_dir: Path, bits: int, fingerprint: str, target: Path) -> None:
    """Write a model whose matrices hold what MLX computes with after quantising them, in the base model's type.

    Args:
        base_dir: Transformers directory of the model.
        bits: Of MLX's quantisation, which is otherwise the usual one.
        fingerprint: Of the model.
        target: An existing empty directory.
    """
    from adapters.architecture import read_architecture
    from adapters.torch_backend import load_weights

    made = ensure_mlx_model(base_dir, bits=bits, dtype="bfloat16", cached=cached_directory, fingerprint=fingerprint)
    with quiet_libraries():
        architecture = read_architecture(base_dir)
        stored = architecture.config.dtype or "bfloat16"
        model = load_weights(base_dir, architecture, stored, dict(dequantized_state(made)))
        model.save_pretrained(target)
    copy_tokenizer(base_dir, target)
