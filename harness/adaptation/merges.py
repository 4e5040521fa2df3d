"""Learn new merges for a tokenizer, on top of its own.

The present tokenizer encodes the corpus, and byte-pair encoding continues from there inside Russian words: the trainer
of the `tokenizers` library gets words whose letters stand for the tokenizer's tokens. So every new token is a run of
tokens that the old encoding really produces.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from harness.adaptation.tokenizer_file import CYRILLIC_PIECE, SPACE
from harness.errors import UserError

# A rarer pair is not worth a row of the vocabulary matrix.
MIN_FREQUENCY = 5
_BATCH = 4096
# Unicode's two planes for private use: 131,068 letters that can stand for tokens.
_PRIVATE = [*range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFE)]


def learn_merges(tokenizer: Tokenizer, texts: Sequence[str], count: int) -> list[tuple[str, str]]:
    """Return the pairs of pieces to merge, most frequent first, that make `count` new tokens.

    Args:
        tokenizer: The present tokenizer.
        texts: The texts to learn from.
        count: Number of new tokens.

    Raises:
        UserError: The corpus has too few pairs that are frequent enough.
    """
    vocabulary = tokenizer.get_vocab()
    letters: dict[str, str] = {}

    def spelled(word: Iterable[str]) -> str:
        return "".join(letters.setdefault(piece, chr(_PRIVATE[len(letters)])) for piece in word)

    lines = [" ".join(spelled(word) for word in _words(encoding.tokens)) for encoding in encoded(tokenizer, texts)]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # Two runs of tokens may spell the same piece, which takes one row, so more merges than tokens are learned.
    trainer = trainers.BpeTrainer(
        vocab_size=len(letters) + count + count // 10 + 10,
        min_frequency=MIN_FREQUENCY,
        initial_alphabet=list(letters.values()),
        show_progress=False,
    )
    trained.train_from_iterator(lines, trainer)
    pieces = {letter: piece for piece, letter in letters.items()}
    merges: list[tuple[str, str]] = []
    new: set[str] = set()
    for left, right in json.loads(trained.to_str())["model"]["merges"]:
        pair = ("".join(pieces[letter] for letter in left), "".join(pieces[letter] for letter in right))
        joined = "".join(pair)
        if joined not in vocabulary and joined not in new:
            if len(new) == count:
                break
            new.add(joined)
        merges.append(pair)
    if len(new) < count:
        raise UserError(
            f"the corpus supports {len(new)} new tokens, not {count} (pairs seen {MIN_FREQUENCY} times or more)",
            f"give more text, or --new-tokens {len(new)}",
        )
    return merges


def pieces_of(tokenizer: Mapping[str, Any], merges: Sequence[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    """Return new piece -> the old pieces that it stands for, by the first merge that makes it."""
    vocabulary = tokenizer["model"]["vocab"]
    made: dict[str, tuple[str, ...]] = {}
    for left, right in merges:
        if left + right not in vocabulary and left + right not in made:
            made[left + right] = (*made.get(left, (left,)), *made.get(right, (right,)))
    return made


def encoded(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[Any]:
    """Yield the texts' encodings without BOS, in order; batches are encoded on all cores."""
    for start in range(0, len(texts), _BATCH):
        yield from tokenizer.encode_batch(list(texts[start : start + _BATCH]), add_special_tokens=False)


def _words(tokens: Iterable[str]) -> Iterator[list[str]]:
    """Yield runs of two or more Cyrillic pieces; a piece that begins with a space begins a word."""
    word: list[str] = []
    for token in tokens:
        cyrillic = CYRILLIC_PIECE.fullmatch(token) is not None
        if word and (not cyrillic or token.startswith(SPACE)):
            if len(word) > 1:
                yield word
            word = []
        if cyrillic:
            word.append(token)
    if len(word) > 1:
        yield word
