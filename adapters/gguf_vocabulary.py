"""A model's tokenizer as llama.cpp reads it from a GGUF file.

llama.cpp knows byte-level BPE ("gpt2"), which needs the merges and the name of the expression that cuts texts, and
SentencePiece's BPE ("llama"), which joins those two neighbours first whose joined piece has the highest score. A
tokenizer.json of that kind, such as Gemma's, holds merges and no scores: a piece's score is then the place of its first
merge, negated. Where single merges of a piece are missing or come later than another piece's, scores cannot say so, and
the file gets the merges themselves, which llama.cpp reads under the name "gemma4".
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from adapters.base import UserError
from adapters.gguf_facts import CUTS, IGNORE_MERGES, JOINED_LLAMA3, SINGLE_DIGITS

# llama_token_type
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
SPACE = "▁"
_BYTES = frozenset(f"<0x{byte:02X}>" for byte in range(256))
# Of tokens that are never joined from others, as SentencePiece has it.
_NEVER = -1000.0
# Ends an answer of a chat model, where that is another token than the one that ends a text.
_ENDS_OF_TURN = ("<end_of_turn>", "<|im_end|>", "<|eot_id|>")
_OTHER = "convert the model with llama.cpp's own convert_hf_to_gguf.py"


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says about a tokenizer.

    Attributes:
        tokens: By id; as many as the vocabulary matrix has rows.
        types: Of each token, llama_token_type.
        scores: Of each token; None for tokenizers that are described by their merges.
        merges: In order, each as two pieces with a space between; None for tokenizers that are described by scores.
        settings: Further values by key, without "tokenizer." before it.
    """

    tokens: list[str]
    types: list[int]
    scores: list[float] | None
    merges: list[str] | None
    settings: dict[str, int | str | bool | list[dict[str, str]]]


# Of a file that only a program with a tokenizer of its own runs.
NO_VOCABULARY = Vocabulary([], [], None, None, {"ggml.model": "no_vocab"})


def read_vocabulary(tokenizer: Any, rows: int) -> Vocabulary:
    """Describe a tokenizer.

    Args:
        tokenizer: A fast one of transformers.
        rows: Of the vocabulary matrix. Missing tokens are made up; what the matrix has no row for is left out.

    Raises:
        UserError: llama.cpp cannot encode texts as this tokenizer does.
    """
    content = json.loads(tokenizer._tokenizer.to_str())
    model = content["model"]
    if model["type"] != "BPE" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise UserError(f"a {model['type']} tokenizer of this form cannot be written to a GGUF file", _OTHER)
    pieces = {number: piece for piece, number in model["vocab"].items()}
    # Gemma's tokenizer.json lists its runs of spaces as added tokens, too, but only merges reach these.
    joined = {number for number, piece in pieces.items() if SPACE in piece}
    added = {token["id"]: token for token in content["added_tokens"] if token["id"] not in joined}
    texts = {**pieces, **{number: token["content"] for number, token in added.items()}}
    tokens = [texts.get(number, f"[PAD{number}]") for number in range(rows)]
    types = [_type(number, pieces, added) for number in range(rows)]
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    merges: list[str] | None = [f"{left} {right}" for left, right in pairs]
    scores = None
    settings = {**_special_tokens(tokenizer, tokens), **_template(tokenizer)}
    if cut := _byte_level_name(content):
        settings |= {"ggml.model": "gpt2", "ggml.pre": cut}
    else:
        settings["ggml.add_space_prefix"] = _puts_space(content)
        if _scores_suffice(pairs, model["vocab"]):
            settings |= {"ggml.model": "llama", "ggml.pre": "default"}
            scores, merges = _scores(tokens, types, pairs), None
        elif any("\n" in pair[0] + pair[1] and (pair[0] + pair[1]).strip("\n") for pair in pairs):
            raise UserError("the model's tokenizer joins line breaks with letters, which llama.cpp does not do", _OTHER)
        else:
            settings |= {"ggml.model": "gemma4"}
    return Vocabulary(tokens, types, scores, merges, settings)


def _type(number: int, pieces: Mapping[int, str], added: Mapping[int, Any]) -> int:
    if number in added:
        return CONTROL if _is_control(added[number]) else USER_DEFINED
    if number not in pieces:
        return UNUSED
    return BYTE if pieces[number] in _BYTES else NORMAL


def _is_control(token: Mapping[str, Any]) -> bool:
    """Return whether a token is no text. Some models do not mark theirs as special, so its form counts as well."""
    text = token["content"]
    marked = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))
    return bool(token["special"]) or any(text.startswith(start) and text.endswith(end) for start, end in marked)


