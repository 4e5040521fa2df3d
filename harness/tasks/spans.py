"""Finding words, spans and entities in texts whose official offsets cannot be trusted."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence

_WORD = re.compile(r"\w+")
_TOKEN = re.compile(r"\S+")
_TRAILING_NON_WORD = re.compile(r"\W+\Z")


def unwrap_csv_quotes(text: str) -> str:
    '''Undoes CSV quoting: `"""Да"", - сказал он."` becomes `"Да", - сказал он.`

    Only text that is surely quoted so is changed: a quotation mark at both ends, inside it none that is not doubled and
    at least one that is. A sentence that merely stands in quotation marks stays as it is.
    '''
    if len(text) < 2 or not (text.startswith('"') and text.endswith('"')):
        return text
    inner = text[1:-1]
    if '""' not in inner or '"' in inner.replace('""', ""):
        return text
    return inner.replace('""', '"')


def find_span(text: str, span: str, token: int) -> int:
    """Where a span begins in a text.

    Whole words are compared, without regard to case and punctuation. A span that stands at the named token is taken
    there; otherwise the occurrence nearest to it, one in the span's own spelling before others. Where the words do not
    occur so, the last of them may be longer in the text ("сосед" in "соседу"); and of a span that other words
    interrupt ("она нехотя ушла" for "она ушла") the first word is found.

    Args:
        text: the text.
        span: what to look for.
        token: the official position, counted in whitespace-separated tokens; may be wrong or out of range.

    Returns:
        The character offset of the span in the text, -1 if not even its first word occurs.
    """
    wanted = _WORD.findall(span.lower())
    if not wanted:
        return -1
    words = [(match.start(), match.group().lower()) for match in _WORD.finditer(text)]
    starts = (
        _occurrences(words, wanted)
        or _occurrences(words, wanted, open_end=True)
        or _occurrences(words, wanted[:1])
        or _occurrences(words, wanted[:1], open_end=True)
    )
    if not starts:
        return -1
    named = _token_start(text, token)
    opening = re.match(r"\W*", span).group()  # type: ignore[union-attr]  # an empty match is a match
    if named in starts:
        start = named
    else:
        body = span[len(opening) :]
        literal = [start for start in starts if text.startswith(body, start)]
        start = min(literal or starts, key=lambda start: (abs(start - named), start))
    return start - len(opening) if text.endswith(opening, 0, start) else start


def _occurrences(words: Sequence[tuple[int, str]], wanted: Sequence[str], open_end: bool = False) -> list[int]:
    """Offsets at which the words follow each other; with `open_end` the last need only begin with the wanted one."""
    starts = []
    for n in range(len(words) - len(wanted) + 1):
        *before, last = (form for _, form in words[n : n + len(wanted)])
        if before == wanted[:-1] and (last == wanted[-1] or (open_end and last.startswith(wanted[-1]))):
            starts.append(words[n][0])
    return starts


def _token_start(text: str, token: int) -> int:
    """Character offset of the first word in the whitespace-separated token; the text's end if it has no such token."""
    for number, match in enumerate(_TOKEN.finditer(text)):
        if number >= token:
            word = _WORD.search(text, match.start(), match.end())
            return word.start() if word else match.start()
    return len(text)


def word_bounds(sentence: str, start: int, end: int, lemma: str) -> tuple[int, int]:
    """The whole word that a rough span means.

    RUSSE's spans end a character too far, in some rows a character or two too early, and in a few rows are shifted. Of
    the words that the span touches, the one most like the lemma is meant, then the one it covers most.

    Args:
        sentence: the sentence.
        start: offset of the span's first character.
        end: offset behind its last, possibly behind the sentence's end.
        lemma: the word's dictionary form.

    Returns:
        The word's offsets, end exclusive; the span cut to the sentence if it touches no word.
    """
    touched = [match.span() for match in _WORD.finditer(sentence) if match.start() < end and match.end() > start]
    if not touched:
        return min(start, len(sentence)), min(end, len(sentence))

    def likeness(bounds: tuple[int, int]) -> tuple[int, int]:
        form = sentence[bounds[0] : bounds[1]]
        return _common_prefix(form.lower(), lemma.lower()), min(bounds[1], end) - max(bounds[0], start)

    return max(touched, key=likeness)


def _common_prefix(first: str, second: str) -> int:
    length = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        length += 1
    return length


def clean_entities(entities: Iterable[str], passage: str) -> tuple[str, ...]:
    """Unique entities without trailing non-word characters, by first appearance in the passage.

    The hub's copies carry a stray last character and come sorted by alphabet. The official scorer strips non-word
    characters as well, so nothing that counts is lost. What does not occur in the passage comes last.
    """
    # Interned: the same few thousand names fill RuCoS's million entity lists.
    unique = {sys.intern(_TRAILING_NON_WORD.sub("", entity)) for entity in entities} - {""}

    def appearance(entity: str) -> tuple[bool, int, str]:
        position = passage.find(entity)
        return position < 0, position, entity

    return tuple(sorted(unique, key=appearance))
