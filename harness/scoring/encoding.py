"""Texts to token sequences, by lm-eval's rules for the border between context and continuation.

lm-eval (`TemplateLM._encode_pair`) moves the context's trailing white space into the continuation, encodes both as one
text, and splits the tokens at the length of the encoded context. Done literally, this encodes a context once for itself
and once more for every choice. `TextEncoder` encodes each distinct line once in a run instead, where `line_pattern` can
prove that this gives the tokens of the whole text; else it encodes whole texts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import BPE

from adapters.text import CUTTING_PATTERN
from harness.errors import UserError

# Without a pre-tokenizer: spaces inside a line may belong to a token that spans them, so only runs of line breaks are
# borders.
_LINES = re.compile(r"\n+|[^\n]+")
# Qwen's and Llama 3's pre-tokenizers. A run of white space is cut after its last line break, whatever
# follows: only `\s*[\r\n]+` and punctuation with the line breaks behind it can hold one, and both end with it.
_AFTER_BREAKS = re.compile(r"[^\r\n]*[\r\n](?:\s*[\r\n])?|[^\r\n]+")
# GPT-2's: white space before a word is cut before its last character, so only a line break alone, between two
# characters that are no white space, is a piece whatever surrounds it.
_SINGLE_BREAKS = re.compile(r".+?(?<=\S\n)(?=\S)|.+", re.DOTALL)
# Regular expression of a pre-tokenizer -> what matches the parts of a text between its borders.
_PATTERNS = {CUTTING_PATTERN % digits: _AFTER_BREAKS for digits in (r"\p{N}", r"\p{N}{1,3}")}


@dataclass(frozen=True)
class ScoredSequence:
    """One request: the log-probability of the tokens from `continuation_start` on, each given all tokens before it."""

    tokens: tuple[int, ...]
    continuation_start: int  # at least 1: the first token is never predicted
    dropped: int = 0  # tokens cut from the left, because the model's context is shorter

    @property
    def inputs(self) -> tuple[int, ...]:
        """The tokens that the model reads: all but the last, which is only predicted."""
        return self.tokens[:-1]


def line_pattern(tokenizer: Tokenizer) -> re.Pattern[str] | None:
    """Return what matches the parts of a text that, encoded one by one, give the tokens of the whole text.

    None where no such parts are known.
    """
    model = tokenizer.model
    if not isinstance(model, BPE) or model.continuing_subword_prefix or model.end_of_word_suffix:
        return None
    added = tokenizer.get_added_tokens_decoder().values()
    if any(token.lstrip or token.rstrip or token.single_word for token in added):
        return None
    # The whole tokenizer as JSON takes more than a second; one with the same steps and no vocabulary takes none.
    steps = Tokenizer(BPE())
    steps.normalizer = tokenizer.normalizer
    steps.pre_tokenizer = tokenizer.pre_tokenizer
    parsed = json.loads(steps.to_str())
    normalizer, pre_tokenizer = parsed["normalizer"], parsed["pre_tokenizer"]
    if _splits_at_one_character(pre_tokenizer):
        # No merge may cross the end of a line, so no token may join a line break with another character.
        joins = any("\n" in piece and piece.strip("\n") for piece in tokenizer.get_vocab(with_added_tokens=True))
        return _LINES if _replaces_one_character(normalizer) and not joins else None
    # A line break composes with nothing, so NFC changes no border.
    if (normalizer or {}).get("type", "NFC") != "NFC" or any("\n" in token.content for token in added):
        return None
    return _byte_level_pattern(pre_tokenizer)


def _byte_level_pattern(pre_tokenizer: dict[str, Any]) -> re.Pattern[str] | None:
    """Return the pattern for a pre-tokenizer that cuts by a regular expression and then writes bytes as characters."""
    *splits, last = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return None
    if last["use_regex"]:
        return None if splits else _SINGLE_BREAKS
    if len(splits) != 1 or splits[0].get("behavior") != "Isolated" or splits[0].get("invert"):
        return None
    return _PATTERNS.get(splits[0].get("pattern", {}).get("Regex", ""))


def _replaces_one_character(normalizer: dict[str, Any] | None) -> bool:
    if normalizer is None:
        return True
    pattern = normalizer.get("pattern", {}).get("String", "")
    return normalizer.get("type") == "Replace" and len(pattern) == 1 and pattern != "\n"


def _splits_at_one_character(pre_tokenizer: dict[str, Any] | None) -> bool:
    if pre_tokenizer is None:
        return True
    pattern = pre_tokenizer.get("pattern", {}).get("String", "")
    return pre_tokenizer.get("type") == "Split" and len(pattern) == 1


class TextEncoder:
    """Encode texts with a `transformers` fast tokenizer, each distinct line once.

    Args:
        tokenizer: The model's.
        vocabulary_size: Rows of the model's vocabulary matrix; a token beyond them is an error of the user's. None: not
            known, so not checked.

    Attributes:
        encoded: Number of texts passed to the tokenizer so far.
    """

    def __init__(self, tokenizer: Any, vocabulary_size: int | None = None) -> None:
        self._vocabulary_size = vocabulary_size
        self._tokenizer: Tokenizer = tokenizer._tokenizer  # the Rust tokenizer: no Python wrapper work for every line
        self._ids: dict[str, list[int]] = {}
        self.bos_id: int | None = tokenizer.bos_token_id
        # What an unconditional text follows, as in lm-eval.
        self.start_id: int | None = tokenizer.eos_token_id if self.bos_id is None else self.bos_id
        self._bos_text: str | None = tokenizer.bos_token
        self._prefix = self._own_prefix(tokenizer)
        self._parts = line_pattern(self._tokenizer)
        self.encoded = 0

    @staticmethod
    def _own_prefix(tokenizer: Any) -> list[int]:
        """Return the tokens that belong before every text (Gemma: one BOS).

        The tokenizer says so by putting them there, or its configuration by `add_bos_token`.
        """
        with_special = list(tokenizer("a").input_ids)
        without = list(tokenizer("a", add_special_tokens=False).input_ids)
        # Some put tokens after the text too (EOS), where a continuation would follow: they are left out.
        places = range(len(with_special) - len(without) + 1)
        start = next((place for place in places if with_special[place : place + len(without)] == without), 0)
        if start == 0 and tokenizer.bos_token_id is not None and tokenizer.init_kwargs.get("add_bos_token"):
            return [tokenizer.bos_token_id]
        return with_special[:start]

    @property
    def puts_bos(self) -> bool:
        """Whether texts begin with BOS."""
        return self.bos_id is not None and self.bos_id in self._prefix

    def prepare(self, texts: Iterable[str]) -> None:
        """Encode the lines of all texts in one parallel batch, so that later calls only look them up."""
        missing = dict.fromkeys(piece for text in texts for piece in self._pieces(text) if piece not in self._ids)
        if missing:
            self._encode_pieces(list(missing))

    def encode(self, text: str) -> list[int]:
        """Return the token ids after the tokenizer's own BOS, which is not doubled where the text begins with one."""
        body = self.encode_bare(text)
        if self._bos_text and text.startswith(self._bos_text):
            return body
        return [*self._prefix, *body]

    def encode_bare(self, text: str) -> list[int]:
        """Return the token ids of a text alone."""
        self.prepare([text])
        return [token for piece in self._pieces(text) for token in self._ids[piece]]

    def _pieces(self, text: str) -> list[str]:
        return self._parts.findall(text) if self._parts else [text]

    def _encode_pieces(self, pieces: list[str]) -> None:
        self.encoded += len(pieces)
        for piece, encoding in zip(
            pieces, self._tokenizer.encode_batch_fast(pieces, add_special_tokens=False), strict=True
        ):
            if self._vocabulary_size is not None and max(encoding.ids, default=0) >= self._vocabulary_size:
                self._refuse(max(encoding.ids))
            self._ids[piece] = encoding.ids

    def _refuse(self, token: int) -> None:
        raise UserError(
            f"the tokenizer makes token {token} ({self._tokenizer.id_to_token(token)!r}), "
            f"and the model's vocabulary matrix has {self._vocabulary_size} rows",
            "use the tokenizer that belongs to the model, or resize the model's embeddings",
        )


