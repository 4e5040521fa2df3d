"""Gemma-3 checkpoints as MLX stores them: quantise, dequantise, measure.

transformers and mlx-lm use the same tensor names for Gemma-3, so only the configuration and quantised matrices need
translation. mlx_lm.convert does the quantisation. MLX is imported on first use.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from adapters.base import CachedDirectory, UserError, library_errors
from adapters.low_rank import LowRank, describe_low_rank, low_rank_bytes
from adapters.weight_files import text_headers, weight_files

# What MLX can quantise to: mode -> (bits, group sizes).
QUANTIZATION_MODES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "affine": ((2, 3, 4, 5, 6, 8), (32, 64, 128)),
    "mxfp4": ((4,), (32,)),
    "nvfp4": ((4,), (16,)),
    "mxfp8": ((8,), (32,)),
}
# How MLX quantises where nothing else is asked for.
GROUP_SIZE, MODE = 64, "affine"
# mlx-lm's mixed recipes give more bits to the matrices to which llama.cpp's K-quants give more.
MIXED_RECIPES = ("mixed_3_4", "mixed_3_6", "mixed_4_6")
BYTES_PER_VALUE = {"float32": 4, "float16": 2, "bfloat16": 2}
# Values that are dequantised at a time, so that an embedding of 262,144 rows does not exist twice.
VALUES_PER_BLOCK = 16 * 1024 * 1024
TOKENIZER_FILES = ("tokenizer", "special_tokens", "added_tokens", "chat_template")
# Part of the cache key: raise it when a cached conversion of the same settings would come out differently.
CONVERSION_VERSION = 1


def read_config(model_dir: Path) -> dict[str, Any]:
    """Return config.json of a model directory; raise UserError if there is none or it is not JSON."""
    try:
        return json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{model_dir} is not a model directory: {error}") from error


def mlx_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration with the keys that mlx-lm reads, derived from transformers' newer ones.

    transformers 5 writes rope_parameters and layer_types; mlx-lm reads rope_theta and rope_scaling, for Gemma-3 also
    rope_local_base_freq and sliding_window_pattern, and silently takes usual values where they are missing.

    Args:
        config: Contents of config.json in the old form, the new one, or both (then the new one wins).

    Returns:
        A copy of `config` with those keys, and for Gemma-3 `sliding_window`.

    Raises:
        UserError: mlx-lm would compute this model wrongly.
    """
    if isinstance(config.get("text_config"), dict):
        text = mlx_config(config["text_config"])
        return {"vocab_size": text.get("vocab_size"), **config, "text_config": text}
    if config.get("model_type") != "gemma3_text":
        return _with_older_keys(config)
    for key in ("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention", "attention_bias"):
        if config.get(key):
            raise UserError(f"MLX ignores {key}={config[key]!r} of this model", "use the torch backend")
    activation = config.get("hidden_activation") or "gelu_pytorch_tanh"
    if activation != "gelu_pytorch_tanh":
        raise UserError(f"MLX computes gelu_pytorch_tanh only, not {activation}", "use the torch backend")

    ropes = config.get("rope_parameters") or {}
    if ropes and not ropes.keys() & {"full_attention", "sliding_attention"}:
        raise UserError("rope_parameters of the model are not given by kind of layer")
    full = {"rope_theta": config.get("rope_theta") or 1_000_000.0, **(config.get("rope_scaling") or {})}
    full.update(ropes.get("full_attention") or {})
    sliding = {"rope_theta": config.get("rope_local_base_freq") or 10_000.0, **(ropes.get("sliding_attention") or {})}
    full_type, sliding_type = (rope.get("rope_type") or rope.get("type") or "default" for rope in (full, sliding))
    if full_type not in ("default", "linear") or sliding_type != "default":
        raise UserError(f"MLX cannot compute rope types {full_type!r} and {sliding_type!r}", "use the torch backend")
    return {
        **config,
        "rope_theta": full["rope_theta"],
        "rope_local_base_freq": sliding["rope_theta"],
        "rope_scaling": {"rope_type": "linear", "factor": full["factor"]} if full_type == "linear" else None,
        "sliding_window": config.get("sliding_window") or 4096,  # transformers' default; mlx-lm's is 512
        "sliding_window_pattern": _sliding_window_pattern(config),
    }


