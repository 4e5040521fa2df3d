"""Scores or generated texts of one document to its answer, and the answer to an item for the metrics."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from harness.data import document_key
from harness.evaluation.metrics import LIDIRUS_CATEGORIES, Item, normalised

_WORD = re.compile(r"\w+", re.UNICODE)

# Other words that answer the same, beside the choices that the task's YAML names.
_SYNONYMS: dict[str, tuple[str, ...]] = {
    "да": ("верно", "правда", "правильно", "следует", "конечно", "yes", "true"),
    "нет": ("неверно", "неправда", "неправильно", "no", "false"),
    "неизвестно": ("непонятно", "неясно", "возможно", "нельзя сказать", "unknown"),
    "1": ("первое", "первый", "первая", "один"),
    "2": ("второе", "второй", "вторая", "два"),
}
# Turn the word after them round: «не следует», «не верно».
_NEGATION = "не"


def pick_choice(logprobs: Sequence[float]) -> int:
    """Index of the most probable choice; the first of several equal ones."""
    return max(range(len(logprobs)), key=lambda index: (logprobs[index], -index))


def is_tied(logprobs: Sequence[float]) -> bool:
    """True if the two most probable choices are exactly equal."""
    best = sorted(logprobs, reverse=True)
    return len(best) > 1 and best[0] == best[1]


def parse_choice(text: str, choices: Sequence[str]) -> int | None:
    """The choice that a generated text names, or None if it names none or several at once.

    Case, punctuation, `ё` and words around the answer do not matter. The first word that answers decides, as in
    «Да, из текста это следует». Whole choices written out («вода потекла из крана») count as well.
    """
    said = _words(text)
    written = [
        index for index, choice in enumerate(choices) if len(_words(choice)) > 1 and _find(said, _words(choice)) >= 0
    ]
    if len(written) == 1:
        return written[0]
    firsts: dict[int, int] = {}  # choice -> where it is first named
    for index, choice in enumerate(choices):
        for name in (choice, *_SYNONYMS.get(" ".join(_words(choice)), ())):
            place = _find(said, _words(name))
            if place >= 0 and not (place > 0 and said[place - 1] == _NEGATION):
                firsts[index] = min(place, firsts.get(index, place))
    firsts |= {index: place for index, place in _negated(said, choices).items() if index not in firsts}
    if not firsts:
        return None
    nearest = min(firsts.values())
    named = [index for index, place in firsts.items() if place == nearest]
    return named[0] if len(named) == 1 else None


def _negated(said: list[str], choices: Sequence[str]) -> dict[int, int]:
    """«не верно», «не следует» answer «нет» where the choices are «да» and «нет»: its index and the place."""
    names = [" ".join(_words(choice)) for choice in choices]
    if "да" not in names or "нет" not in names:
        return {}
    for place in range(len(said) - 1):
        if said[place] == _NEGATION and said[place + 1] in _SYNONYMS["да"]:
            return {names.index("нет"): place}
    return {}


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower().replace("ё", "е"))


def _find(words: list[str], wanted: list[str]) -> int:
    """Where `wanted` stands in `words` as a run of whole words, or -1."""
    for start in range(len(words) - len(wanted) + 1):
        if wanted and words[start : start + len(wanted)] == wanted:
            return start
    return -1


def parse_entity(text: str, entities: Sequence[str]) -> str | None:
    """The passage's entity that a generated text names: the same text, else the longest one that it contains."""
    said = normalised(text)
    if not said:
        return None
    same = [entity for entity in entities if normalised(entity) == said]
    if same:
        return same[0]
    inside = [entity for entity in entities if normalised(entity) and f" {normalised(entity)} " in f" {said} "]
    return max(inside, key=len) if inside else text.strip()


def to_item(task: str, doc: Mapping[str, Any], prediction: int | str | None) -> Item:
    """The item that the metrics read. Its gold answer is None where that is hidden (official test split)."""
    cluster = document_key(doc)
    if task == "rucos":
        return Item(cluster, tuple(doc["answers"]) or None, prediction)
    gold = doc["label"] if doc["label"] >= 0 else None
    if task == "muserc":
        return Item(cluster, gold, prediction, group=doc["idx"]["question"])
    categories = tuple(name for name in LIDIRUS_CATEGORIES if doc.get(name)) if task == "lidirus" else ()
    return Item(cluster, gold, prediction, categories=categories)
