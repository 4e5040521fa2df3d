"""Small random models of three architectures, made on the spot: no download, and nothing to agree on but the seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WINDOW = 16
_LETTERS = "абвгдежзийклмнопрстуфхцчшщъыьэюяabcdefghijklmnopqrstuvwxyz .,"
_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")
_COMMON: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
    # Answers differ from token to token, and no two tokens are about equally likely.
    "initializer_range": 0.2,
}
# Sliding windows and scaled embeddings; norms of queries and keys; a separate output matrix.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gemma3_text": {
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
        "query_pre_attn_scalar": 32,
    },
    "qwen3": {"tie_word_embeddings": True},
    "llama": {"tie_word_embeddings": False},
}


def make_random_model(architecture: str, directory: Path) -> Path:
    """Write a model and a tokenizer of single letters, and return the directory.

    Args:
        architecture: A key of `ARCHITECTURES`.
        directory: Where to write; made if missing.
    """
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(0)
    config = CONFIG_MAPPING[architecture](**{**_COMMON, **ARCHITECTURES[architecture]})
    model: Any = AutoModelForCausalLM.from_config(config)
    model.to(torch.bfloat16).save_pretrained(directory)
    _letters_tokenizer().save_pretrained(directory)
    return directory


def _letters_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, processors
    from transformers import PreTrainedTokenizerFast

    tokens = [*_SPECIAL, *_LETTERS]
    tokens += [chr(0x4E00 + number) for number in range(_COMMON["vocab_size"] - len(tokens))]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.add_special_tokens(list(_SPECIAL))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )
