"""GGUF files that are written here: llama.cpp and the converter of the other direction compute the source's numbers."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters import gguf_writer
from adapters.architecture import read_architecture
from adapters.base import UserError
from adapters.gguf_file import read_header, read_tensor
from adapters.gguf_types import KINDS, ModelShape, tensor_type
from adapters.gguf_writer import write_gguf
from adapters.llama_library import library_file, load_library
from adapters.torch_backend import load_weights
from harness.models.gguf import convert_gguf
from tests.llama_cpp import LlamaFile
from tests.tiny_gemma import make_tiny_gemma
from tests.tiny_models import WINDOW, make_tiny_gemma_with_vision, make_tiny_model

needs_llama_cpp = pytest.mark.skipif(library_file() is None, reason="xllamacpp is not installed")
TOKENS = [2, *range(10, 70)]  # longer than the windows
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
GEMMA_ROPES = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 20_000.0},
}
# Name -> what makes the model.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3": ("gemma3_text", {"layer_types": ["sliding_attention"] * 5 + ["full_attention"], "num_hidden_layers": 6}),
    "gemma3, every second layer global": ("gemma3_text", {}),
    "gemma3, windows everywhere": ("gemma3_text", {"layer_types": ["sliding_attention"] * 4}),
    "gemma3, no windows": ("gemma3_text", {"layer_types": ["full_attention"] * 4}),
    "gemma3, positions": ("gemma3_text", {"rope_parameters": GEMMA_ROPES}),
    "gemma3, output apart and capped": (
        "gemma3_text",
        {"tie_word_embeddings": False, "final_logit_softcapping": 3.0},
    ),
    "llama": ("llama", {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, positions": ("llama", {"rope_parameters": LLAMA3_ROPE}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 32}),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("models")
    made = {
        name: make_tiny_model(architecture, directory / str(number), dtype="bfloat16", **fields)
        for number, (name, (architecture, fields)) in enumerate(MODELS.items())
    }
    return {**made, "gemma3 with pictures": make_tiny_gemma_with_vision(directory / "vision")}


ALL_MODELS = [*MODELS, "gemma3 with pictures"]


def source_logprobs(model_dir: Path) -> np.ndarray:
    """The log-probabilities by transformers in float32, float64 [tokens, vocabulary]."""
    model = load_weights(model_dir, read_architecture(model_dir), "float32").eval()
    with torch.no_grad():
        return model(torch.tensor([TOKENS])).logits[0].double().log_softmax(-1).numpy()


# --- what is computed -------------------------------------------------------------------------------------------------


@needs_llama_cpp
@pytest.mark.parametrize("name", ALL_MODELS)
def test_llama_cpp_computes_the_log_probabilities_of_the_source(
    models: dict[str, Path], tmp_path: Path, name: str
) -> None:
    write_gguf(models[name], tmp_path / "model.gguf", "f32")
    found = LlamaFile(tmp_path / "model.gguf").logprobs(TOKENS)
    # ggml looks up Gemma's activation, the GELU, in a table of half-precision numbers.
    tolerance = 1e-2 if name.startswith("gemma3") else 1e-3
    np.testing.assert_allclose(found, source_logprobs(models[name]), atol=tolerance)


# transformers' reader knows no biases of Llama, and says so.
@pytest.mark.parametrize("name", [name for name in MODELS if name != "llama, biases"])
def test_the_converter_of_the_other_direction_reads_the_source_back(
    models: dict[str, Path], tmp_path: Path, name: str
) -> None:
    write_gguf(models[name], tmp_path / "model.gguf", "bf16")
    (tmp_path / "back").mkdir()
    convert_gguf(tmp_path / "model.gguf", tmp_path / "back")
    np.testing.assert_allclose(source_logprobs(tmp_path / "back"), source_logprobs(models[name]), atol=1e-3)


# --- quantised tensors ------------------------------------------------------------------------------------------------

# What `llama_model_quantize` of llama-cpp-python 0.3.36 (ggml 0.25.3, commit 0c1e570) chose: model -> its shape, the
# lengths of rows by part, and for each kind the types by part, such as "2*Q6_K 1*Q4_K" for three layers.
OWN_TYPES = json.loads((Path(__file__).parent / "llama_cpp_types.json").read_text())
# Wide enough for blocks of 256, in part.
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "head_dim": 32, "num_hidden_layers": 9}
QUANTISED: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3": (
        "gemma3_text",
        {**WIDE, "num_key_value_heads": 1, "layer_types": None, "hidden_size": 320, "query_pre_attn_scalar": 32},
    ),
    "llama": ("llama", {**WIDE, "num_key_value_heads": 2, "num_hidden_layers": 17}),
    "qwen3": ("qwen3", {**WIDE, "tie_word_embeddings": True}),
}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("f32", "bf16", "f16")])
@pytest.mark.parametrize("name", OWN_TYPES)
def test_every_tensor_has_the_type_that_llama_cpp_chooses(name: str, kind: str) -> None:
    recorded = OWN_TYPES[name]
    shape = ModelShape(**recorded["shape"])
    for part, runs in recorded["types"][kind].items():
        counted = [run.split("*") for run in runs.split()]
        types = [name for count, name in counted for _ in range(int(count))]
        place = part if part in ("token_embd", "output") else f"blk.{{}}.{part}"
        size = (2, recorded["widths"][part])
        found = [tensor_type(kind, f"{place.format(layer)}.weight", size, shape) for layer in range(len(types))]
        assert found == types, part


@needs_llama_cpp
@pytest.mark.parametrize("kind", KINDS[3:])
@pytest.mark.parametrize("name", QUANTISED)
def test_quantised_files_are_those_of_llama_cpps_own_quantiser(tmp_path: Path, name: str, kind: str) -> None:
    own = pytest.importorskip("llama_cpp", reason="llama-cpp-python, whose library has this function, is not installed")
    architecture, fields = QUANTISED[name]
    model_dir = make_tiny_model(architecture, tmp_path / "model", **fields)
    whole, made, expected = (tmp_path / f"{file}.gguf" for file in ("whole", "made", "expected"))
    write_gguf(model_dir, whole, "f32")
    write_gguf(model_dir, made, kind)
    params = own.llama_cpp.llama_model_quantize_default_params()
    params.ftype = gguf.LlamaFileType[f"MOSTLY_{kind.upper()}"].value
    assert own.llama_cpp.llama_model_quantize(str(whole).encode(), str(expected).encode(), ctypes.byref(params)) == 0
    found, wanted = (gguf.GGUFReader(file) for file in (made, expected))
    tensors = {tensor.name: tensor for tensor in wanted.tensors}
    assert {tensor.name for tensor in found.tensors} == tensors.keys()
    for tensor in found.tensors:
        assert tensor.tensor_type == tensors[tensor.name].tensor_type, tensor.name
        assert tensor.data.tobytes() == tensors[tensor.name].data.tobytes(), tensor.name
    assert {key: field.contents() for key, field in found.fields.items()} == {
        key: field.contents() for key, field in wanted.fields.items()
    }


@needs_llama_cpp
@pytest.mark.parametrize("stored", ["Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "Q3_K", "Q2_K"])
def test_the_package_gguf_reads_from_quantised_rows_what_ggml_reads(stored: str) -> None:
    class Traits(ctypes.Structure):  # the beginning of struct ggml_type_traits
        _fields_ = (
            ("type_name", ctypes.c_char_p),
            ("blck_size", ctypes.c_int64),
            ("blck_size_interleave", ctypes.c_int64),
            ("type_size", ctypes.c_size_t),
            ("is_quantized", ctypes.c_bool),
            ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        )

    kind = gguf.GGMLQuantizationType[stored]
    rows = np.random.default_rng(0).normal(size=(5, 512)).astype(np.float32)
    library = load_library()
    data = np.frombuffer(gguf_writer._quantised(library, rows, kind), dtype=np.uint8).reshape(5, -1)
    traits = library.ggml_get_type_traits
    traits.restype = ctypes.POINTER(Traits)
    found = np.empty_like(rows)
    traits(int(kind)).contents.to_float(data.ctypes.data, found.ctypes.data, rows.size)
    np.testing.assert_allclose(gguf.dequantize(data, kind), found, rtol=1e-6, atol=1e-7)
    assert np.abs(found - rows).max() < 2.0  # it is these rows that were stored


@needs_llama_cpp
def test_a_quantised_model_answers_nearly_as_its_dequantised_weights_do(tmp_path: Path) -> None:
    model_dir = make_tiny_gemma(tmp_path / "model")
    write_gguf(model_dir, tmp_path / "model.gguf", "q4_0")
    (tmp_path / "back").mkdir()
    convert_gguf(tmp_path / "model.gguf", tmp_path / "back")
    found, stored, source = (
        LlamaFile(tmp_path / "model.gguf").logprobs(TOKENS),
        source_logprobs(tmp_path / "back"),
        source_logprobs(model_dir),
    )
    # llama.cpp rounds what it multiplies with the weights to 8 bits.
    assert np.abs(found - stored).mean() < 0.2 * np.abs(source - stored).mean()


# --- what the file says, and what is refused --------------------------------------------------------------------------


def test_the_file_says_which_tokens_are_special_and_how_a_chat_is_written(tmp_path: Path) -> None:
    model_dir = make_tiny_gemma(tmp_path / "model")
    (model_dir / "chat_template.jinja").write_text("{{ messages }}")
    write_gguf(model_dir, tmp_path / "model.gguf", "bf16", name="Малая модель", licence="gemma")
    values = {key: field.contents() for key, field in gguf.GGUFReader(tmp_path / "model.gguf").fields.items()}
    expected = {
        "general.architecture": "gemma3",
        "general.name": "Малая модель",
        "general.license": "gemma",
        "general.file_type": int(gguf.LlamaFileType.MOSTLY_BF16),
        "gemma3.attention.sliding_window": 16,
        "gemma3.attention.sliding_window_pattern": 3,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.eot_token_id": 5,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template": "{{ messages }}",
    }
    assert {key: values.get(key) for key in expected} == expected
    types, tokens = values["tokenizer.ggml.token_type"], values["tokenizer.ggml.tokens"]
    assert [types[tokens.index(token)] for token in ("<bos>", "<unused0>", "<0x41>", "▁да")] == [3, 1, 6, 1]


def test_whole_kinds_need_no_llama_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise UserError("llama.cpp is not installed")

    monkeypatch.setattr("adapters.llama_library.load_library", missing)
    model_dir = make_tiny_gemma(tmp_path / "model")
    for kind in ("f32", "bf16", "f16"):
        write_gguf(model_dir, tmp_path / "model.gguf", kind)
        header = read_header(tmp_path / "model.gguf")
        assert read_tensor(tmp_path / "model.gguf", header, "token_embd.weight").shape == (512, 64)
    with pytest.raises(UserError, match=r"llama\.cpp is not installed"):
        write_gguf(model_dir, tmp_path / "other.gguf", "q8_0")


@pytest.mark.parametrize(
    ("architecture", "fields", "kind", "words"),
    [
        ("mistral", {}, "f32", "for gemma3, llama, qwen2, qwen3 models, not for mistral"),
        ("llama", {}, "q9_0", "unknown kind 'q9_0'"),
        (
            "llama",
            {"intermediate_size": 72},
            "q8_0",
            "blocks of 32 weights, which do not divide the rows of 72 in blk.0",
        ),
        ("llama", {"hidden_act": "gelu"}, "f32", "the activation gelu"),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 0},
            "f32",
            "window of 16",
        ),
        ("qwen3", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6}}, "f32", "by yarn"),
        ("gemma3_text", {"query_pre_attn_scalar": 8}, "f32", "query_pre_attn_scalar = 8, not 16"),
        (
            "gemma3_text",
            {"layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]},
            "f32",
            "at equal distances",
        ),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    tmp_path: Path, architecture: str, fields: dict[str, Any], kind: str, words: str
) -> None:
    model_dir = make_tiny_model(architecture, tmp_path / "model", **fields)
    with pytest.raises(UserError, match=words):
        write_gguf(model_dir, tmp_path / "model.gguf", kind)
    assert not (tmp_path / "model.gguf").exists()


def test_a_quantised_model_is_refused(tmp_path: Path) -> None:
    model_dir = make_tiny_gemma(tmp_path / "model")
    config = json.loads((model_dir / "config.json").read_text())
    (model_dir / "config.json").write_text(json.dumps({**config, "quantization": {"bits": 4, "group_size": 64}}))
    with pytest.raises(UserError, match="is quantised"):
        write_gguf(model_dir, tmp_path / "model.gguf", "f32")


@pytest.mark.parametrize(("value", "kind"), [(1e5, "f16"), (float("nan"), "f32"), (float("inf"), "bf16")])
def test_numbers_that_the_kind_cannot_store_are_refused(tmp_path: Path, value: float, kind: str) -> None:
    model_dir = make_tiny_gemma(tmp_path / "model", dtype="float32")
    weights = load_file(model_dir / "model.safetensors")
    weights["model.layers.3.mlp.up_proj.weight"][5, 7] = value
    save_file(weights, model_dir / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=rf"blk\.3\.ffn_up\.weight holds numbers that {kind.upper()} cannot store"):
        write_gguf(model_dir, tmp_path / "model.gguf", kind)


def test_a_full_disk_is_found_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_dir = make_tiny_gemma(tmp_path / "model")
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match="No space left"):
        write_gguf(model_dir, tmp_path / "model.gguf", "f32")
    assert not (tmp_path / "model.gguf").exists()
