"""Tokenizers, and generated text while it grows: stop strings, text that further tokens may still change."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from adapters.base import UserError, library_errors

# How the tokenizers of Qwen and Llama 3 cut a text before they join bytes; %s: of digits.
CUTTING_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
END_OF_TURN = "<end_of_turn>"  # ends an answer of instruction-tuned Gemma
# What holds a tokenizer: its own format, SentencePiece's, byte-level BPE's.
_TOKENIZER_KINDS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))
# Tokens of a growing answer that are decoded again before a part of its text is settled.
TAIL_TOKENS = 8
# Older tokenizers keep tokens here that tokenizer.json may lack.
_TOKEN_FILES = ("special_tokens_map.json", "added_tokens.json")


class GrowingAnswer:
    """One answer as its tokens come.

    Args:
        stop: Strings of which the first ends the answer, without being part of it.
        report: Called with the whole text so far whenever it has grown. Text that a further token could take back (half
            a character, half a stop string) is reported only once it is settled.
    """

    def __init__(self, stop: Sequence[str], report: Callable[[str], None] | None = None) -> None:
        self._stop = [string for string in stop if string]
        self._report = report
        self._whole = ""
        self.text = ""

    def update(self, whole: str) -> bool:
        """Take the decoded text of all tokens so far; return True once a stop string was found."""
        self._whole = whole
        cut, stopped = cut_at_stop(whole, self._stop)
        settled = cut if stopped else _settled(cut, self._stop)
        if settled.startswith(self.text):
            self._show(settled)
        return stopped

    def finish(self) -> str:
        """Return the final text, with what was held back."""
        self._show(cut_at_stop(self._whole, self._stop)[0])
        return self.text

    def _show(self, text: str) -> None:
        if text != self.text:
            self.text = text
            if self._report:
                self._report(text)


class GrowingTokens:
    """The tokens of one answer as they come, and their text without decoding all of them again at each token.

    Args:
        tokenizer: A transformers tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.ids: list[int] = []
        # The text of the first `_end` tokens, which further tokens cannot change. Tokens from `_start` on are decoded
        # with those that follow: some tokenizers drop a space before the first token, or join bytes to characters.
        self._settled = ""
        self._start = self._end = 0
        self._context = ""

    def text(self) -> str:
        """Return the text of all tokens so far, special tokens left out."""
        decoded = self._decode(self._start)
        if not decoded.startswith(self._context):  # a byte that spoils the character before it
            return self._decode(0)
        text = self._settled + decoded[len(self._context) :]
        if len(self.ids) - self._end >= TAIL_TOKENS and not text.endswith("\N{REPLACEMENT CHARACTER}"):
            context = self._decode(self._end)
            if context.strip():
                self._settled, self._context = text, context
                self._start, self._end = self._end, len(self.ids)
        return text

    def _decode(self, start: int) -> str:
        return self._tokenizer.decode(self.ids[start:], skip_special_tokens=True)


def growing_answers(count: int, stop: Sequence[str], on_text: Callable[[int, str], None] | None) -> list[GrowingAnswer]:
    """Return an answer for each prompt of a batch; `on_text` is called with its number and its text."""
    return [GrowingAnswer(stop, functools.partial(on_text, index) if on_text else None) for index in range(count)]


def common_length(a: Sequence[int], b: Sequence[int], limit: int | None = None) -> int:
    """Return the number of tokens with which both begin, at most `limit`."""
    limit = min(len(a), len(b)) if limit is None else min(limit, len(a), len(b))
    one, other = tuple(a[:limit]), tuple(b[:limit])
    if one == other:
        return limit
    low, high = 0, limit  # one[:low] is shared, one[:high] is not: bisect with slices compared in C
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low


def cut_at_stop(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """Return the text before the first stop string, and whether there was one."""
    ends = [end for end in (text.find(string) for string in stop) if end >= 0]
    return (text[: min(ends)], True) if ends else (text, False)


def _settled(text: str, stop: Sequence[str]) -> str:
    """Return the part of a growing text that no further token can take back: no half character or stop string."""
    text = text.rstrip("\N{REPLACEMENT CHARACTER}")
    halves = (string[:size] for string in stop for size in range(1, len(string)))
    return text[: len(text) - max((len(half) for half in halves if text.endswith(half)), default=0)]


def end_tokens(tokenizer: Any, configured: int | list[int] | None) -> frozenset[int]:
    """Return the ids that end an answer: the configuration's, the tokenizer's own, and <end_of_turn> if it exists."""
    found = set(configured) if isinstance(configured, list) else {configured}
    found |= {tokenizer.eos_token_id, tokenizer._tokenizer.token_to_id(END_OF_TURN)}
    return frozenset(token for token in found if token is not None)


def configured_ends(model_dir: Path) -> int | list[int] | None:
    """Return the end tokens of a directory's generation_config.json, else of its config.json."""
    for name in ("generation_config.json", "config.json"):
        file = model_dir / name
        if file.is_file():
            ends = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
            if ends is not None:
                return ends
    return None


def tokenizer_files(model_dir: Path) -> list[Path]:
    """Return the files that a model's tokenizer is read from: tokenizer.json, else those of older kinds.

    Raises:
        UserError: There is no tokenizer.
    """
    for names in _TOKENIZER_KINDS:
        if all((model_dir / name).is_file() for name in names):
            return [model_dir / name for name in names]
    raise UserError(f"{model_dir} has no tokenizer.json", "copy the tokenizer's files beside config.json")


def load_tokenizer(model_dir: Path) -> Any:
    """Return the directory's tokenizer as a fast one of transformers.

    AutoTokenizer would rebuild Gemma's tokenizer from its vocabulary, and parse tokenizer.json (33 MB) twice. Where
    tokenizer.json holds all added tokens, an empty list of further ones saves the second parse here.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if not (model_dir / "tokenizer.json").is_file():  # transformers converts the older kinds
        with library_errors(f"cannot read the tokenizer in {model_dir}", "copy the model's tokenizer.json"):
            return AutoTokenizer.from_pretrained(model_dir, use_fast=True)
    settings = model_dir / "tokenizer_config.json"
    has_more = settings.is_file() and "added_tokens_decoder" in json.loads(settings.read_text(encoding="utf-8"))
    complete = not has_more and not any((model_dir / name).is_file() for name in _TOKEN_FILES)
    with library_errors(f"cannot read the tokenizer in {model_dir}", "copy the model's tokenizer files again"):
        return PreTrainedTokenizerFast.from_pretrained(model_dir, **({"added_tokens_decoder": {}} if complete else {}))
