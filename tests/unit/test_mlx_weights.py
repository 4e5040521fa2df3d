"""Configurations, conversions and sizes of MLX checkpoints."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from adapters.base import UserError
from adapters.mlx_weights import (
    check_quantization,
    dequantized_state,
    describe_weights,
    ensure_mlx_model,
    layer_quantization,
    mlx_config,
    parameter_count,
    quantization_of,
    read_config,
    stored_bytes,
)
from tests.caching import cached_in
from tests.tiny_gemma import make_tiny_gemma

SLIDING, FULL = "sliding_attention", "full_attention"
PLAIN = {
    "model_type": "gemma3_text",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "head_dim": 32,
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_gemma(tmp_path_factory.mktemp("gemma"))


def convert(tiny: Path, cache: Path, **settings: Any) -> Path:
    return ensure_mlx_model(
        tiny, **{"bits": 4, "dtype": "bfloat16", "cached": cached_in(cache), "fingerprint": "tiny", **settings}
    )


def test_the_new_form_of_a_configuration_gives_mlx_its_keys():
    config = mlx_config(
        {
            **PLAIN,
            "layer_types": [SLIDING, SLIDING, FULL, SLIDING],
            "_sliding_window_pattern": 6,  # transformers writes 6 whatever the layers are
            "sliding_window": 48,
            "rope_parameters": {
                FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 5.0},
                SLIDING: {"rope_type": "default", "rope_theta": 7.0},
            },
        }
    )
    assert config["rope_theta"] == 5.0
    assert config["rope_local_base_freq"] == 7.0
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    assert config["sliding_window"] == 48
    assert config["sliding_window_pattern"] == 3
    assert mlx_config(config) == config


def test_the_old_form_of_a_configuration_stays_as_it_is():
    old = {
        **PLAIN,
        "rope_theta": 3.0,
        "rope_local_base_freq": 4.0,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "sliding_window": 32,
        "sliding_window_pattern": 5,
    }
    assert mlx_config(old) == old


def test_missing_keys_take_the_values_that_transformers_would_take():
    from transformers import Gemma3TextConfig

    config, theirs = mlx_config(PLAIN), Gemma3TextConfig()
    assert config["rope_theta"] == theirs.rope_parameters[FULL]["rope_theta"]
    assert config["rope_local_base_freq"] == theirs.rope_parameters[SLIDING]["rope_theta"]
    assert config["sliding_window"] == theirs.sliding_window
    assert config["sliding_window_pattern"] == theirs.layer_types.index(FULL) + 1


@pytest.mark.parametrize(
    "change",
    [
        {"layer_types": [SLIDING, FULL, FULL]},
        {"layer_types": [SLIDING, SLIDING]},
        {"final_logit_softcapping": 30.0},
        {"use_bidirectional_attention": True},
        {"hidden_activation": "silu"},
        {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
        {"rope_parameters": {SLIDING: {"rope_type": "linear", "factor": 2.0}}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 3.0}},
    ],
)
def test_a_model_that_mlx_would_compute_wrongly_is_refused(change):
    with pytest.raises(UserError):
        mlx_config({**PLAIN, **change})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((7, 64, "affine"), "7 bits"),
        ((4, 48, "affine"), "group size 48"),
        ((4, 128, "affine"), "hidden size 64"),
        ((4, 64, "mxfp4"), "group size 64"),
        ((8, 32, "mxfp4"), "8 bits"),
        ((4, 64, "gptq"), "gptq"),
    ],
)
def test_impossible_quantisations_are_refused_in_one_line(settings, message):
    with pytest.raises((UserError, OSError), match=message) as caught:
        check_quantization(PLAIN, *settings)
    assert "\n" not in str(caught.value)


def test_a_layer_may_be_quantised_in_its_own_way():
    quantization = {"bits": 4, "group_size": 64, "a.b": {"bits": 8, "group_size": 32}, "a.c": True}
    assert layer_quantization(quantization, "a.b", 16, 2) == {"bits": 8, "group_size": 32, "mode": "affine"}
    assert layer_quantization(quantization, "a.c", 8, 1) == {"bits": 4, "group_size": 64, "mode": "affine"}
    with pytest.raises(UserError, match=r"a\.c"):
        layer_quantization(quantization, "a.c", 16, 1)


def test_a_directory_without_a_model_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match="not a model directory"):
        read_config(tmp_path)


def test_weights_quantised_by_another_library_are_refused():
    with pytest.raises(UserError, match="another library"):
        quantization_of({"quantization_config": {"quant_method": "gptq"}})


def test_no_bits_means_no_conversion(tiny, tmp_path):
    assert convert(tiny, tmp_path, bits=None) == tiny
    assert not list(tmp_path.iterdir())


def test_a_conversion_equals_that_of_mlx_lm_bit_for_bit_and_is_made_once(tiny, tmp_path, monkeypatch, capsys):
    mx = pytest.importorskip("mlx.core")
    import mlx_lm

    converted = convert(tiny, tmp_path / "cache", bits=3, group_size=32)
    assert capsys.readouterr().out == ""
    assert (converted / "tokenizer.json").read_bytes() == (tiny / "tokenizer.json").read_bytes()
    mlx_lm.convert(str(tiny), str(tmp_path / "theirs"), quantize=True, q_bits=3, q_group_size=32)
    ours, theirs = (mx.load(str(place / "model.safetensors")) for place in (converted, tmp_path / "theirs"))
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert array.dtype == theirs[name].dtype
        assert mx.array_equal(array, theirs[name]).item(), name
    assert read_config(converted)["quantization"] == read_config(tmp_path / "theirs")["quantization"]

    monkeypatch.setattr(mlx_lm, "convert", None)
    assert convert(tiny, tmp_path / "cache", bits=3, group_size=32) == converted
    assert convert(converted, tmp_path / "cache", bits=3, group_size=32) == converted
    assert [place.name for place in (tmp_path / "cache" / "mlx").iterdir()] == [converted.name]


@pytest.mark.parametrize("other", [{"bits": 8}, {"group_size": 32}, {"bits": None}])
def test_a_checkpoint_quantised_otherwise_is_refused(tiny, tmp_path, other):
    pytest.importorskip("mlx.core")
    converted = convert(tiny, tmp_path)
    with pytest.raises(UserError, match="quantised to 4 bits"):
        convert(converted, tmp_path, **other)


def test_another_fingerprint_or_dtype_is_another_conversion(tiny, tmp_path):
    pytest.importorskip("mlx.core")
    places = {
        convert(tiny, tmp_path),
        convert(tiny, tmp_path, fingerprint="x"),
        convert(tiny, tmp_path, dtype="float32"),
    }
    assert len(places) == 3


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("no such layer"), "mlx-lm cannot quantise .*no such layer"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left"),
    ],
)
def test_a_failed_conversion_leaves_nothing_behind(tiny, tmp_path, monkeypatch, error, message):
    mlx_lm = pytest.importorskip("mlx_lm")

    def fail(source: str, target: str, **_: Any) -> None:
        Path(target).mkdir()
        (Path(target) / "config.json").write_text("{}")
        raise error

    monkeypatch.setattr(mlx_lm, "convert", fail)
    with pytest.raises((UserError, OSError), match=message):
        convert(tiny, tmp_path)
    assert not list((tmp_path / "mlx").iterdir())


def test_the_slower_of_two_conversions_takes_the_result_of_the_faster(tiny, tmp_path, monkeypatch):
    mlx_lm = pytest.importorskip("mlx_lm")
    real, depth = mlx_lm.convert, []

    def overtaken(*args: Any, **settings: Any) -> None:
        depth.append(1)
        if len(depth) == 1:  # while the first run converts, a second one starts and ends
            convert(tiny, tmp_path)
        real(*args, **settings)

    monkeypatch.setattr(mlx_lm, "convert", overtaken)
    converted = convert(tiny, tmp_path)
    assert len(depth) == 2
    assert list((tmp_path / "mlx").iterdir()) == [converted]
    assert (converted / "model.safetensors").is_file()


def test_sizes_count_what_is_stored(tiny, tmp_path):
    pytest.importorskip("mlx.core")
    converted = convert(tiny, tmp_path)
    state = {name: tuple(tensor.shape) for name, tensor in dequantized_state(converted)}
    plain = {name: tuple(tensor.shape) for name, tensor in dequantized_state(tiny, "bfloat16")}
    assert state == plain
    parameters = parameter_count(tiny)
    assert parameter_count(converted) == parameters
    assert stored_bytes(tiny) == stored_bytes(tiny, "float16") == 2 * parameters
    assert stored_bytes(tiny, "float32") == 4 * parameters
    matrices = sum(rows * columns[0] for rows, *columns in plain.values() if columns)
    # 4 bits a weight; a bfloat16 scale and bias for each group of 64
    assert stored_bytes(converted) == matrices // 2 + matrices // 64 * 4 + 2 * (parameters - matrices)


def test_the_record_names_how_weights_are_stored(tiny, tmp_path):
    pytest.importorskip("mlx.core")
    assert describe_weights(convert(tiny, tmp_path), "bfloat16") == "4-bit, group size 64"
    assert describe_weights(convert(tiny, tmp_path, group_size=32, mode="mxfp4")) == "4-bit, group size 32, mxfp4"
    assert describe_weights(tiny, "float16") == "float16"
    assert describe_weights(tiny) == "bfloat16"


def test_large_matrices_are_dequantised_in_blocks_with_the_same_result(tiny, tmp_path, monkeypatch):
    pytest.importorskip("mlx.core")
    import torch

    from adapters import mlx_weights

    converted = convert(tiny, tmp_path)
    whole = dict(dequantized_state(converted))
    monkeypatch.setattr(mlx_weights, "VALUES_PER_BLOCK", 1000)
    for name, tensor in dequantized_state(converted):
        assert torch.equal(tensor, whole[name])


def test_a_shard_without_its_scales_is_not_taken_for_plain_weights(tiny, tmp_path):
    pytest.importorskip("mlx.core")
    converted = convert(tiny, tmp_path / "cache")
    config = read_config(converted)
    config["quantization"]["bits"] = 8
    (converted / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="not stored with the quantisation"):
        dict(dequantized_state(converted))
