"""The settings of a model as llama.cpp reads them from a GGUF file, from transformers' configuration.

The keys are those of llama.cpp's own converter (conversion/*.py). What its graph of the architecture does not compute
is refused, since the file would be computed without it in silence.
"""

from __future__ import annotations

from typing import Any

from adapters.architecture import Architecture
from adapters.base import UserError
from adapters.gguf_facts import llama3_factors
from adapters.gguf_file import gemma_query_scalar
from adapters.gguf_types import ModelShape

# transformers' name of a text decoder -> llama.cpp's.
ARCHITECTURES = {"gemma3_text": "gemma3", "llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
_OTHER_CONVERTER = "convert it with llama.cpp's own convert_hf_to_gguf.py"
_ACTIVATIONS = {"gemma3": "gelu_pytorch_tanh"}
_USUAL_ACTIVATION = "silu"
# What llama.cpp takes where a Gemma-3 file says nothing else: every sixth layer sees all tokens, and the others rotate
# with this base.
_GEMMA_PERIOD, _GEMMA_LOCAL_BASE = 6, 10_000.0
# What the graphs of these architectures leave out.
_NOT_COMPUTED = ("attn_logit_softcapping", "use_bidirectional_attention")


def gguf_architecture(architecture: Architecture) -> str:
    """Return llama.cpp's name of an architecture.

    Raises:
        UserError: It is none of `ARCHITECTURES`.
    """
    if architecture.model_type not in ARCHITECTURES:
        raise UserError(
            f"GGUF files are written for {', '.join(ARCHITECTURES.values())} models, not for {architecture.model_type}",
            _OTHER_CONVERTER,
        )
    return ARCHITECTURES[architecture.model_type]


def model_shape(architecture: Architecture) -> ModelShape:
    """Return what the choice of types depends on."""
    config = architecture.config
    return ModelShape(
        architecture=gguf_architecture(architecture),
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        key_heads=config.num_key_value_heads,
        tied=config.tie_word_embeddings,
    )


def gguf_settings(architecture: Architecture) -> dict[str, int | float | str | bool]:
    """Return the settings by key, without the architecture's name before it.

    Raises:
        UserError: llama.cpp would compute the model otherwise than transformers.
    """
    name, config = gguf_architecture(architecture), architecture.config
    _check_computed(name, architecture)
    settings: dict[str, int | float | str | bool] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head_size(config),
        "attention.value_length": head_size(config),
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        **_positions(config),
    }
    if name == "llama":
        settings |= {"rope.dimension_count": head_size(config), "vocab_size": config.vocab_size}
    if name == "gemma3":
        settings |= _of_gemma3(architecture)
    return settings


def head_size(config: Any) -> int:
    """Return how many values an attention head has."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def frequency_factors(config: Any) -> Any:
    """Return the values of rope_freqs.weight, float64 [head size / 2]; None where positions are not scaled so."""
    rope = _rope(config)
    if rope["rope_type"] != "llama3":
        return None
    return llama3_factors(
        head_size(config),
        rope["rope_theta"],
        rope["factor"],
        rope["low_freq_factor"],
        rope["high_freq_factor"],
        rope["original_max_position_embeddings"],
    )


def _rope(config: Any) -> dict[str, Any]:
    """Return how positions are rotated: of Gemma-3 in the layers that see all tokens."""
    ropes = config.rope_parameters
    return {"rope_type": "default", **ropes.get("full_attention", ropes)}


def _positions(config: Any) -> dict[str, int | float | str | bool]:
    rope = _rope(config)
    found: dict[str, int | float | str | bool] = {"rope.freq_base": float(rope["rope_theta"])}
    if rope["rope_type"] == "linear":
        found |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    return found


def _of_gemma3(architecture: Architecture) -> dict[str, int | float | str | bool]:
    config = architecture.config
    found: dict[str, int | float | str | bool] = {}
    if architecture.window:
        sliding = config.rope_parameters.get("sliding_attention", {})
        period, base = _period(config.layer_types), float(sliding.get("rope_theta", _GEMMA_LOCAL_BASE))
        found["attention.sliding_window"] = config.sliding_window
        if period != _GEMMA_PERIOD:
            found["attention.sliding_window_pattern"] = period
        if base != _GEMMA_LOCAL_BASE:
            found["rope.freq_base_swa"] = base
    if config.final_logit_softcapping:
        found["final_logit_softcapping"] = float(config.final_logit_softcapping)
    return found


def _period(layer_types: list[str]) -> int:
    """Return n where every n-th layer sees all tokens and the others a window; 0 where all have a window.

    Raises:
        UserError: The layers follow no such order.
    """
    full = [number for number, kind in enumerate(layer_types) if kind == "full_attention"]
    period = full[0] + 1 if full else 0
    if full != (list(range(period - 1, len(layer_types), period)) if period else []):
        raise UserError(
            "the layers that see all tokens do not follow at equal distances, which llama.cpp requires of Gemma 3",
            "use the torch backend",
        )
    return period


def _check_computed(name: str, architecture: Architecture) -> None:
    """Refuse settings that llama.cpp's graph of the architecture does not heed."""
    config = architecture.config
    problems = [f"{key} = {value}" for key in _NOT_COMPUTED if (value := getattr(config, key, None))]
    activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    if activation != _ACTIVATIONS.get(name, _USUAL_ACTIVATION):
        problems.append(f"the activation {activation}")
    rope = _rope(config)
    if rope["rope_type"] not in ("default", "linear", *(["llama3"] if name == "llama" else [])):
        problems.append(f"positions scaled by {rope['rope_type']}")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        problems.append("heads that are rotated in part")
    if name == "gemma3":
        usual = gemma_query_scalar(config.to_dict())
        if config.query_pre_attn_scalar != usual:
            problems.append(f"query_pre_attn_scalar = {config.query_pre_attn_scalar}, not {usual}")
        if config.rope_parameters.get("sliding_attention", {}).get("rope_type", "default") != "default":
            problems.append("scaled positions in the layers with a window")
    elif architecture.window:
        problems.append(f"a sliding window of {architecture.window} tokens")
    if problems:
        raise UserError(f"llama.cpp does not compute this of a {name} model: {problems[0]}", "use the torch backend")
