"""Tokenizers in GGUF files: llama.cpp and the converter of the other direction encode texts as the source does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from adapters.base import UserError
from adapters.gguf_vocabulary import read_vocabulary
from adapters.gguf_writer import write_gguf
from adapters.llama_library import library_file
from adapters.text import load_tokenizer
from harness.adaptation.tokenizer_file import extended
from harness.models.gguf import convert_gguf
from tests.byte_level import LLAMA3, QWEN, byte_level_tokenizer
from tests.llama_cpp import LlamaFile
from tests.russian_tokenizer import mini_texts, russian_tokenizer_json
from tests.tiny_gemma import make_tiny_tokenizer
from tests.tiny_models import make_tiny_model

ODD = (
    "", " ", "  два  пробела ", "\n\n\nстроки\r\n\tи\tтабуляция", "Ёё ▁подчёркнутый▁пробел", "а" * 70,
    "🙂👩‍👩‍👧 émoji ñ 漢字 한국어", "I'LL we've 12 3456 1,234.5 №5", "</s><s>[INST]", "\u200d\xa0\ufeff",
    "<bos>в начале<eos> и <start_of_turn>внутри<unused0>", " " * 40 + "x", "a  b   c    d", "слово,слово;—«слово»…",
)  # fmt: skip


def sentencepiece_like(**changes: Any) -> PreTrainedTokenizerFast:
    """A tokenizer of Gemma's kind with some parts of its tokenizer.json changed."""
    content = {**json.loads(russian_tokenizer_json()), **changes}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
    )


def with_new_merges() -> PreTrainedTokenizerFast:
    """A tokenizer of Gemma's kind with further merges of pieces that could be joined in other ways, too."""
    content = json.loads(russian_tokenizer_json())
    content["model"]["merges"] = [pair for pair in content["model"]["merges"] if "\n" not in "".join(pair)]
    pieces = [piece for piece in content["model"]["vocab"] if piece.isalpha() and len(piece) > 1]
    vocabulary = content["model"]["vocab"]
    new = [(left, right) for left in pieces[:40] for right in pieces[:40] if left + right not in vocabulary]
    return sentencepiece_like(**extended(content, new[::7]))


def digits_apart() -> PreTrainedTokenizerFast:
    content = json.loads(byte_level_tokenizer(None, mini_texts()).backend_tokenizer.to_str())
    digits = {"type": "Digits", "individual_digits": True}
    content["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [digits, content["pre_tokenizer"]["pretokenizers"][0]],
    }
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)), eos_token="<eos>")


