"""A GGUF file to an ordinary transformers directory."""

from __future__ import annotations

from pathlib import Path


def convert_gguf(file: Path, target: Path) -> None:
    """Write the file's weights, dequantised to bfloat16, its configuration and its tokenizer.

    Args:
        file: The GGUF file.
        target: An existing empty directory.
    """
    import torch
    from transformers import AutoTokenizer, Gemma3ForCausalLM, GgufConfig

    from harness.quiet import quiet_libraries

    with quiet_libraries():
        model = Gemma3ForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
        model.save_pretrained(target)
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(target)