def _with_older_keys(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration with the keys that older transformers wrote and mlx-lm reads, where they are missing."""
    rope = config.get("rope_parameters")
    rope = rope if isinstance(rope, dict) and "rope_theta" in rope else {}
    scaled = rope.get("rope_type", "default") != "default"
    found = {
        "rope_theta": rope.get("rope_theta"),
        "rope_scaling": rope if scaled else None,
        "partial_rotary_factor": rope.get("partial_rotary_factor"),
        "rotary_emb_base": rope.get("rope_theta"),
        "rotary_pct": rope.get("partial_rotary_factor"),
        "n_ctx": config.get("n_positions"),
        "num_experts": config.get("num_local_experts"),
    }
    return {**{name: value for name, value in found.items() if value is not None}, **config}


def _sliding_window_pattern(config: dict[str, Any]) -> int:
    """Return n where every n-th layer is global, as mlx-lm assumes; raise UserError for other layouts."""
    layers = config.get("layer_types")
    if not layers:
        return config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6
    pattern = layers.index("full_attention") + 1 if "full_attention" in layers else 0
    expected = ["sliding_attention" if pattern and (i + 1) % pattern else "full_attention" for i in range(len(layers))]
    if not pattern or layers != expected:
        raise UserError("the model's layer_types are not periodic, which MLX requires", "use the torch backend")
    return pattern


def quantization_of(config: dict[str, Any]) -> dict[str, Any] | None:
    """Return MLX's quantisation entry of a configuration (bits, group_size, mode, exceptions by layer), or None."""
    quantization = config.get("quantization")
    if quantization is None and config.get("quantization_config") is not None:
        raise UserError("the checkpoint is quantised by another library than MLX", "give the unquantised model")
    return quantization


def check_quantization(config: dict[str, Any], bits: int, group_size: int, mode: str) -> None:
    """Raise UserError if MLX cannot quantise every matrix of the model this way; mlx-lm would silently skip some."""
    if mode not in QUANTIZATION_MODES:
        raise UserError(f"unknown quantisation mode {mode!r}", f"one of {', '.join(QUANTIZATION_MODES)}")
    all_bits, group_sizes = QUANTIZATION_MODES[mode]
    if bits not in all_bits:
        raise UserError(f"cannot quantise to {bits} bits in mode {mode}", f"one of {', '.join(map(str, all_bits))}")
    if group_size not in group_sizes:
        raise UserError(
            f"group size {group_size} is not possible in mode {mode}", f"one of {', '.join(map(str, group_sizes))}"
        )
    heads, head_dim = config.get("num_attention_heads"), config.get("head_dim")
    if head_dim is None and config.get("model_type") == "gemma3_text":
        head_dim = 256  # what transformers and mlx-lm take where the configuration is silent
    widths = {
        "hidden size": config.get("hidden_size"),
        "intermediate size": config.get("intermediate_size"),
        "attention width": heads * head_dim if heads and head_dim else None,
    }
    for name, width in widths.items():
        if width and width % group_size:
            raise UserError(f"group size {group_size} does not divide the model's {name} {width}")


def ensure_mlx_model(
    model_dir: Path,
    *,
    bits: int | None,
    dtype: str,
    group_size: int | None = None,
    mode: str | None = None,
    cached: CachedDirectory,
    fingerprint: str,
) -> Path:
    """Return the directory of an MLX checkpoint with the wanted quantisation, made by mlx_lm.convert if need be.

    Args:
        model_dir: A transformers or an MLX checkpoint (config.json, model*.safetensors, tokenizer).
        bits: Per weight, or None for no quantisation: then `model_dir` itself is returned.
        dtype: "float16", "bfloat16" or "float32", of what a conversion leaves unquantised (norms, scales, biases).
        group_size: Number of weights that share a scale; None: as the checkpoint is quantised, else `GROUP_SIZE`.
        mode: MLX's quantisation mode, a key of QUANTIZATION_MODES; None: as the checkpoint is quantised, else `MODE`.
        cached: Makes directories of the cache; several processes may share it.
        fingerprint: Identifies the contents of `model_dir`.

    Raises:
        UserError: Impossible settings, or a checkpoint that is quantised in another way than asked for.
    """
    config = read_config(model_dir)
    found = quantization_of(config)
    if found is not None:
        _check_same_quantization(found, bits, group_size, mode)
        return model_dir
    if bits is None:
        return model_dir
    group_size, mode = group_size or GROUP_SIZE, mode or MODE
    staged_config = {**mlx_config(config), "dtype": dtype}
    check_quantization(staged_config, bits, group_size, mode)
    settings = [CONVERSION_VERSION, fingerprint, bits, group_size, mode, dtype]
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]

    def make(target: Path) -> None:
        convert(model_dir, staged_config, target, q_bits=bits, q_group_size=group_size, q_mode=mode, dtype=dtype)

    return cached(f"mlx/mlx-q{bits}-g{group_size}-{key}", make, f"quantising {model_dir.name} to {bits} bits, once")


