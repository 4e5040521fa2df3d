"""Texts that grow, as every loop of generation sees them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from adapters.base import Sampling
from adapters.sampling import row_generators
from adapters.text import GrowingAnswer, GrowingTokens, common_length, growing_answers

# A shorter common beginning of prompts is not worth a pass of its own.
LEAST_SHARED = 16
# Tokens of remembered texts: some dialogues of the bot. 8,192 tokens of gemma-3-270m are 300 MB in float32.
REMEMBERED_TOKENS = 8_192


@dataclass
class Row:
    """A text that grows.

    Attributes:
        prompt: Its tokens.
        tokens: Those after the prompt.
        answer: Their text, for whoever watches it grow.
        generator: Of the random numbers that choose its tokens.
    """

    prompt: Sequence[int]
    tokens: GrowingTokens
    answer: GrowingAnswer
    generator: np.random.Generator

    def add(self, token: int, ends: bool, watched: bool) -> bool:
        """Append a token; return whether the text ends with it."""
        self.tokens.ids.append(token)
        return (watched and self.answer.update(self.tokens.text())) or ends

    def finish(self, tokenizer: Any) -> str:
        """Return the final text."""
        self.answer.update(tokenizer.decode(self.tokens.ids, skip_special_tokens=True))
        return self.answer.finish()


def new_rows(
    prompts: Sequence[Sequence[int]], sampling: Sampling, on_text: Callable[[int, str], None] | None, tokenizer: Any
) -> list[Row]:
    """Return a row for each prompt; `on_text` is called with its number and its text whenever that has grown."""
    answers = growing_answers(len(prompts), sampling.stop, on_text)
    return [
        Row(prompt, GrowingTokens(tokenizer), answer, generator)
        for prompt, answer, generator in zip(prompts, answers, row_generators(sampling, len(prompts)), strict=True)
    ]


class Remembered(Protocol):
    """A text that was computed."""

    @property
    def tokens(self) -> tuple[int, ...]: ...


Text = TypeVar("Text", bound=Remembered)


def longest_beginning(
    texts: Sequence[Text], prompt: Sequence[int], least: int = LEAST_SHARED
) -> tuple[Text, int] | None:
    """Return the text with which a prompt begins longest, and how many tokens they share; None: fewer than `least`.

    The prompt's last token does not count, since it has to be computed for what follows it.
    """
    lengths = [common_length(prompt[:-1], text.tokens) for text in texts]
    longest = max(lengths, default=0)
    return (texts[lengths.index(longest)], longest) if longest >= least else None


def remembering(texts: Sequence[Text], text: Text) -> list[Text]:
    """Return the texts to keep with a new one: without those that it continues, and the oldest beyond the limit."""
    kept = [other for other in texts if common_length(other.tokens, text.tokens) < len(other.tokens)]
    kept.append(text)
    while len(kept) > 1 and sum(len(one.tokens) for one in kept) > REMEMBERED_TOKENS:
        kept.pop(0)
    return kept
