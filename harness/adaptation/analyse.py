"""Measure how a vocabulary encodes texts, and what another one would save."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate
from tokenizers import Tokenizer

from harness.adaptation.likelihood import count_words
from harness.adaptation.merges import encoded
from harness.files import MIB

_BYTES_PER_WEIGHT = 2  # bfloat16


@dataclass(frozen=True)
class TextUse:
    """How a tokenizer encodes some texts.

    Attributes:
        name: The texts' name.
        words: Number of words, which are what white space separates.
        characters: Number of characters.
        tokens: Number of tokens.
        rows: Number of different tokens: the rows of the vocabulary matrix in use.
    """

    name: str
    words: int
    characters: int
    tokens: int
    rows: int

    @property
    def tokens_per_word(self) -> float:
        return self.tokens / self.words

    @property
    def characters_per_token(self) -> float:
        return self.characters / self.tokens


@dataclass(frozen=True)
class VocabularyCost:
    """What a vocabulary costs a model.

    Attributes:
        name: "as it is", "pruned", …
        rows: Rows of the vocabulary matrix.
        parameters: Parameters of the whole model.
        tokens_per_word: On the held-out texts.
        unchanged: Share of the held-out texts that keep their tokens.
    """

    name: str
    rows: int
    parameters: int
    tokens_per_word: float
    unchanged: float

    @property
    def stored_bytes(self) -> int:
        return _BYTES_PER_WEIGHT * self.parameters


def count_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> Counter[int]:
    """Return token id -> how often it occurs in the texts."""
    counts: Counter[int] = Counter()
    for encoding in encoded(tokenizer, texts):
        counts.update(encoding.ids)
    return counts


def text_use(name: str, tokenizer: Tokenizer, texts: Sequence[str]) -> TextUse:
    """Encode the texts and count."""
    counts = count_tokens(tokenizer, texts)
    return TextUse(name, max(1, count_words(texts)), sum(map(len, texts)), max(1, counts.total()), len(counts))


def vocabulary_cost(
    name: str, before: Tokenizer, after: Tokenizer, rows: int, other_parameters: int, width: int, texts: Sequence[str]
) -> VocabularyCost:
    """Return what the model would cost with another tokenizer.

    Args:
        name: The vocabulary's name.
        before: The present tokenizer.
        after: The other tokenizer.
        rows: Rows of the other vocabulary matrix.
        other_parameters: Parameters of the model without its vocabulary matrix.
        width: Hidden size.
        texts: Held-out texts.
    """
    tokens = changed = 0
    for old, new in zip(encoded(before, texts), encoded(after, texts), strict=True):
        tokens += len(new.ids)
        changed += old.tokens != new.tokens
    return VocabularyCost(
        name, rows, other_parameters + rows * width, tokens / max(1, count_words(texts)), 1 - changed / len(texts)
    )


def use_table(uses: Mapping[str, Sequence[TextUse]], rows: int) -> str:
    """Return a table with a row for each collection of texts.

    Args:
        uses: Tokenizer's name -> how it encodes each collection; the present tokenizer first.
        rows: Rows of the present vocabulary matrix.
    """
    (_, present), *others = uses.items()
    table: list[list[Any]] = []
    for place, use in enumerate(present):
        row = [use.name, f"{use.words:,}", f"{use.tokens_per_word:.3f}", f"{use.characters_per_token:.2f}"]
        row.append(f"{use.rows:,} ({100 * use.rows / rows:.1f}%)")
        for _, changed in others:
            after = changed[place]
            row.append(f"{after.tokens_per_word:.3f} ({100 * (after.tokens / use.tokens - 1):+.1f}%)")
        table.append(row)
    headers = ["texts", "words", "tokens a word", "characters a token", "rows used"]
    return tabulate(table, headers=[*headers, *(f"{name}: tokens a word" for name, _ in others)], disable_numparse=True)


def cost_table(costs: Sequence[VocabularyCost]) -> str:
    """Return a table that compares vocabularies with the first one.

    The times are estimates relative to the first: reading a text costs the layers' arithmetic for every token, writing
    one reads all weights from memory for every token.
    """
    first = costs[0]
    table = []
    for cost in costs:
        shorter = cost.tokens_per_word / first.tokens_per_word
        smaller = cost.parameters / first.parameters
        table.append(
            [
                cost.name,
                f"{cost.rows:,}",
                f"{cost.parameters / 1e6:.1f}",
                f"{cost.stored_bytes / MIB:.0f} ({100 * (smaller - 1):+.0f}%)",
                f"{cost.tokens_per_word:.3f} ({100 * (shorter - 1):+.1f}%)",
                f"{100 * cost.unchanged:.1f}%",
                f"{shorter:.2f}",
                f"{shorter * smaller:.2f}",
            ]
        )
    headers = ["vocabulary", "rows", "parameters, million", "bfloat16, MiB", "tokens a word", "texts unchanged"]
    return tabulate(table, headers=[*headers, "time to read, about", "time to write, about"], disable_numparse=True)