def move_trailing_space(context: str, continuation: str) -> tuple[str, str]:
    """Move the context's trailing white space into the continuation, to whose first token it belongs."""
    bare = context.rstrip()
    return bare, context[len(bare) :] + continuation


def encode_pairs(encoder: TextEncoder, pairs: Sequence[tuple[str, str]], context_length: int) -> list[ScoredSequence]:
    """Return the token sequences of (context, continuation) pairs.

    A sequence longer than the model's context loses tokens from the left, as in lm-eval, but keeps its BOS, without
    which Gemma-3 fails.

    Raises:
        UserError: A continuation has no token of its own, or it alone fills the model's context.
    """
    moved = [move_trailing_space(context, continuation) for context, continuation in pairs]
    encoder.prepare(text for context, continuation in moved for text in (context, context + continuation))
    return [_scored_sequence(encoder, context, continuation, context_length) for context, continuation in moved]


def _scored_sequence(encoder: TextEncoder, context: str, continuation: str, context_length: int) -> ScoredSequence:
    if context:
        whole = encoder.encode(context + continuation)
        start = len(encoder.encode(context))
    else:
        # As in lm-eval, BOS alone (EOS where there is none) is the context of an unconditional continuation.
        whole = encoder.encode(continuation)
        if encoder.start_id is not None and whole[:1] != [encoder.start_id]:
            whole = [encoder.start_id, *whole]
        start = 1
    if start >= len(whole) or start < 1:
        raise UserError(
            f"the continuation {continuation!r} has no token of its own",
            "every choice of a task must add text to its prompt",
        )
    return _cut_from_left(whole, start, context_length, encoder.bos_id)


