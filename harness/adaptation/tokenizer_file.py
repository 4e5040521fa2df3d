"""Read, prune and extend the tokenizer.json of a SentencePiece-like byte-pair encoding such as Gemma's.

Such a tokenizer writes spaces as "▁", starts from single characters, and repeatedly joins the pair of neighbours that
comes first in its list of merges. Unknown characters become bytes.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.errors import UserError

SPACE = "▁"
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
_UNUSED = re.compile(r"<unused\d+>")
_ALWAYS = re.compile(r"▁?[\x21-\x7eА-Яа-яЁё«»—–…№\n\t▁]")
# Whole Cyrillic words and parts of them: new merges join only such pieces.
CYRILLIC_PIECE = re.compile(f"{SPACE}?[А-Яа-яЁё]+")


def read_tokenizer(model_dir: Path) -> dict[str, Any]:
    """Return the parsed tokenizer.json.

    Raises:
        UserError: It cannot be read, or is of another kind.
    """
    path = model_dir / "tokenizer.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}", "copy the model again") from error
    problem = _problem(content)
    if problem:
        raise UserError(
            f"{path}: {problem}", "adapt works on tokenizers like Gemma's: SentencePiece-like BPE with byte fallback"
        )
    return content


def _problem(content: Mapping[str, Any]) -> str | None:
    """Return how a tokenizer differs from Gemma's kind; None where it does not."""
    model = content.get("model") or {}
    if model.get("type") != "BPE":
        return f"a {model.get('type')} tokenizer, not BPE"
    if not model.get("byte_fallback") or any(byte not in model["vocab"] for byte in _BYTES):
        return "no byte fallback"
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix") or model.get("dropout"):
        return "a BPE with prefixes, suffixes or dropout"
    normalizer = content.get("normalizer") or {}
    if normalizer.get("type") != "Replace" or normalizer.get("content") != SPACE:
        return f'spaces are not written as "{SPACE}"'
    return None


def merge_pairs(tokenizer: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the merges in order; older files write a pair as one text."""
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in tokenizer["model"]["merges"])
    return [(left, right) for left, right in pairs]


def always_kept(tokenizer: Mapping[str, Any]) -> set[int]:
    """Return the ids that pruning never drops.

    They are everything up to the last byte (so special and reserved tokens keep their ids), all other added tokens
    except `<unusedN>`, and ASCII, Russian letters and punctuation, with and without a space before them.
    """
    vocabulary = tokenizer["model"]["vocab"]
    kept = set(range(max(vocabulary[byte] for byte in _BYTES) + 1))
    kept |= {token["id"] for token in tokenizer.get("added_tokens") or [] if not _UNUSED.fullmatch(token["content"])}
    return kept | {number for piece, number in vocabulary.items() if _ALWAYS.fullmatch(piece)}


def with_derivations(tokenizer: Mapping[str, Any], ids: Iterable[int]) -> set[int]:
    """Return the ids, and those of every intermediate piece that the encoding makes on its way to one of them.

    The merges that lead to a token depend only on the token's own text: no merge crosses the border of a final token.
    So a tokenizer pruned to such a set encodes every text whose tokens are all kept as it did before.
    """
    vocabulary = tokenizer["model"]["vocab"]
    pieces = {number: piece for piece, number in vocabulary.items()}
    ranks = merge_ranks(tokenizer)
    kept = set(ids)
    for number in list(kept):
        if number not in pieces:  # an added token such as Gemma-3's for images, which nothing is merged into
            continue
        parts = list(pieces[number])
        passed = {*parts, *(left + right for left, right in _joins(parts, ranks))}
        kept |= {vocabulary[piece] for piece in passed if piece in vocabulary}
    return kept


def merge_ranks(tokenizer: Mapping[str, Any]) -> dict[tuple[str, str], int]:
    """Return pair of pieces -> its place in the list of merges."""
    return {pair: rank for rank, pair in enumerate(merge_pairs(tokenizer))}


def last_merge(text: str, ranks: Mapping[tuple[str, str], int]) -> tuple[str, str] | None:
    """Return the two pieces that are joined last when the text is encoded; None if it does not become one piece."""
    joins = list(_joins(list(text), ranks))
    return joins[-1] if joins and "".join(joins[-1]) == text else None


def _joins(parts: list[str], ranks: Mapping[tuple[str, str], int]) -> Iterator[tuple[str, str]]:
    """Yield the pairs that byte-pair encoding joins, in order."""
    parts = list(parts)
    while len(parts) > 1:
        pairs = [(parts[place], parts[place + 1]) for place in range(len(parts) - 1)]
        found = [(ranks[pair], place) for place, pair in enumerate(pairs) if pair in ranks]
        if not found:
            return
        _, place = min(found)
        parts[place : place + 2] = ["".join(pairs[place])]
        yield pairs[place]


def pruned(tokenizer: Mapping[str, Any], kept: Collection[int]) -> dict[str, Any]:
    """Return the tokenizer with only these ids, renumbered in their old order.

    Args:
        tokenizer: From `read_tokenizer`.
        kept: From `with_derivations`; `always_kept` must be among them.
    """
    new_ids = {old: new for new, old in enumerate(sorted(kept))}
    vocabulary = {piece: new_ids[number] for piece, number in tokenizer["model"]["vocab"].items() if number in new_ids}
    merges = [
        [left, right]
        for left, right in merge_pairs(tokenizer)
        if left in vocabulary and right in vocabulary and left + right in vocabulary
    ]
    result = copy.deepcopy({key: value for key, value in tokenizer.items() if key not in ("model", "added_tokens")})
    result["added_tokens"] = [
        {**token, "id": new_ids[token["id"]]} for token in tokenizer["added_tokens"] if token["id"] in new_ids
    ]
    result["model"] = {**tokenizer["model"], "vocab": vocabulary, "merges": merges}
    for special in ((result.get("post_processor") or {}).get("special_tokens") or {}).values():
        special["ids"] = [new_ids[number] for number in special["ids"]]
    return result


def extended(tokenizer: Mapping[str, Any], merges: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return the tokenizer with more merges after its own.

    The new merges apply to the result of the old ones, so every new token stands for a run of old tokens, and a text
    keeps its old tokens wherever no new one fits.

    Args:
        tokenizer: From `read_tokenizer`.
        merges: Pairs of pieces, each piece old or made by an earlier merge. Merges that make the same piece share its
            id.
    """
    vocabulary = dict(tokenizer["model"]["vocab"])
    first = max([*vocabulary.values(), *(token["id"] for token in tokenizer["added_tokens"])]) + 1
    new = dict.fromkeys(left + right for left, right in merges if left + right not in vocabulary)
    vocabulary |= {piece: first + place for place, piece in enumerate(new)}
    all_merges = [*(list(pair) for pair in merge_pairs(tokenizer)), *(list(pair) for pair in merges)]
    return {**tokenizer, "model": {**tokenizer["model"], "vocab": vocabulary, "merges": all_merges}}


def size(tokenizer: Mapping[str, Any]) -> int:
    """Return the number of rows that the model's vocabulary matrix must have."""
    ids = [*tokenizer["model"]["vocab"].values(), *(token["id"] for token in tokenizer["added_tokens"])]
    return max(ids) + 1
