"""Small random language models of many architectures, with the tokenizer of `tests/tiny_gemma.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.tiny_gemma import VOCABULARY_SIZE, make_tiny_tokenizer

WINDOW = 16  # of the models with sliding windows
CONTEXT = 4096

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
_EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 64}
_LAYERS = ["sliding_attention", "full_attention"] * 2
# transformers' name -> fields of its configuration that differ from the common ones. What is special is named: windows,
# soft-capping, scaled or biased logits, experts, recurrent layers, positions that are learned or added as a bias.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bloom": {"n_layer": 4, "n_head": 4},
    "cohere": {"logit_scale": 0.3},
    "cohere2": {"sliding_window": WINDOW},
    "falcon": {"head_dim": None},
    "gemma": {},
    "gemma2": {"sliding_window": WINDOW, "query_pre_attn_scalar": 16},
    "gemma3_text": {"sliding_window": WINDOW, "layer_types": _LAYERS, "query_pre_attn_scalar": 16},
    "gemma4_text": {
        "sliding_window": WINDOW,
        "layer_types": _LAYERS,
        "hidden_size_per_layer_input": 16,
        "vocab_size_per_layer_input": VOCABULARY_SIZE,
        "final_logit_softcapping": 10.0,
    },
    "gpt2": {"n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": CONTEXT},
    "gpt_neox": {},
    "gpt_oss": {"sliding_window": WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2},
    "granite": {"logits_scaling": 4.0, "embedding_multiplier": 2.0, "attention_multiplier": 0.3},
    "llama": {},
    "mamba": {"state_size": 8},
    "mistral": {"sliding_window": WINDOW},
    "mixtral": {"num_local_experts": 4},
    "olmo2": {},
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "phi": {},
    "phi3": {"sliding_window": WINDOW},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": {"num_experts": 4, **_EXPERTS},
    "qwen3_next": {
        "num_experts": 4,
        **_EXPERTS,
        "shared_expert_intermediate_size": 64,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    },
    "smollm3": {},
    "stablelm": {},
}


def make_tiny_gemma_with_vision(directory: Path) -> Path:
    """Write a random Gemma-3 with a vision tower and a tokenizer, and return the directory."""
    import torch
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = {**_COMMON, **ARCHITECTURES["gemma3_text"], "num_hidden_layers": 6, "initializer_range": 0.2}
    text["layer_types"] = ["sliding_attention"] * 5 + ["full_attention"]  # the only layout that mlx-lm knows
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    torch.manual_seed(0)
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=511)
    Gemma3ForConditionalGeneration(config).save_pretrained(directory)
    make_tiny_tokenizer().save_pretrained(directory)
    return directory


def make_tiny_model(architecture: str, directory: Path, *, dtype: str = "float32", **fields: Any) -> Path:
    """Write a random model and a tokenizer, and return the directory.

    Args:
        architecture: A key of `ARCHITECTURES`.
        directory: Where to write; made if missing.
        dtype: Type of the stored weights.
        fields: Further fields of transformers' configuration.
    """
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    given = {**_COMMON, **ARCHITECTURES[architecture], **fields}
    settings = {name: value for name, value in given.items() if value is not None}
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(CONFIG_MAPPING[architecture](initializer_range=0.2, **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases, which start at one or zero
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.to(getattr(torch, dtype)).save_pretrained(directory)
    make_tiny_tokenizer().save_pretrained(directory)
    return directory
