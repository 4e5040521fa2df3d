"""Scores or a generated text to the answer."""

from __future__ import annotations

import re
from collections.abc import Sequence

from harness.tasks.metrics import normalised

_WORD = re.compile(r"\w+", re.UNICODE)

# Other words that answer the same, beside the choices that the task's YAML names.
_SYNONYMS: dict[str, tuple[str, ...]] = {
    "да": ("верно", "верен", "верна", "верны", "правда", "правильно", "правилен", "следует", "yes", "true"),
    "нет": ("неверно", "неверен", "неверна", "неверны", "неправда", "неправильно", "неправилен", "no", "false"),
    "неизвестно": ("непонятно", "неясно", "возможно", "нельзя сказать", "unknown"),
    "1": ("первое", "первый", "первая", "один"),
    "2": ("второе", "второй", "вторая", "два"),
}
# Says yes where nothing else is said: «Конечно!», but «Конечно, нет».
_WEAK_YES = "конечно"
# Between two choices that are only offered: «да или нет», «да/нет».
_OFFERING = {"или", "/"}
# «не совсем верно»: a negation reaches over one adverb.
_NEGATION_REACH = 2
# RuCoS's official normal form strips ASCII punctuation only.
_RUSSIAN_MARKS = str.maketrans(dict.fromkeys("«»“”„…—–", " "))


def pick_choice(logprobs: Sequence[float]) -> int:
    """Return the index of the most probable choice; the first of several equal ones."""
    return max(range(len(logprobs)), key=lambda index: (logprobs[index], -index))


def is_tied(logprobs: Sequence[float]) -> bool:
    """Return whether the two most probable choices are exactly equal."""
    best = sorted(logprobs, reverse=True)
    return len(best) > 1 and best[0] == best[1]


def parse_choice(text: str, choices: Sequence[str]) -> int | None:
    """Return the index of the choice that a generated text names, or None if it names none or only offers several.

    Case, punctuation, `ё` and words around the answer do not matter. The first word that answers decides, as in
    «Да, из текста это следует»; a question repeated before the answer is passed over. Whole choices written out
    («вода потекла из крана») count as well.
    """
    plain = _after_question(text.lower().replace("ё", "е"))
    words = list(_WORD.finditer(plain))
    said = [word.group() for word in words]
    runs = [_words(choice) for choice in choices]
    written = [index for index, run in enumerate(runs) if len(run) > 1 and _places(said, run)]
    if written:
        return written[0] if len(written) == 1 else None
    mentions = _mentions(said, choices)
    if not mentions:
        return runs.index(["да"]) if ["да"] in runs and _WEAK_YES in said else None
    (_, end, first), *others = mentions
    if others and others[0][2] != first:
        between = plain[words[end - 1].end() : words[others[0][0]].start()].strip()
        if between in _OFFERING:
            return None
    return first


def _after_question(text: str) -> str:
    """Return what follows the last question mark, if there is a word; else the whole text."""
    answer = text.rpartition("?")[2]
    return answer if _WORD.search(answer) else text


def _mentions(said: list[str], choices: Sequence[str]) -> list[tuple[int, int, int]]:
    """Return (first word, word after the last, choice) of every place that names a choice, in the order of the text."""
    names = [" ".join(_words(choice)) for choice in choices]
    found = []
    for index, name in enumerate(names):
        for wanted in (name, *_SYNONYMS.get(name, ())):
            run = wanted.split()
            for place in _places(said, run):
                negation = _negation_before(said, place)
                if negation is None:
                    found.append((place, place + len(run), index))
                elif name == "да" and "нет" in names:
                    found.append((negation, place + len(run), names.index("нет")))
    return sorted(found)


def _negation_before(said: list[str], place: int) -> int | None:
    """Return where a «не» or «ни» stands that negates the word at `place`, or None."""
    for before in range(place - 1, max(-1, place - 1 - _NEGATION_REACH), -1):
        if said[before] in ("не", "ни"):
            return before
    return None


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower().replace("ё", "е"))


def _places(words: list[str], wanted: list[str]) -> list[int]:
    """Return where `wanted` stands in `words` as a run of whole words."""
    if not wanted:
        return []
    starts = range(len(words) - len(wanted) + 1)
    return [start for start in starts if words[start : start + len(wanted)] == wanted]


def parse_entity(text: str, entities: Sequence[str]) -> str | None:
    """Return the entity that a generated text names: the same text, else the longest one that it contains."""
    said = _bare(text)
    if not said:
        return None
    same = [entity for entity in entities if _bare(entity) == said]
    if same:
        return same[0]
    inside = [entity for entity in entities if _bare(entity) and f" {_bare(entity)} " in f" {said} "]
    return max(inside, key=len) if inside else text.strip()


def _bare(text: str) -> str:
    """Return the metric's normal form, without Russian quotation marks, dashes and dots too."""
    return " ".join(normalised(text.translate(_RUSSIAN_MARKS)).split())
