"""A small tokenizer of Gemma's kind that was learned from the mini set's Russian, and a random model with it."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from tests.tiny_gemma import SPECIAL_TOKENS, make_tiny_gemma

_PIECES = 800
_UNUSED = ["<unused0>", "<unused1>"]


@functools.cache
def mini_texts() -> tuple[str, ...]:
    from harness.data.corpus import task_texts

    return tuple(dict.fromkeys(text for texts in task_texts("mini").values() for text in texts))


@functools.cache
def russian_tokenizer_json() -> str:
    """tokenizer.json with Gemma's order of ids: special tokens, reserved ones, bytes, pieces, more reserved ones.

    As in a converted SentencePiece model every pair of pieces whose joined text is a piece is a merge, in the order of
    the joined pieces.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    learned = Tokenizer(models.BPE())
    learned.normalizer = normalizers.Replace(" ", "▁")
    learned.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    learned.train_from_iterator(mini_texts(), trainers.BpeTrainer(vocab_size=_PIECES, show_progress=False))
    by_id = sorted(learned.get_vocab().items(), key=lambda entry: entry[1])
    merged = [piece for piece, _ in by_id if len(piece) > 1]
    letters = sorted({"▁", "\n", *(piece for piece, _ in by_id if len(piece) == 1), *"abcdefghijklmnopqrstuvwxyz"})
    control = [*SPECIAL_TOKENS, _UNUSED[0], *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {piece: number for number, piece in enumerate([*control, *merged, *letters, _UNUSED[1]])}
    merges = []
    for piece in merged:
        splits = ((piece[:place], piece[place:]) for place in range(1, len(piece)))
        known = [pair for pair in splits if pair[0] in vocabulary and pair[1] in vocabulary]
        merges.extend(sorted(known, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]])))

    def added(content: str, special: bool) -> dict[str, Any]:
        plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        return {"id": vocabulary[content], "content": content, **plain, "special": special}

    bos = vocabulary["<bos>"]
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [added(token, special=True) for token in [*SPECIAL_TOKENS, *_UNUSED]],
            "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            "pre_tokenizer": {
                "type": "Split",
                "pattern": {"String": " "},
                "behavior": "MergedWithPrevious",
                "invert": False,
            },
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<bos>": {"id": "<bos>", "ids": [bos], "tokens": ["<bos>"]}},
            },
            "decoder": {
                "type": "Sequence",
                "decoders": [
                    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                    {"type": "ByteFallback"},
                    {"type": "Fuse"},
                ],
            },
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": "<unk>",
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": True,
                "byte_fallback": True,
                "ignore_merges": False,
                "vocab": vocabulary,
                "merges": merges,
            },
        },
        ensure_ascii=False,
    )


def make_russian_gemma(directory: Path, **config_overrides: Any) -> Path:
    """A random Gemma-3 with this tokenizer; see `make_tiny_gemma`."""
    tokenizer = json.loads(russian_tokenizer_json())
    size = len(tokenizer["model"]["vocab"])
    make_tiny_gemma(directory, vocab_size=size, max_position_embeddings=4096, **config_overrides)
    (directory / "tokenizer.json").write_text(russian_tokenizer_json(), encoding="utf-8")
    return directory