def _check_same_quantization(found: dict[str, Any], bits: int | None, group_size: int | None, mode: str | None) -> None:
    has = (found["bits"], found["group_size"], found.get("mode", "affine"))
    group_size, mode = group_size or has[1], mode or has[2]
    if bits is None:
        raise UserError(f"the checkpoint is already quantised to {has[0]} bits", f"use the backend mlx-q{has[0]}")
    if has != (bits, group_size, mode):
        raise UserError(
            f"the checkpoint is quantised to {has[0]} bits with group size {has[1]} ({has[2]}), "
            f"not to {bits} with {group_size} ({mode})"
        )


def convert(source: Path, config: dict[str, Any], target: Path, **settings: Any) -> None:
    """Run mlx_lm.convert as `write_converted` describes.

    Args:
        source, config, target: As for `write_converted`.
        settings: Of mlx_lm.convert: q_bits, q_group_size, q_mode, dtype, quant_predicate.
    """

    def make(staged: Path, result: Path) -> None:
        import mlx_lm

        with (
            contextlib.redirect_stdout(io.StringIO()),  # "[INFO] Loading" and the like
            library_errors(f"mlx-lm cannot quantise {source}", "use --backend torch"),
        ):
            mlx_lm.convert(str(staged), str(result), quantize=True, trust_remote_code=False, **settings)

    write_converted(source, config, target, make)


def write_converted(source: Path, config: dict[str, Any], target: Path, make: Callable[[Path, Path], None]) -> None:
    """Fill a directory with a model that mlx_lm writes, and with the tokenizer as it was.

    Args:
        source: Directory of an unquantised model.
        config: Replaces its config.json; from `mlx_config`.
        target: An existing empty directory.
        make: Writes its second argument, a new directory, from its first, which mlx_lm can load.
    """
    work = Path(tempfile.mkdtemp(prefix=".work-", dir=target))
    staged, result = work / "staged", work / "result"
    staged.mkdir()
    for file in source.iterdir():  # never *.py: mlx_lm would carry it along
        if file.name != "config.json" and file.suffix in (".safetensors", ".json", ".model", ".jinja", ".txt"):
            (staged / file.name).symlink_to(file.resolve())
    (staged / "config.json").write_text(json.dumps(config), encoding="utf-8")
    make(staged, result)
    for file in staged.iterdir():  # transformers may write another tokenizer than it read
        if file.name.startswith(TOKENIZER_FILES):
            shutil.copyfile(file, result / file.name)
    for file in result.iterdir():
        file.rename(target / file.name)
    shutil.rmtree(work)


