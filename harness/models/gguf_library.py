"""Convert GGUF files of any architecture that transformers reads, guarding what its reader leaves out.

transformers takes the settings that it knows from the header and drops the rest without a word. What is dropped here is
either taken over, known to change nothing, or refused.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from adapters.base import library_errors
from adapters.gguf_facts import CUTS, FREQUENCIES, IGNORE_MERGES, SINGLE_DIGITS, llama3_factors
from adapters.gguf_file import Header, gemma_query_scalar, read_tensor
from harness.errors import UserError
from harness.quiet import quiet_libraries

# Settings that transformers' reader does not take for every architecture -> field of the configuration.
_FIELDS = {
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "attention.scale": "attention_multiplier",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "logit_scale": "logit_scale",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
}
# Settings that change no number, or repeat the shapes of tensors.
_NEUTRAL = (
    "expert_feed_forward_length",
    "expert_shared_feed_forward_length",
    "rope.scaling.finetuned",
    "tensor_data_layout",
    "vocab_size",
)
# Llama 3's scaling of positions, which GGUF stores as a factor for each frequency (rope_freqs.weight).
_LLAMA3: dict[str, Any] = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_OTHER = "name a transformers or MLX directory of the model"


def convert_with_transformers(file: Path, header: Header, target: Path) -> None:
    """Write the file's weights, dequantised to bfloat16, its configuration and its tokenizer.

    Args:
        file: The GGUF file.
        header: Of this file.
        target: An existing empty directory.

    Raises:
        UserError: transformers does not read this architecture from GGUF, or the file holds settings that it would
            compute without.
    """
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    architecture = header.values.get("general.architecture")
    where = _where(file)
    config = _config(file, header)
    _take_over(file, header, str(architecture), config)
    with quiet_libraries(), library_errors(f"transformers cannot read the {architecture} model in {file}", _OTHER):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            **where,
            config=config,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
        )
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"{file} lacks {len(missing)} weights, {missing[0]} among them", "copy the file again")
    read = {FREQUENCIES, *_tensors_read(model, str(architecture))}
    # Experts go by other names; one that were left out would be missed in the model.
    if unread := sorted(name for name in header.tensors if name not in read and "_exps" not in name):
        raise UserError(f"{file} has tensors that transformers would leave out, {unread[0]} among them", _OTHER)
    model.save_pretrained(target)
    _save_tokenizer(file, header, target)


def describe_with_transformers(file: Path, header: Header, target: Path) -> None:
    """Write the file's configuration and tokenizer.

    Raises:
        UserError: transformers does not read this architecture from GGUF.
    """
    _config(file, header).save_pretrained(target)
    _save_tokenizer(file, header, target)


def _where(file: Path) -> dict[str, Any]:
    return {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}


def _config(file: Path, header: Header) -> Any:
    from transformers import AutoConfig

    with library_errors(
        f"transformers cannot read the {header.values['general.architecture']} model in {file}", _OTHER
    ):
        return AutoConfig.from_pretrained(**_where(file))


def _save_tokenizer(file: Path, header: Header, target: Path) -> None:
    from transformers import AutoTokenizer

    architecture = header.values["general.architecture"]
    with (
        quiet_libraries(),
        library_errors(f"transformers cannot read the tokenizer of {architecture} in {file}", _OTHER),
    ):
        tokenizer = AutoTokenizer.from_pretrained(**_where(file))
    _mend_tokenizer(file, header, tokenizer)
    tokenizer.save_pretrained(target)


def _take_over(file: Path, header: Header, architecture: str, config: Any) -> None:
    """Add to a configuration what transformers' reader left out of it.

    Raises:
        UserError: A setting or tensor of the file changes the computation in a way that is not known here.
    """
    prefix = f"{architecture}."
    found = {key.removeprefix(prefix): value for key, value in header.values.items() if key.startswith(prefix)}
    read = _read_by_transformers(architecture)
    scaling = {key: found.pop(key) for key in sorted(found) if key.startswith("rope.scaling.") and key not in _NEUTRAL}
    for key, value in found.items():
        field = _FIELDS.get(key)
        if field and hasattr(config, field):
            setattr(config, field, value or getattr(config, field))  # 0: not set
        elif not (key in read or key in _NEUTRAL or _says_the_same(key, value, config)):
            raise UserError(f"{file} has a setting that transformers would ignore: {prefix}{key} = {value}", _OTHER)
    if architecture == "gemma2":
        config.query_pre_attn_scalar = gemma_query_scalar(config.to_dict())
    _scale_positions(file, header, scaling, config)
    refuse_long_factors(file, header)


def refuse_long_factors(file: Path, header: Header) -> None:
    """Refuse positions scaled by factors that depend on the length of the text, as Phi-3's long contexts have.

    Raises:
        UserError: The file holds such factors.
    """
    factors = sorted(name for name in header.tensors if name.startswith("rope_factors"))
    if factors:
        raise UserError(f"{file} scales its positions by {factors[0]}, which is not supported", _OTHER)


def _read_by_transformers(architecture: str) -> set[str]:
    from transformers.modeling_gguf_pytorch_utils import GGUF_TO_TRANSFORMERS_MAPPING

    names = GGUF_TO_TRANSFORMERS_MAPPING["config"].get(architecture.replace("-", "_"), {})
    return {key for key, field in names.items() if field is not None}


def _mend_tokenizer(file: Path, header: Header, tokenizer: Any) -> None:
    """Let a tokenizer cut texts, and put BOS in front, as the file says; transformers' reader does not heed that.

    Raises:
        UserError: The file names a way of cutting that is not known here.
    """
    from tokenizers import Regex, decoders, pre_tokenizers

    kind, cut = (header.values.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    backend = tokenizer.backend_tokenizer
    if kind == "gpt2":
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=CUTS.get(str(cut)) is None)
        if cut in SINGLE_DIGITS:
            before: list[Any] = [pre_tokenizers.Digits(individual_digits=True)]
        elif cut not in CUTS:
            raise UserError(f"{file} cuts texts in a way that is not known here: tokenizer.ggml.pre = {cut}", _OTHER)
        else:
            before = [pre_tokenizers.Split(Regex(str(CUTS[cut])), "isolated")] if CUTS[cut] else []
        backend.pre_tokenizer = pre_tokenizers.Sequence([*before, byte_level])
        backend.model.ignore_merges = cut in IGNORE_MERGES
    elif kind == "llama" and not header.values.get("tokenizer.ggml.add_space_prefix", True):
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
        backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    put_bos(tokenizer, header.values.get("tokenizer.ggml.add_bos_token", kind == "llama" or cut in IGNORE_MERGES))


def put_bos(tokenizer: Any, wanted: bool) -> None:
    """Let a tokenizer put BOS before a text, or nothing."""
    from tokenizers.processors import TemplateProcessing

    bos = f"{tokenizer.bos_token} " if wanted and tokenizer.bos_token else ""
    special = [(tokenizer.bos_token, tokenizer.bos_token_id)] if bos else []
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos}$A", special_tokens=special)


def _tensors_read(model: Any, architecture: str) -> set[str]:
    """Return the names in GGUF of the tensors that transformers' reader gives to a model."""
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=model.config.to_dict())
    with library_errors(f"transformers knows no tensors of {architecture} models", _OTHER):
        return set(get_gguf_hf_weights_map(model, processor))