def rolling_sequences(encoder: TextEncoder, text: str, context_length: int) -> list[ScoredSequence]:
    """Return windows over a text in which each of its tokens is predicted once, as lm-eval cuts them.

    The first window begins with BOS (EOS where there is none), once: lm-eval's own model also predicts that BOS after
    another where its tokenizer puts one. The last window is as long as the context.

    Raises:
        UserError: The tokenizer has neither BOS nor EOS.
    """
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    if encoder.start_id is None:
        raise UserError("the tokenizer has neither BOS nor EOS, which the first token of a text follows", "")
    windows = get_rolling_token_windows(encoder.encode_bare(text), encoder.start_id, context_length, context_len=1)
    pairs = [make_disjoint_window(window) for window in windows]
    return [ScoredSequence((*context, *predicted), len(context)) for context, predicted in pairs]


def _cut_from_left(whole: list[int], start: int, context_length: int, bos_id: int | None) -> ScoredSequence:
    dropped = len(whole) - 1 - context_length  # the last token is predicted, not read
    if dropped <= 0:
        return ScoredSequence(tuple(whole), start)
    if len(whole) - start >= context_length:
        raise UserError(
            f"a continuation of {len(whole) - start} tokens fills the model's context of {context_length} tokens",
            "use a model with a longer context, or a shorter prompt",
        )
    kept = cut_prompt(whole, context_length + 1, bos_id)
    return ScoredSequence(tuple(kept), start - (len(whole) - len(kept)), len(whole) - len(kept))


def cut_prompt(tokens: list[int], length: int, bos_id: int | None) -> list[int]:
    """Return the last `length` tokens; if the tokens began with the BOS, it replaces the first that is left."""
    if len(tokens) <= length:
        return tokens
    if bos_id is not None and tokens[0] == bos_id:
        return [bos_id, *tokens[len(tokens) - length + 1 :]]
    return tokens[-length:]
