"""The conversion of a GGUF file gives the files that transformers' own, slower one gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3ForCausalLM, GgufConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from adapters.gguf_file import gemma_query_scalar, read_header, read_tensor
from adapters.text import load_tokenizer
from adapters.torch_backend import load_torch
from harness.errors import UserError
from harness.models.gguf import _configuration, convert_gguf
from harness.models.resolve import find_model, provide
from tests.tiny_gemma import make_tiny_gemma, make_tiny_tokenizer
from tests.tiny_models import WINDOW, make_tiny_model

# Types that files of small models mix; 64 columns are two blocks of 32.
KINDS = {"attn_k": "Q8_0", "attn_q": "Q5_0", "attn_v": "BF16", "ffn_down": "Q4_0", "ffn_gate": "F16", "ffn_up": "Q5_1"}


def started(file: Path, architecture: str, config: Any) -> gguf.GGUFWriter:
    """Return a writer with the sizes that every architecture names."""
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(config.head_dim)
    return writer


def finished(writer: gguf.GGUFWriter, file: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def write_gguf(file: Path, model_dir: Path, *, architecture: str = "gemma3", untied: bool = False) -> Path:
    """Write a transformers directory as a GGUF file, in the manner of llama.cpp's convert_hf_to_gguf.py."""
    model: Any = Gemma3ForCausalLM.from_pretrained(model_dir)
    config = model.config
    writer = started(file, architecture, config)
    writer.add_name("Tiny Gemma")
    writer.add_tags(["text-generation", "ru"])
    writer.add_rope_freq_base(1_000_000.0)
    writer.add_sliding_window(config.sliding_window)
    tokens = sorted(make_tiny_tokenizer().get_vocab().items(), key=lambda entry: entry[1])
    writer.add_tokenizer_model("llama")
    writer.add_token_list([token for token, _ in tokens])
    writer.add_token_scores([-float(number) for _, number in tokens])
    writer.add_token_types([3 if number < 6 else 6 if token.startswith("<0x") else 1 for token, number in tokens])
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(3)
    writer.add_pad_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        module, _, suffix = name.rpartition(".")
        if module == "lm_head" and not untied:
            continue
        values = tensor.float().numpy() + (1 if name.endswith("norm.weight") else 0)
        stored = names.get_name(module)
        kind = gguf.GGMLQuantizationType[KINDS.get(stored.split(".")[-1], "Q8_0") if values.ndim > 1 else "F32"]
        writer.add_tensor(f"{stored}.{suffix}", gguf.quantize(values, kind), raw_dtype=kind)
    return finished(writer, file)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_gemma(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("untied", [False, True])
def test_a_converted_file_is_what_transformers_makes_of_it(tiny: Path, tmp_path: Path, untied: bool) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", tiny, untied=untied)
    expected, found = tmp_path / "expected", tmp_path / "found"
    model = Gemma3ForCausalLM.from_pretrained(
        tmp_path, gguf_file=file.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.config.query_pre_attn_scalar = model.config.head_dim  # as llama.cpp has it; transformers takes 256 for all
    model.save_pretrained(expected)
    AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name).save_pretrained(expected)
    found.mkdir()
    convert_gguf(file, found)
    assert {path.name for path in found.iterdir()} == {path.name for path in expected.iterdir()}
    for path in found.iterdir():
        assert path.read_bytes() == (expected / path.name).read_bytes(), path.name
    assert ("lm_head.weight" in load_file(found / "model.safetensors")) == untied


def test_a_converted_file_is_a_model(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RSG_HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("harness.models.resolve.run_in_subprocess", lambda work, *arguments: work(*arguments))
    file = write_gguf(tmp_path / "tiny.gguf", tiny)
    local = provide(find_model(str(file)))
    assert local.name == "tiny"
    assert local.gguf == file
    assert local.path.parent == tmp_path / "cache" / "models"
    assert provide(find_model(str(file))) == local


def test_the_header_is_read(tiny: Path, tmp_path: Path) -> None:
    header = read_header(write_gguf(tmp_path / "tiny.gguf", tiny))
    assert header.values["general.name"] == "Tiny Gemma"
    assert header.values["gemma3.block_count"] == 8
    assert header.values["tokenizer.ggml.tokens"] == 512  # of an array the length
    assert header.tensors["token_embd.weight"].shape == (512, 64)
    assert header.data_start % 32 == 0


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("GUGF and some more text")
    with pytest.raises(UserError, match=r"text\.gguf is not a GGUF file"):
        convert_gguf(tmp_path / "text.gguf", tmp_path)


def test_a_git_lfs_pointer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pointer.gguf").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match="Git LFS pointer"):
        convert_gguf(tmp_path / "pointer.gguf", tmp_path)


def test_the_vision_part_of_a_model_is_refused(tiny: Path, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "mmproj.gguf", tiny, architecture="clip")
    with pytest.raises(UserError, match="vision part"):
        convert_gguf(file, tmp_path)


def test_linear_scaling_of_positions_is_kept(tiny: Path, tmp_path: Path) -> None:
    header = read_header(write_gguf(tmp_path / "tiny.gguf", tiny))
    header.values["gemma3.rope.scaling.type"] = "linear"
    header.values["gemma3.rope.scaling.factor"] = 8.0
    rope = _configuration(tmp_path / "tiny.gguf", header).rope_parameters
    assert (rope["full_attention"]["rope_type"], rope["full_attention"]["factor"]) == ("linear", 8.0)
    assert rope["sliding_attention"]["rope_type"] == "default"  # Gemma-3 scales its global layers only
    header.values["gemma3.rope.scaling.type"] = "yarn"
    with pytest.raises(UserError, match="scales its positions by yarn"):
        _configuration(tmp_path / "tiny.gguf", header)


@pytest.mark.parametrize("share", [0.001, 0.05, 0.9])
def test_an_incomplete_file_is_refused(tiny: Path, tmp_path: Path, share: float) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", tiny)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=r"tiny\.gguf is damaged"):
        convert_gguf(file, tmp_path)


def write_library_gguf(
    file: Path,
    model_dir: Path,
    architecture: str,
    values: dict[str, Any] | None = None,
    factor: float | None = None,
    cut: str = "qwen2",
    extra: dict[str, np.ndarray] | None = None,
) -> Path:
    """Write a model of another architecture in float32, with a byte-level or a SentencePiece-like tokenizer.

    Args:
        file: To write.
        model_dir: A transformers directory.
        architecture: Its name in GGUF.
        values: Settings to write beside the usual ones, without the architecture's name.
        factor: Of Llama 3's scaling of positions.
        cut: llama.cpp's name for how the byte-level tokenizer cuts texts.
        extra: Further tensors.
    """
    model: Any = AutoModelForCausalLM.from_pretrained(model_dir)
    config = model.config
    writer = started(file, architecture, config)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    for key, value in (values or {}).items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)]
        add(f"{architecture}.{key}", value)
    tokens = [token for token, _ in sorted(make_tiny_tokenizer().get_vocab().items(), key=lambda entry: entry[1])]
    if architecture == "qwen3":
        writer.add_tokenizer_model("gpt2")
        tokens[-1] = "th"  # a merge is needed, and the small tokenizer has none of two letters
        writer.add_token_merges(["t h"])
        writer.add_tokenizer_pre(cut)
    else:
        writer.add_tokenizer_model("llama")
        writer.add_token_scores([-float(number) for number in range(len(tokens))])
    writer.add_token_list(tokens)
    writer.add_token_types(
        [3 if number < 6 else 6 if token.startswith("<0x") else 1 for number, token in enumerate(tokens)]
    )
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(3)
    names = gguf.get_tensor_name_map(
        {"qwen3": gguf.MODEL_ARCH.QWEN3, "llama": gguf.MODEL_ARCH.LLAMA, "gemma2": gguf.MODEL_ARCH.GEMMA2}[
            architecture
        ],
        config.num_hidden_layers,
    )
    for name, tensor in model.state_dict().items():
        module, _, suffix = name.rpartition(".")
        if module == "lm_head" and config.tie_word_embeddings:
            continue
        values_of = tensor.float().numpy()
        if architecture == "gemma2" and name.endswith("norm.weight"):
            values_of = values_of + 1
        if architecture == "llama" and module.endswith(("q_proj", "k_proj")):  # llama.cpp rotates neighbours
            heads = config.num_attention_heads if module.endswith("q_proj") else config.num_key_value_heads
            values_of = values_of.reshape(heads, 2, -1, values_of.shape[1]).swapaxes(1, 2).reshape(values_of.shape)
        writer.add_tensor(f"{names.get_name(module)}.{suffix}", np.ascontiguousarray(values_of))
    for name, value in (extra or {}).items():
        writer.add_tensor(name, value.astype(np.float32))
    if factor is not None:
        rope = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        rope |= {"original_max_position_embeddings": 8192}
        config.rope_parameters = {**config.rope_parameters, **rope}
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
        plain = config.rope_parameters["rope_theta"] ** -(torch.arange(0, config.head_dim, 2) / config.head_dim)
        writer.add_tensor("rope_freqs.weight", (plain / scaled).numpy())
    return finished(writer, file)


