"""Convert a GGUF file to an ordinary transformers directory: Gemma-3's here, others through transformers' own reader.

`Gemma3ForCausalLM.from_pretrained(gguf_file=...)` gives the same weights and configuration in a minute: it parses the
header, which holds 262,144 tokens, three times in Python. Here the header is read once, and its arrays are skipped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from adapters.gguf_file import ArrayLength, Header, gemma_query_scalar, read_header, read_tensor
from harness.errors import UserError

ARCHITECTURE = "gemma3"
_NO_LANGUAGE_MODELS = ("clip", "mmproj")
_PERIOD = 6
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
    "gemma3.rope.freq_base_swa": "rope_local_base_freq",
    "gemma3.final_logit_softcapping": "final_logit_softcapping",
    "gemma3.vocab_size": "vocab_size",
    "tokenizer.ggml.bos_token_id": "bos_token_id",
    "tokenizer.ggml.eos_token_id": "eos_token_id",
    "tokenizer.ggml.unknown_token_id": "unk_token_id",
    "tokenizer.ggml.padding_token_id": "pad_token_id",
}


def convert_gguf(file: Path, target: Path) -> None:
    """Write the file's weights, dequantised to bfloat16, its configuration and its tokenizer.

    Args:
        file: The GGUF file.
        target: An existing empty directory.

    Raises:
        UserError: A damaged file, or a model that cannot be computed as it is meant.
    """
    header = _model_header(file)
    if _count(header) > 1:
        raise UserError(
            f"{file} is one of {_count(header)} parts of a model, which only llama.cpp reads",
            "use --backend gguf, or join the parts with `llama-gguf-split --merge`",
        )
    if header.values["general.architecture"] == ARCHITECTURE:
        _convert_gemma3(file, header, target)
    else:
        from harness.models.gguf_library import convert_with_transformers

        convert_with_transformers(file, header, target)
    _write_licence(header, target)


def describe_gguf(file: Path, target: Path) -> None:
    """Write the file's configuration and tokenizer, for a backend that reads the weights from the file itself.

    Raises:
        UserError: As `convert_gguf`, or the file is not the first part of a model.
    """
    header = _model_header(file)
    if header.values["general.architecture"] == ARCHITECTURE:
        _configuration(file, header).save_pretrained(target)
        _save_gemma_tokenizer(file, header, target)
    else:
        from harness.models.gguf_library import describe_with_transformers, refuse_long_factors

        refuse_long_factors(file, header)
        describe_with_transformers(file, header, target)
    _write_licence(header, target)


def _model_header(file: Path) -> Header:
    header = read_header(file)
    if header.values.get("general.architecture") in _NO_LANGUAGE_MODELS:
        raise UserError(f"{file} holds the vision part of a model, which writes no text", "name the model's other file")
    if "general.architecture" not in header.values:
        raise UserError(f"{file} names no architecture", "name the file of a language model")
    if "tokenizer.ggml.tokens" not in header.values:
        raise UserError(f"{file} holds no tokenizer", "name another file")
    return header


def _count(header: Header) -> int:
    """Return of how many files the model consists."""
    return header.values.get("split.count", 1)


def _write_licence(header: Header, target: Path) -> None:
    if licence := header.values.get("general.license"):
        (target / "README.md").write_text(f"---\nlicense: {licence}\n---\n", encoding="utf-8")


def _convert_gemma3(file: Path, header: Header, target: Path) -> None:
    import torch
    from transformers import Gemma3ForCausalLM

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
    _save_gemma_tokenizer(file, header, target)


def _save_gemma_tokenizer(file: Path, header: Header, target: Path) -> None:
    from transformers import GemmaTokenizer

    from harness.models.gguf_library import put_bos
    from harness.quiet import quiet_libraries

    with quiet_libraries():
        tokenizer = GemmaTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    if header.values.get("tokenizer.ggml.model") == "gemma4":  # for which transformers' reader forgets the BOS
        put_bos(tokenizer, header.values.get("tokenizer.ggml.add_bos_token", True))
    tokenizer.save_pretrained(target)


def _configuration(file: Path, header: Header) -> Any:
    """Return the Gemma3TextConfig that the header describes."""
    from transformers import Gemma3TextConfig

    fields = {field: header.values[key] for key, field in _CONFIG_FIELDS.items() if key in header.values}
    fields["layer_types"] = _layer_types(file, header)
    fields["query_pre_attn_scalar"] = gemma_query_scalar(fields)
    fields.setdefault("vocab_size", header.values["tokenizer.ggml.tokens"])
    kind = header.values.get("gemma3.rope.scaling.type", "none")
    if kind == "linear":
        fields["rope_scaling"] = {"rope_type": "linear", "factor": header.values["gemma3.rope.scaling.factor"]}
    elif kind != "none":
        raise UserError(f"{file} scales its positions by {kind}, which is not supported", "name another file")
    return Gemma3TextConfig.from_dict({**fields, "tie_word_embeddings": "output.weight" not in header.tensors})


def _layer_types(file: Path, header: Header) -> list[str]:
    """Return which layers see all tokens, and which a window: all but every sixth, unless the file says more."""
    period = header.values.get(f"{ARCHITECTURE}.attention.sliding_window_pattern", _PERIOD)
    if isinstance(period, ArrayLength):
        raise UserError(
            f"{file} names the layers with a window one by one, which is not supported", "name another file"
        )
    if not header.values.get(f"{ARCHITECTURE}.attention.sliding_window"):
        period = 1
    layers = range(1, header.values[f"{ARCHITECTURE}.block_count"] + 1)
    return ["sliding_attention" if period == 0 or layer % period else "full_attention" for layer in layers]


def _weights(file: Path, header: Header, config: Any) -> dict[str, Any]:
    """Return transformers' names -> tensors in bfloat16."""
    import torch
    from gguf import MODEL_ARCH, get_tensor_name_map
    from transformers import Gemma3ForCausalLM

    with torch.device("meta"):
        names = list(Gemma3ForCausalLM(config).state_dict())
    known = get_tensor_name_map(MODEL_ARCH.GEMMA3, config.num_hidden_layers)
    weights = {}
    for name in names:
        module, _, suffix = name.rpartition(".")
        stored = f"{known.get_name(module)}.{suffix}"
        if stored not in header.tensors:
            continue
        values = read_tensor(file, header, stored)
        if name.endswith("norm.weight"):
            values = values - 1  # llama.cpp stores the factor, transformers its difference from 1
        weights[name] = torch.from_numpy(np.require(values, requirements="W")).to(torch.bfloat16)
    return weights
