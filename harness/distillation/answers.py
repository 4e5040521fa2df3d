"""The teacher's replies to one question, to its label: probabilities of the choices, hard or soft."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from harness.distillation.client import Position, Reply
from harness.tasks.answers import parse_choice, parse_entity

# With less probability on all choices together, the top tokens begin something else than an answer.
_LEAST_MASS = 0.1
# What an answer stands behind: an explanation, or the thoughts of a reasoning model.
_MARK = re.compile(r"</think>|\bответ\s*[:—–-]", re.IGNORECASE)
_NO_WORD = re.compile(r"^[\W_]+|[\W_]+$")
_REFUSALS = re.compile(
    r"не мог[уч]|не в состоянии|как (?:большая )?языковая модель|извините|к сожалению|отказываюсь|воздержусь"
    r"|i can(?:'|no)t|i'm sorry|as an ai",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Label:
    """What the replies to one question say.

    Attributes:
        probabilities: of the choices, summing to 1; None where no reply names one.
        how: they were found: by the tokens' log-probabilities, by reading one reply, or by the shares of several.
        rest: probability of all that is no choice, where log-probabilities tell.
        outcome: whether there is an answer, and if not, why.
        rationale: the explanation before the answer; None where there is none.
    """

    probabilities: list[float] | None
    how: Literal["logprobs", "text", "samples"] | None
    rest: float | None
    outcome: Literal["answered", "refused", "unparsable"]
    rationale: str | None


def read_label(replies: Sequence[Reply], words: Sequence[str], entities: Sequence[str], explained: bool) -> Label:
    """The label that one question's replies give.

    Args:
        replies: one, or as many as samples were asked for.
        words: the answer words, in the order of the labels; empty for RuCoS.
        entities: RuCoS's candidates.
        explained: an explanation was asked for before the answer, so without its mark there is no answer.
    """
    first = replies[0]
    rationale = _MARK.split(first.text)[-2].strip() if explained and _MARK.search(first.text) else None
    soft = first_token_probabilities(first, words, explained) if len(replies) == 1 and words else None
    if soft is not None:
        probabilities, rest = soft
        return Label(probabilities, "logprobs", rest, "answered", rationale)
    named = [_read_text(reply.text, words, entities, explained) for reply in replies]
    count = len(words) or len(entities)
    answered = [choice for choice in named if choice is not None]
    if answered:
        shares = [answered.count(choice) / len(answered) for choice in range(count)]
        return Label(shares, "samples" if len(replies) > 1 else "text", None, "answered", rationale)
    refused = any(reply.declined or _REFUSALS.search(reply.text) for reply in replies)
    return Label(None, None, None, "refused" if refused else "unparsable", rationale)


def _read_text(text: str, words: Sequence[str], entities: Sequence[str], explained: bool) -> int | None:
    """The choice that a reply names, or None."""
    marks = list(_MARK.finditer(text))
    if explained and not marks:
        return None
    said = text[marks[-1].end() :] if marks else text
    if words:
        return parse_choice(said, words)
    entity = parse_entity(said, entities)
    return entities.index(entity) if entity in entities else None


def first_token_probabilities(
    reply: Reply, words: Sequence[str], explained: bool = False
) -> tuple[list[float], float] | None:
    """The probabilities of the choices by the tokens at the place of the answer, and that of all else.

    A token that begins exactly one of the answer words, without regard to case and to what is no letter, counts for it.
    One that begins several («не» of «нет» and «неизвестно») or none yet (a space, «**») is followed into the next
    position if it is the one that was said: there the probabilities are those behind it. Of the others no more is
    known, so their probability joins the rest.

    Args:
        reply: with log-probabilities, or without.
        words: the choices' answer words.
        explained: only an answer behind its mark counts.

    Returns:
        (probabilities of the choices, made to sum to 1; the rest of the probability), or None where the tokens do not
        tell.
    """
    if not reply.positions:
        return None
    names = [_bare(word) for word in words]
    said = _said(reply)
    place = _place_of_answer(said) if said else 0
    if place is None or (explained and not place):
        return None
    found = [0.0] * len(words)
    _share_out(reply.positions, said, place, "", 1.0, names, found)
    mass = sum(found)
    if mass < _LEAST_MASS:
        return None
    return [value / mass for value in found], max(0.0, 1.0 - mass)


def _share_out(
    positions: Sequence[Position],
    said: Sequence[str] | None,
    place: int,
    before: str,
    weight: float,
    names: Sequence[str],
    found: list[float],
) -> None:
    """Adds to `found` each choice's probability, where `before` was said up to `place` with probability `weight`."""
    for token, logprob in positions[place].top:
        text = _bare(before + token)
        begun = [number for number, name in enumerate(names) if name.startswith(text)]
        if text and len(begun) == 1:
            found[begun[0]] += weight * math.exp(logprob)
        elif begun and said and token == said[place] and place + 1 < len(positions):
            _share_out(positions, said, place + 1, before + token, weight * math.exp(logprob), names, found)


def _said(reply: Reply) -> list[str] | None:
    """The tokens that were said, or None where the server does not tell.

    mlx_lm.server names any of the top tokens in their place; the likeliest are what a greedy answer says.
    """
    named = [position.token for position in reply.positions]
    likeliest = [max(position.top, key=lambda pair: pair[1], default=("", 0.0))[0] for position in reply.positions]
    return next((tokens for tokens in (named, likeliest) if reply.text in "".join(tokens)), None)


def _place_of_answer(said: Sequence[str]) -> int | None:
    """The position behind the last mark, 0 where there is none; None where nothing follows the mark."""
    marks = list(_MARK.finditer("".join(said)))
    if not marks:
        return 0
    length = 0
    for place, token in enumerate(said):
        if length >= marks[-1].end():
            return place
        length += len(token)
    return None


def _bare(text: str) -> str:
    """Lower case, without what is no letter or digit at the ends."""
    return _NO_WORD.sub("", text.lower().replace("ё", "е"))