def _special_tokens(tokenizer: Any, tokens: list[str]) -> dict[str, int | str | bool | list[dict[str, str]]]:
    """Return the ids of special tokens, and which of them stand around a text."""
    known = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "unknown": tokenizer.unk_token_id,
        "padding": tokenizer.pad_token_id,
    }
    text = set(tokens)
    end_of_turn = next((token for token in _ENDS_OF_TURN if token in text), None)
    if end_of_turn is not None:
        known["eot"] = tokenizer.convert_tokens_to_ids(end_of_turn)
    ids = tokenizer._tokenizer.encode("a").ids
    return {
        **{
            f"ggml.{name}_token_id": number
            for name, number in known.items()
            if number is not None and number < len(tokens)
        },
        "ggml.add_bos_token": ids[0] == known["bos"],
        "ggml.add_eos_token": ids[-1] == known["eos"],
    }


def _template(tokenizer: Any) -> dict[str, str | list[dict[str, str]]]:
    template = tokenizer.chat_template
    if isinstance(template, dict):
        return {"chat_template": [{"name": name, "template": text} for name, text in template.items()]}
    return {"chat_template": template} if template else {}


def _byte_level_name(content: Mapping[str, Any]) -> str | None:
    """Return llama.cpp's name for how a byte-level tokenizer cuts texts; None for a tokenizer of another kind.

    Raises:
        UserError: llama.cpp has no name for it.
    """
    *splits, last = (content["pre_tokenizer"] or {"type": None}).get("pretokenizers", [content["pre_tokenizer"]])
    if (last or {}).get("type") != "ByteLevel":
        return None
    found = None
    normalizer = (content["normalizer"] or {"type": "NFC"})["type"]  # llama.cpp does not normalise; most texts are NFC
    if normalizer == "NFC" and not last["add_prefix_space"]:
        found = _cut(splits, last["use_regex"], bool(content["model"].get("ignore_merges")))
    if found is None:
        raise UserError("llama.cpp knows no name for the way in which the model's tokenizer cuts texts", _OTHER)
    return found


def _cut(splits: list[dict[str, Any]], gpt2: bool, ignore_merges: bool) -> str | None:
    kinds = [split["type"] for split in splits]
    name = None
    if gpt2:
        digits = kinds == ["Digits"] and splits[0]["individual_digits"]
        name = SINGLE_DIGITS[0] if digits else None if splits else "gpt-2"
    elif kinds == ["Split"] and splits[0]["behavior"] == "Isolated" and not splits[0]["invert"]:
        expression = splits[0]["pattern"].get("Regex")
        name = next((name for name, known in CUTS.items() if known and known == expression), None)
        if name in IGNORE_MERGES and not ignore_merges:
            name = JOINED_LLAMA3
    return name if ignore_merges == (name in IGNORE_MERGES) else None


def _puts_space(content: Mapping[str, Any]) -> bool:
    """Return whether a SentencePiece-like tokenizer puts a space before a text.

    Raises:
        UserError: It is of another kind.
    """
    normalizers = _flat(content["normalizer"], "normalizers")
    pre_tokenizers = _flat(content["pre_tokenizer"], "pretokenizers")
    replaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepends = {"type": "Prepend", "prepend": SPACE}
    model = content["model"]
    known = [step for step in normalizers if step in (replaces, prepends)] == normalizers
    if known and model.get("byte_fallback") and model["vocab"].keys() >= _BYTES and not model.get("ignore_merges"):
        # After the normaliser no text holds a space to be split at.
        split = all(step.get("pattern") == {"String": " "} for step in pre_tokenizers)
        if normalizers and normalizers[-1] == replaces and split:
            return prepends in normalizers
        metaspace = [step for step in pre_tokenizers if step["type"] == "Metaspace"]
        if not normalizers and len(metaspace) == len(pre_tokenizers) == 1 and not metaspace[0].get("split", True):
            return metaspace[0].get("prepend_scheme") != "never"
    raise UserError("the model's tokenizer is of no kind that llama.cpp reads from GGUF files", _OTHER)


def _flat(step: Mapping[str, Any] | None, key: str) -> list[Mapping[str, Any]]:
    return [] if step is None else step.get(key, [step])


def _scores_suffice(pairs: list[tuple[str, ...]], vocabulary: Mapping[str, int]) -> bool:
    """Return whether joining by a piece's score gives what joining by the order of merges gives.

    It does where all ways to make a piece of two others are merges and follow each other directly.
    """
    made = ["".join(pair) for pair in pairs]
    groups = [piece for place, piece in enumerate(made) if place == 0 or piece != made[place - 1]]
    if len(groups) > len(set(groups)):
        return False
    return set(pairs) >= {pair for piece in vocabulary for pair in _halves(piece, vocabulary)}


def _halves(piece: str, vocabulary: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Yield the pairs of pieces that a piece could be joined from."""
    for place in range(1, len(piece)):
        if piece[:place] in vocabulary and piece[place:] in vocabulary:
            yield piece[:place], piece[place:]


def _scores(tokens: list[str], types: list[int], pairs: list[tuple[str, ...]]) -> list[float]:
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(pairs):
        ranks.setdefault("".join(pair), rank)
    last = -float(len(pairs))
    return [
        _NEVER if kind in (CONTROL, USER_DEFINED, UNUSED) else 0.0 if kind == BYTE else -float(ranks.get(token, -last))
        for token, kind in zip(tokens, types, strict=True)
    ]