def _says_the_same(key: str, value: Any, config: Any) -> bool:
    """Return whether a setting is what the configuration has anyway, given or by default."""
    if key in ("attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon"):
        names = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon")
        there = next((getattr(config, name) for name in names if hasattr(config, name)), None)
        return there is not None and math.isclose(value, there, rel_tol=1e-5)
    same = {
        "attention.causal": True,
        "attention.key_length": _head_size(config),
        "attention.value_length": _head_size(config),
        "rope.dimension_count": _rotated(config),
        "use_parallel_residual": getattr(config, "use_parallel_residual", False),
    }
    return key in same and value == same[key]


def _head_size(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _rotated(config: Any) -> int:
    """Return how many values of a head are rotated by the position."""
    share = (getattr(config, "rope_parameters", None) or {}).get("partial_rotary_factor", 1.0)
    return int(_head_size(config) * share)


def _scale_positions(file: Path, header: Header, scaling: dict[str, Any], config: Any) -> None:
    kind = scaling.pop("rope.scaling.type", "none")
    if kind == "linear":
        _set_rope(config, rope_type="linear", factor=float(scaling["rope.scaling.factor"]))
    elif kind != "none":
        raise UserError(f"{file} scales its positions by {kind}, which is not supported", _OTHER)
    if FREQUENCIES in header.tensors:
        _set_rope(config, rope_type="llama3", **_LLAMA3, factor=_llama3_factor(file, header, config))


def _set_rope(config: Any, **scaling: Any) -> None:
    config.rope_parameters = {**config.rope_parameters, **scaling}


def _llama3_factor(file: Path, header: Header, config: Any) -> float:
    """Return the factor of Llama 3's scaling from which the stored ones follow.

    Raises:
        UserError: They follow from none.
    """
    stored = read_tensor(file, header, FREQUENCIES)
    factor = float(stored.max())
    expected = llama3_factors(_rotated(config), config.rope_parameters["rope_theta"], factor, *_LLAMA3.values())
    if not np.allclose(stored, expected, rtol=1e-4):
        raise UserError(f"{file} scales its positions by {FREQUENCIES} in a way that is not known", _OTHER)
    return factor