CAPS = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}


@pytest.mark.parametrize(
    ("architecture", "fields", "values", "factor"),
    [
        ("qwen3", {"head_dim": 32}, {}, None),  # not 128, which transformers takes
        ("llama", {"rope_theta": 500_000.0}, {}, 8.0),
        ("llama", {"tie_word_embeddings": True}, {}, None),
        ("gemma2", CAPS, {**CAPS, "attention.sliding_window": WINDOW}, None),
    ],
)
def test_other_architectures_give_the_log_probabilities_of_their_source(
    tmp_path: Path, architecture: str, fields: dict[str, Any], values: dict[str, Any], factor: float | None
) -> None:
    source = make_tiny_model(architecture, tmp_path / "source", dtype="bfloat16", **fields)
    file = write_library_gguf(tmp_path / "model.gguf", source, architecture, values, factor)
    target = tmp_path / "target"
    target.mkdir()
    convert_gguf(file, target)
    if factor is not None:
        config = json.loads((source / "config.json").read_text())
        rope = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        config["rope_parameters"] |= {**rope, "original_max_position_embeddings": 8192}
        (source / "config.json").write_text(json.dumps(config))
    tokens = torch.tensor([[2, *range(10, 50)]])
    with torch.no_grad():
        expected, found = (
            AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)(tokens).logits for path in (source, target)
        )
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert load_torch("torch", target, device="cpu", dtype="float32").tokenizer("the").input_ids


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rope.scaling.type": "yarn"}, "scales its positions by yarn"),
        ({"attention.temperature": 2.0}, "qwen3.attention.temperature = 2.0"),
        ({"logit_scale": 2.0}, "qwen3.logit_scale = 2.0"),  # which Qwen's class does not know
        ({"rope.dimension_count": 8}, "qwen3.rope.dimension_count = 8"),
        ({"attention.layer_norm_epsilon": 0.5}, "layer_norm_epsilon = 0.5"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(tmp_path: Path, values: dict[str, Any], words: str) -> None:
    source = make_tiny_model("qwen3", tmp_path / "source")
    with pytest.raises(UserError, match=words):
        convert_gguf(write_library_gguf(tmp_path / "model.gguf", source, "qwen3", values), tmp_path)


@pytest.mark.parametrize(
    ("cut", "pieces"),
    [
        ("gpt-2", ["n", "Ġ12", ".", "Ċ", "Ċ", "x"]),
        ("qwen2", ["n", "Ġ", "1", "2", ".ĊĊ", "x"]),
        ("llama-bpe", ["n", "Ġ", "12", ".ĊĊ", "x"]),
        ("smollm", ["n", "Ġ", "1", "2", ".", "Ċ", "Ċ", "x"]),
    ],
)
def test_texts_are_cut_as_the_file_says(tmp_path: Path, cut: str, pieces: list[str]) -> None:
    """The pieces are those of llama.cpp's src/llama-vocab.cpp; transformers' reader takes Qwen's for this model."""
    source = make_tiny_model("qwen3", tmp_path / "source")
    target = tmp_path / "target"
    target.mkdir()
    convert_gguf(write_library_gguf(tmp_path / "model.gguf", source, "qwen3", cut=cut), target)
    backend = load_tokenizer(target)._tokenizer
    assert [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str("n 12.\n\nx")] == pieces
    assert backend.encode("n").ids[:1] == (
        [2] if cut == "llama-bpe" else backend.encode("n", add_special_tokens=False).ids
    )


def test_an_unknown_way_to_cut_texts_is_refused(tmp_path: Path) -> None:
    source = make_tiny_model("qwen3", tmp_path / "source")
    with pytest.raises(UserError, match=r"tokenizer\.ggml\.pre = newest"):
        convert_gguf(write_library_gguf(tmp_path / "model.gguf", source, "qwen3", cut="newest"), tmp_path)


def test_an_unknown_scaling_of_positions_is_refused(tmp_path: Path) -> None:
    source = make_tiny_model("llama", tmp_path / "source", rope_theta=500_000.0)
    file = write_library_gguf(tmp_path / "model.gguf", source, "llama", factor=8.0)
    header = read_header(file)
    values = read_tensor(file, header, "rope_freqs.weight")
    start = header.data_start + header.tensors["rope_freqs.weight"].offset
    content = bytearray(file.read_bytes())
    content[start : start + values.nbytes] = (values + np.linspace(0, 2, len(values), dtype=np.float32)).tobytes()
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"rope_freqs\.weight in a way"):
        convert_gguf(file, tmp_path)


