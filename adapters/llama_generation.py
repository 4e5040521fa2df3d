"""Text generation by llama.cpp: a sequence of the cache for each text, and texts kept for later prompts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from adapters.base import Sampling
from adapters.growing import LEAST_SHARED, REMEMBERED_TOKENS, longest_beginning, new_rows, remembering
from adapters.llama_context import SEQUENCES, ContextSettings, LlamaContext, LlamaModel, decode_rows
from adapters.sampling import next_token
from adapters.text import common_length


@dataclass(frozen=True)
class _Text:
    """A text whose cells are kept: its tokens, and the sequence that they belong to."""

    tokens: tuple[int, ...]
    sequence: int


class LlamaGeneration:
    """Generates with one model.

    Args:
        model: The weights.
        settings: How it computes.
        tokenizer: A transformers tokenizer.
        end_tokens: Tokens of which each ends a text, besides those that the file names.
    """

    def __init__(
        self, model: LlamaModel, settings: ContextSettings, tokenizer: object, end_tokens: Collection[int]
    ) -> None:
        self._model = model
        self._settings = settings
        self._tokenizer = tokenizer
        self._end_tokens = end_tokens
        self._context: LlamaContext | None = None
        self._remembered: list[_Text] = []  # the oldest first
        self._forgets = False

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        on_text: Callable[[int, str], None] | None,
        remember: bool,
    ) -> list[str]:
        """Do `Backend.generate` for 1 to `SEQUENCES` / 2 prompts and at least one new token."""
        remember = remember and self._model.has_plain_cache
        rows = new_rows(prompts, sampling, on_text, self._tokenizer)
        watched = on_text is not None or any(sampling.stop)
        context = self._room_for(sum(map(len, prompts)) + len(prompts) * sampling.max_new_tokens, remember)
        in_use = {text.sequence for text in self._remembered}
        sequences = [number for number in range(SEQUENCES) if number not in in_use][: len(prompts)]
        done = False
        try:
            logits = self._read(context, prompts, sequences, remember)
            growing = list(range(len(rows)))
            while True:
                tokens = {
                    number: next_token(row_logits, sampling, rows[number].generator)
                    for number, row_logits in zip(growing, logits, strict=True)
                }
                growing = [
                    number
                    for number in growing
                    if not rows[number].add(tokens[number], self._ends(tokens[number]), watched)
                    and len(rows[number].tokens.ids) < sampling.max_new_tokens
                ]
                if not growing:
                    break
                logits = context.decode(
                    [tokens[number] for number in growing],
                    [len(prompts[number]) + len(rows[number].tokens.ids) - 1 for number in growing],
                    [sequences[number] for number in growing],
                    range(len(growing)),
                )
            done = True
        finally:
            for row, sequence in zip(rows, sequences, strict=True):
                if remember and done:
                    # The last token was chosen, and never computed.
                    self._remember(_Text((*row.prompt, *row.tokens.ids[:-1]), sequence))
                else:
                    context.remove(sequence)
        return [row.finish(self._tokenizer) for row in rows]

    def forget(self) -> None:
        """Forget all texts before the next call begins."""
        self._forgets = True

    def _ends(self, token: int) -> bool:
        return token in self._end_tokens or self._model.ends_text(token)

    def _room_for(self, tokens: int, remember: bool) -> LlamaContext:
        """Return the context, with free cells for so many tokens; texts are forgotten where they stand in the way."""
        if self._forgets and self._context is not None:
            for text in self._remembered:
                self._context.remove(text.sequence)
            self._remembered = []
        self._forgets = False
        if self._context is None or self._context.cells < tokens:
            self._remembered = []
            self._context = None  # before the larger one is made
            room = tokens + (REMEMBERED_TOKENS if remember else 0)
            self._context = LlamaContext(self._model, room, self._settings, reads_states=False)
        while sum(len(text.tokens) for text in self._remembered) > self._context.cells - tokens:
            self._context.remove(self._remembered.pop(0).sequence)
        return self._context

    def _read(
        self, context: LlamaContext, prompts: Sequence[Sequence[int]], sequences: Sequence[int], remember: bool
    ) -> np.ndarray:
        """Compute the prompts; return the logits after each, float32 [prompts, vocabulary].

        The beginning that all share is computed once, and what is remembered is not computed again. A prompt's last
        token is computed in any case, for its logits.
        """
        shared = min(min(map(len, prompts)) - 1, *(common_length(prompts[0], prompt) for prompt in prompts))
        if len(prompts) == 1 or shared < LEAST_SHARED or not self._model.has_plain_cache:
            shared = 0
        starts = [0] * len(prompts)
        for number, (prompt, sequence) in enumerate(zip(prompts, sequences, strict=True)):
            texts = self._remembered if remember else []
            found = longest_beginning(texts, prompt, max(LEAST_SHARED, shared))
            if found:
                text, starts[number] = found
                context.copy(text.sequence, sequence, starts[number])
        fresh = [number for number, start in enumerate(starts) if start < shared]
        for number in fresh:
            if number == fresh[0]:
                decode_rows(context, [prompts[number][:shared]], [[]], [0], [sequences[number]], 0)
            else:
                context.copy(sequences[fresh[0]], sequences[number], shared)
            starts[number] = shared
        rows = [prompt[start:] for prompt, start in zip(prompts, starts, strict=True)]
        last = [[len(row) - 1] for row in rows]
        return decode_rows(context, rows, last, starts, sequences, self._model.vocabulary_size)

    def _remember(self, text: _Text) -> None:
        """Keep a text, and free the cells of those that are forgotten for it."""
        assert self._context is not None
        kept = remembering(self._remembered, text)[-SEQUENCES // 2 :]
        for other in self._remembered:
            if other not in kept:
                self._context.remove(other.sequence)
        self._remembered = kept
