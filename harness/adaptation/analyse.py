"""What a vocabulary does with texts, and what another one would save."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate
from tokenizers import Tokenizer

from harness.adaptation.likelihood import count_words
from harness.adaptation.merges import encoded

# Bytes of a bfloat16 weight.
_STORED_BYTES = 2


@dataclass(frozen=True)
class TextUse:
    """What a tokenizer makes of some texts.

    Attributes:
        name: of the texts.
        words: what white space separates.
        characters, tokens: of all texts.
        rows: different tokens, which are rows of the vocabulary matrix.
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
        rows: of the vocabulary matrix.
        parameters: of the whole model.
        tokens_per_word: on the first corpus' held-out texts.
        unchanged: share of all held-out texts that keep their tokens.
    """

    name: str
    rows: int
    parameters: int
    tokens_per_word: float
    unchanged: float

    @property
    def stored_bytes(self) -> int:
        return _STORED_BYTES * self.parameters


def count_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> Counter[int]:
    """Token id -> how often the texts have it."""
    counts: Counter[int] = Counter()
    for encoding in encoded(tokenizer, texts):
        counts.update(encoding.ids)
    return counts


def text_use(name: str, tokenizer: Tokenizer, texts: Sequence[str]) -> TextUse:
    """Reads the texts once."""
    counts = count_tokens(tokenizer, texts)
    return TextUse(name, max(1, count_words(texts)), sum(map(len, texts)), max(1, counts.total()), len(counts))


def vocabulary_cost(
    name: str, before: Tokenizer, after: Tokenizer, rows: int, other_parameters: int, width: int, texts: Sequence[str]
) -> VocabularyCost:
    """What the model would be with another tokenizer.

    Args:
        name: of the vocabulary.
        before, after: tokenizers.
        rows: of the new matrix.
        other_parameters: of the model, without its vocabulary matrix.
        width: hidden size.
        texts: held-out ones.
    """
    tokens = changed = 0
    for old, new in zip(encoded(before, texts), encoded(after, texts), strict=True):
        tokens += len(new.ids)
        changed += old.tokens != new.tokens
    return VocabularyCost(
        name, rows, other_parameters + rows * width, tokens / max(1, count_words(texts)), 1 - changed / len(texts)
    )


def use_table(uses: Mapping[str, Sequence[TextUse]], rows: int) -> str:
    """A table of texts.

    Args:
        uses: name of the tokenizer -> its use of every text, the present tokenizer first.
        rows: of the present vocabulary matrix.
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
    """A table of vocabularies, each beside the first.

    Two estimates of time, relative to the first: reading a text costs the layers' arithmetic for every token; writing
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
                f"{cost.stored_bytes / 2**20:.0f} ({100 * (smaller - 1):+.0f}%)",
                f"{cost.tokens_per_word:.3f} ({100 * (shorter - 1):+.1f}%)",
                f"{100 * cost.unchanged:.1f}%",
                f"{shorter:.2f}",
                f"{shorter * smaller:.2f}",
            ]
        )
    headers = ["vocabulary", "rows", "parameters, million", "bfloat16, MiB", "tokens a word", "texts unchanged"]
    return tabulate(table, headers=[*headers, "time to read, about", "time to write, about"], disable_numparse=True)