def test_tensors_that_would_be_left_out_are_refused(tmp_path: Path) -> None:
    source = make_tiny_model("llama", tmp_path / "source")
    file = write_library_gguf(tmp_path / "model.gguf", source, "llama", extra={"blk.0.attn_q.bias": np.ones(64)})
    with pytest.raises(UserError, match=r"would leave out, blk\.0\.attn_q\.bias among them"):
        convert_gguf(file, tmp_path)


def test_windows_that_the_class_does_not_know_are_refused(tiny: Path, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "llama.gguf", tiny, architecture="llama")
    with pytest.raises(UserError, match=r"would ignore: llama\.attention\.sliding_window = 16"):
        convert_gguf(file, tmp_path)


def test_the_scale_of_attention_in_the_largest_gemmas() -> None:
    fields = {"num_hidden_layers": 62, "hidden_size": 5376, "num_attention_heads": 32, "head_dim": 128}
    assert gemma_query_scalar(fields) == 168  # query_pre_attn_scalar of google/gemma-3-27b-pt
    assert gemma_query_scalar({**fields, "num_hidden_layers": 48, "head_dim": 256}) == 256


def test_an_architecture_that_transformers_does_not_read_is_refused(tiny: Path, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "rwkv6.gguf", tiny, architecture="rwkv6")
    with pytest.raises(UserError, match="cannot read the rwkv6 model"):
        convert_gguf(file, tmp_path)
