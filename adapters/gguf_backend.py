"""GGUF models computed by llama.cpp: on the processor, on Metal on a Mac, on whatever GPU its build knows.

llama.cpp computes the layers, the vocabulary matrix and the cache. A batch is a list of tokens, each of a sequence of
its own, so rows of unequal length need no padding, and a prefix is a sequence whose cells others share.

The GPU paths follow llama.cpp's documented API and were not run where this was written (no such device there).
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from adapters.architecture import Logits
from adapters.base import Backend, BackendInfo, OutOfMemory, Prefix, Sampling, check_tokens, own_prefix
from adapters.ggml_product import VocabularyProduct
from adapters.llama_context import OUTPUTS, SEQUENCES, ContextSettings, LlamaContext, LlamaModel, decode_rows
from adapters.llama_generation import LlamaGeneration

# Prompts continued together; as many sequences again are left for remembered texts.
TOGETHER = SEQUENCES // 2
# Positions projected at a time: 64 MB of logits for a vocabulary of 262,144.
_POSITIONS = 64


class GgufPrefix(Prefix):
    """A sequence of tokens whose cells are kept."""

    def __init__(self, tokens: tuple[int, ...], cache: _Cache, sequence: int) -> None:
        self.tokens = tokens
        self.length = len(tokens)
        self._release: weakref.finalize | None = None
        self.place(cache, sequence)

    def place(self, cache: _Cache, sequence: int) -> None:
        """Note where the cells are, and give them back once this prefix is forgotten."""
        if self._release is not None:
            self._release()
        self.cache, self.sequence = cache, sequence
        cache.tokens[sequence] = self.length
        self._release = weakref.finalize(self, cache.free, sequence)
        self._release.atexit = False


@dataclass
class _Cache:
    """A context, and which of its sequences are in use."""

    context: LlamaContext
    unused: list[int] = field(default_factory=lambda: list(range(SEQUENCES))[::-1])
    tokens: dict[int, int] = field(default_factory=dict)  # of the sequences that prefixes keep

    def take(self) -> int:
        if not self.unused:
            raise OutOfMemory(f"llama.cpp keeps at most {SEQUENCES} sequences")
        return self.unused.pop()

    def free(self, sequence: int) -> None:
        self.context.remove(sequence)
        self.tokens.pop(sequence, None)
        self.unused.append(sequence)


class GgufBackend(Backend):
    """A causal language model of llama.cpp.

    Args:
        model: The weights.
        product: Its vocabulary matrix.
        settings: How it computes.
        tokenizer: A transformers tokenizer.
        info: What was loaded.
        stop_tokens: Ids that end an answer, besides those that the file names.
        rule: How logits follow from the product of hidden states and vocabulary matrix.
    """

    def __init__(
        self,
        model: LlamaModel,
        product: VocabularyProduct,
        settings: ContextSettings,
        tokenizer: Any,
        info: BackendInfo,
        stop_tokens: frozenset[int],
        rule: Logits,
    ) -> None:
        self._model = model
        self._product = product
        self._settings = settings
        self.tokenizer = tokenizer
        self.info = info
        self.shares_prefixes = model.has_plain_cache
        self._rule = rule
        self._cache = _Cache(self._scoring_context(2 * info.batch_tokens))
        self._generation = LlamaGeneration(model, settings, tokenizer, stop_tokens)

    def _scoring_context(self, tokens: int) -> LlamaContext:
        return LlamaContext(self._model, tokens, self._settings, reads_states=True)

    def hidden_states(
        self,
        rows: Sequence[Sequence[int]],
        positions: Sequence[Sequence[int]],
        prefix: Prefix | None = None,
        keep: bool = False,
    ) -> tuple[np.ndarray, Prefix | None]:
        before = own_prefix(prefix, GgufPrefix, rows, keep)
        if keep:
            states, sequence = self._compute(rows, positions, before, keep=True)
            return states, GgufPrefix((*(before.tokens if before else ()), *rows[0]), self._cache, sequence)
        parts = []
        for start in range(0, len(rows), TOGETHER):
            part = slice(start, start + TOGETHER)
            parts.append(self._compute(rows[part], positions[part], before, keep=False)[0])
        return np.concatenate(parts), None

    def _compute(
        self,
        rows: Sequence[Sequence[int]],
        positions: Sequence[Sequence[int]],
        prefix: GgufPrefix | None,
        keep: bool,
    ) -> tuple[np.ndarray, int]:
        """Return the states, and the sequence of the last row, which is in use still if `keep`."""
        self._make_room(sum(map(len, rows)), prefix)
        cache = self._cache
        start = prefix.length if prefix else 0
        taken: list[int] = []
        done = False
        try:
            for _ in rows:
                taken.append(cache.take())
                if prefix is not None:
                    cache.context.copy(prefix.sequence, taken[-1])
            starts = [start] * len(rows)
            states = decode_rows(cache.context, rows, positions, starts, taken, self.info.hidden_size)
            done = True
        finally:
            for sequence in taken[:-1] if keep and done else taken:
                cache.free(sequence)
        return states, taken[-1]

    def _make_room(self, tokens: int, prefix: GgufPrefix | None) -> None:
        """Let the cache hold more tokens after a prefix; in a larger one, prefixes are computed again when used."""
        moved = prefix is not None and prefix.cache is not self._cache
        length = prefix.length if prefix else 0
        needed = sum(self._cache.tokens.values()) + tokens + (length if moved else 0)
        if needed > self._cache.context.cells:
            # Sequences that extend each other share their cells, so the sum is an upper bound.
            self._cache = _Cache(self._scoring_context(max(2 * self._cache.context.cells, length + tokens)))
        if prefix is not None and prefix.cache is not self._cache:
            _, sequence = self._compute([prefix.tokens], [[]], None, keep=True)
            prefix.place(self._cache, sequence)

    def project(self, hidden: np.ndarray, sources: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        check_tokens(tokens, self.info.vocabulary_size)
        logprobs, best = np.zeros(len(sources)), np.zeros(len(sources), dtype=bool)
        for start in range(0, len(hidden), _POSITIONS):
            asked = np.flatnonzero((sources >= start) & (sources < start + _POSITIONS))
            if not len(asked):
                continue
            logits = self.vocabulary_logits(hidden[start : start + _POSITIONS])
            largest = logits.max(axis=1)
            wanted = logits[sources[asked] - start, tokens[asked]].astype(np.float64)
            with np.errstate(invalid="ignore"):  # NaN comes through
                logits -= largest[:, None]
            normaliser = largest + np.log(np.exp(logits, out=logits).sum(axis=1, dtype=np.float64))
            logprobs[asked] = wanted - normaliser[sources[asked] - start]
            best[asked] = wanted >= largest[sources[asked] - start]
        return logprobs, best

    def vocabulary_logits(self, hidden: np.ndarray) -> np.ndarray:
        try:
            logits = self._product.logits(hidden)
        except MemoryError as error:
            raise OutOfMemory(str(error)) from error
        if self._rule.scale != 1:
            logits *= np.float32(self._rule.scale)
        if self._rule.cap is not None:
            logits = np.tanh(logits / np.float32(self._rule.cap)) * np.float32(self._rule.cap)
        return logits

    def library_logprobs(self, tokens: Sequence[int]) -> np.ndarray:
        context = LlamaContext(self._model, len(tokens), self._settings, reads_states=False, sequences=1)
        found = np.empty(len(tokens) - 1)
        for start in range(0, len(found), OUTPUTS):
            part = range(start, min(start + OUTPUTS, len(found)))
            logits = context.decode([tokens[place] for place in part], part, [0] * len(part), range(len(part)))
            exact = logits.astype(np.float64)
            wanted = exact[np.arange(len(part)), [tokens[place + 1] for place in part]]
            found[part.start : part.stop] = wanted - np.logaddexp.reduce(exact, axis=1)
        return found

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        on_text: Callable[[int, str], None] | None = None,
        remember: bool = False,
    ) -> list[str]:
        if sampling.max_new_tokens < 1:
            return [""] * len(prompts)
        texts: list[str] = []
        for start in range(0, len(prompts), TOGETHER):
            report = functools.partial(_report_later, on_text, start) if on_text else None
            texts += self._generation.generate(prompts[start : start + TOGETHER], sampling, report, remember)
        return texts

    def forget(self) -> None:
        self._generation.forget()

    def peak_memory(self) -> int | None:
        return None  # llama.cpp keeps no peak of its own


def _report_later(on_text: Callable[[int, str], None], start: int, number: int, text: str) -> None:
    on_text(start + number, text)
