"""A small random Gemma-3 with a tokenizer, for tests that need a real model directory within a second.

The vocabulary covers Russian letters and printable ASCII, the rest goes by byte fallback as in Gemma's own tokenizer;
" да", " нет", " Да" and " Нет" are single tokens, as they are there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

SPECIAL_TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]  # ids 0 to 5
WHOLE_WORDS = ["▁да", "▁нет", "▁Да", "▁Нет"]
VOCABULARY_SIZE = 512
# The shape of Gemma-3's own chat template: it writes the BOS itself and calls the assistant "model". A model has it in
# chat_template.jinja.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>"
    "{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n{{ message['content'] | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def make_tiny_gemma(directory: Path | str, *, seed: int = 0, **config_overrides: Any) -> Path:
    """Writes a Gemma3ForCausalLM checkpoint (configuration, safetensors, tokenizer) and returns its directory.

    Eight layers with a sliding window of 16 tokens, every third one global. The weights are random, large enough for
    the log-probabilities to differ by several nats, and exact in bfloat16, so that a load in float32 and one in
    bfloat16 start from the same numbers.

    Args:
        directory: where to write; made if missing.
        seed: of the weights.
        config_overrides: fields of transformers' Gemma3TextConfig; `dtype` is the type that the weights are stored in
            ("bfloat16" by default). `layer_types` follows `num_hidden_layers` and `sliding_window_pattern` (3).
    """
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    directory = Path(directory)
    layers = config_overrides.get("num_hidden_layers", 8)
    pattern = config_overrides.pop("sliding_window_pattern", 3)
    dtype = config_overrides.pop("dtype", "bfloat16")
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY_SIZE,
        # MLX rounds the embeddings' factor sqrt(hidden size) to bfloat16, transformers to the type of the weights.
        # sqrt(64) = 8 is exact in both, so that differences of the two libraries are real ones.
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "sliding_window": 16,
        "layer_types": ["sliding_attention" if (i + 1) % pattern else "full_attention" for i in range(layers)],
        "max_position_embeddings": 1024,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        **config_overrides,
    }
    model = Gemma3ForCausalLM(Gemma3TextConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # norms: Gemma multiplies by 1 + weight
                scale = 0.2
            elif "embed_tokens" in name or "lm_head" in name:
                scale = 0.3  # logits then have a standard deviation of about 0.3 * sqrt(hidden size) = 2.4 nats
            else:
                scale = 1.5 / parameter.shape[-1] ** 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
            if "layernorm" in name and "post_" in name:
                parameter.add_(4.0)  # layers outweigh the token's own embedding; else greedy decoding repeats one token
    model.to(torch.bfloat16).to(getattr(torch, dtype)).save_pretrained(directory)
    make_tiny_tokenizer().save_pretrained(directory)
    return directory


def make_tiny_tokenizer() -> Any:
    """A tokenizer in the manner of Gemma's: byte-pair encoding, spaces as "▁", byte fallback, <bos> in front."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens = SPECIAL_TOKENS + [f"<0x{byte:02X}>" for byte in range(256)] + ["▁", "\n"]
    tokens += [chr(code) for code in range(33, 127)]
    tokens += [chr(code) for code in range(ord("А"), ord("я") + 1)] + ["Ё", "ё"]
    merges: list[tuple[str, str]] = []
    for word in WHOLE_WORDS:
        for end in range(2, len(word) + 1):
            merge = (word[: end - 1], word[end - 1])
            if merge not in merges:
                merges.append(merge)
                tokens.append(word[:end])
    tokens += [f"<unused{i}>" for i in range(VOCABULARY_SIZE - len(tokens))]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