def dequantized_state(
    model_dir: Path, dtype: str = "float32", *, stored: str | None = None
) -> Iterator[tuple[str, Any]]:
    """Yield the weights of an MLX or transformers checkpoint as MLX computes with them in float32, tensor by tensor.

    Quantised matrices are dequantised by mx.dequantize with float32 scales, just as MLX's float32 execution does.

    Args:
        model_dir: Holds config.json and model*.safetensors.
        dtype: Type of the returned tensors: "float32", or "bfloat16", which rounds once more at the end.
        stored: "float16" or "bfloat16": the type to which an unquantised checkpoint's values are rounded first, as in
            MLX. None: no rounding. It has no effect on a quantised checkpoint.

    Yields:
        (name, torch tensor on the CPU), named as in transformers' Gemma3ForCausalLM; no lm_head.weight if it is tied.

    Raises:
        UserError: There are no weights, or the quantisation does not fit the stored matrices.
    """
    import mlx.core as mx
    import numpy as np
    import torch

    quantization = quantization_of(read_config(model_dir))
    arrays: Any = {}
    for file in weight_files(model_dir):
        arrays.update(mx.load(str(file)))  # lazy: read when evaluated
    for name in [name for name in arrays if not name.endswith((".scales", ".biases"))]:
        weight, path = arrays.pop(name), name.removesuffix(".weight")
        scales, biases = arrays.pop(f"{path}.scales", None), arrays.pop(f"{path}.biases", None)
        shape, layer = tuple(weight.shape), {}
        if scales is not None:
            layer = layer_quantization(quantization, path, shape[-1], scales.shape[-1])
            shape = (*shape[:-1], shape[-1] * 32 // layer["bits"])
        result = torch.empty(shape, dtype=getattr(torch, dtype))
        rows = max(1, VALUES_PER_BLOCK // math.prod(shape[1:]))
        for start in range(0, shape[0], rows):
            block = slice(start, start + rows)
            part = weight[block]
            if layer and biases is None:  # the mx and nv modes, whose scales are 8-bit numbers
                part = mx.dequantize(part, scales[block], dtype=mx.float32, **layer)
            elif layer:
                part = mx.dequantize(part, *(x[block].astype(mx.float32) for x in (scales, biases)), **layer)
            elif stored and not quantization:
                part = part.astype(getattr(mx, stored))
            result[block] = torch.from_numpy(np.array(part.astype(mx.float32)))
        del weight, scales, biases
        yield name, result


def layer_quantization(
    quantization: dict[str, Any] | None, path: str, packed_width: int, groups: int
) -> dict[str, Any]:
    """Return bits, group_size and mode of one matrix: its own entry in the configuration, or else the general one.

    Args:
        quantization: From `quantization_of`.
        path: Name of the matrix without ".weight".
        packed_width: 32-bit words in a row of the matrix.
        groups: Scales in a row.

    Raises:
        UserError: The entry does not fit the matrix.
    """
    entry = (quantization or {}).get(path)
    entry = entry if isinstance(entry, dict) else quantization or {}
    layer = {"bits": entry.get("bits"), "group_size": entry.get("group_size"), "mode": entry.get("mode", "affine")}
    if (
        not layer["bits"]
        or not layer["group_size"]
        or packed_width * 32 != groups * layer["group_size"] * layer["bits"]
    ):
        raise UserError(f"{path} is not stored with the quantisation that config.json names for it")
    return layer


def describe_weights(model_dir: Path, stored: str | None = None, adapter: Mapping[str, LowRank] | None = None) -> str:
    """Say how the weights are stored: "4-bit, group size 64", or `stored` for an unquantised checkpoint."""
    if adapter:
        return f"{describe_weights(model_dir, stored)}, {describe_low_rank(adapter)}"
    quantization = quantization_of(read_config(model_dir))
    if quantization is None:
        return stored or read_config(model_dir).get("dtype") or "float32"
    mode = quantization.get("mode", "affine")
    # mlx-lm's mixed recipes name every matrix, ours those with more bits.
    others = {entry["bits"] for entry in quantization.values() if isinstance(entry, dict)} - {quantization["bits"]}
    *lower, highest = (f"{found}" for found in (quantization["bits"], *sorted(others)))
    bits = f"{', '.join(lower)} and {highest}" if lower else highest
    return f"{bits}-bit, group size {quantization['group_size']}{'' if mode == 'affine' else ', ' + mode}"


def stored_bytes(model_dir: Path, dtype: str | None = None, adapter: Mapping[str, LowRank] | None = None) -> int:
    """Return the bytes of all weights as stored, with the scales and biases of the quantisation.

    Args:
        model_dir: Holds config.json and model*.safetensors.
        adapter: Whose matrices are counted too.
        dtype: Type in which an unquantised checkpoint's parameters are counted; None: as in the file.
    """
    if adapter:
        return stored_bytes(model_dir, dtype) + low_rank_bytes(adapter)
    tensors = text_headers(model_dir)
    if dtype and quantization_of(read_config(model_dir)) is None:
        return BYTES_PER_VALUE[dtype] * parameter_count(model_dir)
    return sum(end - start for start, end in (header["data_offsets"] for header in tensors.values()))


def parameter_count(model_dir: Path) -> int:
    """Return the number of parameters before quantisation: scales and biases are not counted."""
    quantization = quantization_of(read_config(model_dir))
    tensors = text_headers(model_dir)
    total = 0
    for name, header in tensors.items():
        path = name.removesuffix(".weight")
        if f"{path}.scales" in tensors and name.endswith(".weight"):
            groups = tensors[f"{path}.scales"]["shape"][-1]
            layer = layer_quantization(quantization, path, header["shape"][-1], groups)
            total += math.prod(header["shape"]) * 32 // layer["bits"]
        elif not (name.endswith((".scales", ".biases")) and f"{name.rpartition('.')[0]}.scales" in tensors):
            total += math.prod(header["shape"])
    return total