def whole_pieces() -> PreTrainedTokenizerFast:
    """Llama 3's kind: what is a token is taken whole, and one stands in front."""
    content = json.loads(byte_level_tokenizer(LLAMA3, mini_texts()).backend_tokenizer.to_str())
    content["model"]["ignore_merges"] = True
    content["model"]["merges"] = content["model"]["merges"][:-100]
    special = {"<eos>": {"id": "<eos>", "ids": [content["added_tokens"][0]["id"]], "tokens": ["<eos>"]}}
    first = [{"SpecialToken": {"id": "<eos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": first,
        "pair": [*first, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": special,
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)), bos_token="<eos>", eos_token="<eos>"
    )


def with_runs_of_spaces() -> PreTrainedTokenizerFast:
    """A tokenizer whose runs of spaces are pieces and added tokens, as in google/gemma-3-270m."""
    content = json.loads(russian_tokenizer_json())
    runs = ["▁" * length for length in range(2, 8)]
    content = extended(content, [(run[:place], run[place:]) for run in runs for place in range(1, len(run))])
    vocabulary = content["model"]["vocab"]
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    added = [{"id": vocabulary[run], "content": run, **plain} for run in runs]
    return sentencepiece_like(**{**content, "added_tokens": [*content["added_tokens"], *added]})


TOKENIZERS = {
    "gemma": lambda: sentencepiece_like(),
    "gemma, spaces": with_runs_of_spaces,
    "gemma, extended": with_new_merges,
    "llama 2": lambda: sentencepiece_like(
        pre_tokenizer=None,
        normalizer={
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
    ),
    "tiny": make_tiny_tokenizer,
    "gpt-2": lambda: byte_level_tokenizer(None, mini_texts()),
    "qwen": lambda: byte_level_tokenizer(QWEN, mini_texts()),
    "llama 3, joined": lambda: byte_level_tokenizer(LLAMA3, mini_texts()),
    "llama 3": whole_pieces,
    "smollm": digits_apart,
}
NAMES = {  # tokenizer.ggml.model, tokenizer.ggml.pre
    "gemma": ("llama", "default"),
    "gemma, spaces": ("llama", "default"),
    "gemma, extended": ("gemma4", None),
    "llama 2": ("llama", "default"),
    "tiny": ("llama", "default"),
    "gpt-2": ("gpt2", "gpt-2"),
    "qwen": ("gpt2", "qwen2"),
    "llama 3, joined": ("gpt2", "smaug-bpe"),
    "llama 3": ("gpt2", "llama-bpe"),
    "smollm": ("gpt2", "smollm"),
}
ROWS = 1500  # of the vocabulary matrix, more than any of these has tokens


@pytest.mark.parametrize("name", TOKENIZERS)
def test_llama_cpp_encodes_texts_as_the_tokenizer_does(tmp_path: Path, name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    model_dir = make_tiny_model("llama", tmp_path / "model", vocab_size=ROWS)
    tokenizer.save_pretrained(model_dir)
    file = tmp_path / "model.gguf"
    write_gguf(model_dir, file, "f16")
    values = gguf.GGUFReader(file).fields
    found = tuple(
        values[key].contents() if (key := f"tokenizer.ggml.{part}") in values else None for part in ("model", "pre")
    )
    assert found == NAMES[name]
    tokens = values["tokenizer.ggml.tokens"].contents()
    assert len(tokens) == len(set(tokens)) == ROWS
    assert tokens[-1] == f"[PAD{ROWS - 1}]"
    if library_file() is None:
        pytest.skip("xllamacpp is not installed")
    llama = LlamaFile(file, vocabulary_only=True)
    for text in (*ODD, *mini_texts()):
        assert llama.tokens(text) == tokenizer._tokenizer.encode(text).ids, text


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("gemma3_text", "gemma"),
        ("gemma3_text", "gemma, extended"),
        ("llama", "gemma"),
        ("llama", "llama 2"),
        ("llama", "llama 3, joined"),
        ("qwen3", "qwen"),
        ("qwen3", "llama 3"),
        ("qwen3", "smollm"),
    ],
)
def test_the_converter_of_the_other_direction_reads_the_tokenizer_back(
    tmp_path: Path, architecture: str, name: str
) -> None:
    tokenizer = TOKENIZERS[name]()
    model_dir = make_tiny_model(architecture, tmp_path / "model", vocab_size=ROWS)
    tokenizer.save_pretrained(model_dir)
    write_gguf(model_dir, tmp_path / "model.gguf", "bf16")
    (tmp_path / "back").mkdir()
    convert_gguf(tmp_path / "model.gguf", tmp_path / "back")
    back = load_tokenizer(tmp_path / "back")
    for text in mini_texts():
        assert back._tokenizer.encode(text).ids == tokenizer._tokenizer.encode(text).ids, text


def test_a_tokenizer_that_llama_cpp_does_not_know_is_refused() -> None:
    with pytest.raises(UserError, match="no name for the way"):
        read_vocabulary(byte_level_tokenizer(r"\w+|\W+", mini_texts()), ROWS)
    no_bytes = json.loads(russian_tokenizer_json())["model"] | {"byte_fallback": False}
    joining = json.loads(russian_tokenizer_json())
    del joining["model"]["merges"][::7]
    with pytest.raises(UserError, match="joins line breaks"):
        read_vocabulary(sentencepiece_like(**joining), ROWS)
    with pytest.raises(UserError, match="of no kind that llama"):
        read_vocabulary(sentencepiece_like(model=no_bytes), ROWS)
