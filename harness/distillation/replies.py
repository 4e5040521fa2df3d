"""Read a teacher's replies: probabilities of the choices, hard or soft, and documents that it wrote."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import ValidationError

from harness.distillation.client import Position, Reply
from harness.distillation.prompts import Question
from harness.tasks import Row, get_task
from harness.tasks.answers import parse_choice, parse_entity
from harness.tasks.document import DocumentFault, describe

# If all choices together have less probability, the likeliest tokens begin something other than an answer.
_LEAST_MASS = 0.1
# Ends what comes before an answer: an explanation, or the thoughts of a reasoning model.
_MARK = re.compile(r"</think>|\bответ\s*[:—–-]", re.IGNORECASE)
_NO_WORD = re.compile(r"^[\W_]+|[\W_]+$")
_WORD = re.compile(r"\w")
_REFUSALS = re.compile(
    r"не мог[уч]|не в состоянии|как (?:большая )?языковая модель|извините|к сожалению|отказываюсь|воздержусь"
    r"|i can(?:'|no)t|i'm sorry|as an ai",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Label:
    """The label that the replies to one question give.

    Attributes:
        probabilities: Of the choices, summing to 1; None where no reply names one.
        how: Whether they come from log-probabilities, from one reply's text or from the shares of several replies.
        rest: Probability of everything that is no choice; None without log-probabilities.
        outcome: Whether there is an answer, and if not, why.
        rationale: The explanation before the answer; None where there is none.
    """

    probabilities: list[float] | None
    how: Literal["logprobs", "text", "samples"] | None
    rest: float | None
    outcome: Literal["answered", "refused", "unparsable"]
    rationale: str | None


def read_label(replies: Sequence[Reply], verbalizers: Sequence[str], entities: Sequence[str], explained: bool) -> Label:
    """Return the label that one question's replies give.

    Args:
        replies: One, or as many as samples were asked for.
        verbalizers: The answer words in the order of the labels; empty where a document has choices of its own.
        entities: The document's own choices.
        explained: Whether an explanation was asked for; then only what follows its mark is an answer.
    """
    first = replies[0]
    rationale = _MARK.split(first.text)[-2].strip() if explained and _MARK.search(first.text) else None
    soft = first_token_probabilities(first, verbalizers, explained) if len(replies) == 1 and verbalizers else None
    if soft is not None:
        probabilities, rest = soft
        return Label(probabilities, "logprobs", rest, "answered", rationale)
    named = [_read_text(reply.text, verbalizers, entities, explained) for reply in replies]
    count = len(verbalizers) or len(entities)
    answered = [choice for choice in named if choice is not None]
    if answered:
        shares = [answered.count(choice) / len(answered) for choice in range(count)]
        return Label(shares, "samples" if len(replies) > 1 else "text", None, "answered", rationale)
    refused = any(reply.declined or _REFUSALS.search(reply.text) for reply in replies)
    return Label(None, None, None, "refused" if refused else "unparsable", rationale)


def _read_text(text: str, verbalizers: Sequence[str], entities: Sequence[str], explained: bool) -> int | None:
    """Return the choice that a reply names, or None."""
    marks = list(_MARK.finditer(text))
    if explained and not marks:
        return None
    if text.rfind("<think>") > text.rfind("</think>"):  # a thought that was cut short answers nothing
        return None
    answer = text[marks[-1].end() :] if marks else text
    if verbalizers:
        return parse_choice(answer, verbalizers)
    entity = parse_entity(answer, entities)
    return entities.index(entity) if entity in entities else None


def first_token_probabilities(
    reply: Reply, verbalizers: Sequence[str], explained: bool = False
) -> tuple[list[float], float] | None:
    """Return the choices' probabilities by the tokens at the place of the answer, and the probability of all else.

    A token that begins exactly one verbalizer counts for it, whatever its case and the marks around its letters. A
    token that begins several of them («не» of «нет» and «неизвестно») or none yet (a space, «**») is followed into the
    next position if it is the token that was generated: the probabilities there are conditional on it. If it was not
    generated, nothing is known about what follows it, so its probability joins the rest.

    Args:
        reply: With log-probabilities, or without.
        verbalizers: The choices' answer words.
        explained: Whether only an answer after a mark counts.

    Returns:
        (The probabilities of the choices, normalised to sum to 1; the rest of the probability), or None where the
        tokens do not tell.
    """
    if not reply.positions:
        return None
    names = [_bare(word) for word in verbalizers]
    generated = _generated_tokens(reply)
    place = _place_of_answer(generated) if generated else 0
    if place is None or (explained and not place):
        return None
    found = [0.0] * len(verbalizers)
    _share_out(reply.positions, generated, place, "", 1.0, names, found)
    mass = sum(found)
    if mass < _LEAST_MASS:
        return None
    return [value / mass for value in found], max(0.0, 1.0 - mass)


def _share_out(
    positions: Sequence[Position],
    generated: Sequence[str] | None,
    place: int,
    before: str,
    weight: float,
    names: Sequence[str],
    found: list[float],
) -> None:
    """Add each choice's probability at `place` to `found`, where `before` was generated with probability `weight`."""
    for token, logprob in positions[place].top:
        text = _bare(before + token)
        begun = [number for number, name in enumerate(names) if name.startswith(text)]
        if text and len(begun) == 1:
            found[begun[0]] += weight * math.exp(logprob)
        elif begun and generated and token == generated[place] and place + 1 < len(positions):
            _share_out(positions, generated, place + 1, before + token, weight * math.exp(logprob), names, found)


def _generated_tokens(reply: Reply) -> list[str] | None:
    """Return the generated tokens, or None where the server does not tell.

    mlx_lm.server puts any of the top tokens in their place; the likeliest ones are what a greedy answer consists of.
    """
    named = [position.token for position in reply.positions]
    likeliest = [max(position.top, key=lambda pair: pair[1], default=("", 0.0))[0] for position in reply.positions]
    return next((tokens for tokens in (named, likeliest) if reply.text in "".join(tokens)), None)


def _place_of_answer(generated: Sequence[str]) -> int | None:
    """Return the position after the last mark, 0 where there is no mark; None where nothing follows the mark."""
    marks = list(_MARK.finditer("".join(generated)))
    if not marks:
        return 0
    length = 0
    for place, token in enumerate(generated):
        if length >= marks[-1].end():
            return place
        length += len(token)
    return None


def _bare(text: str) -> str:
    """Return the text in lower case, without characters at its ends that are no letters or digits."""
    return _NO_WORD.sub("", text.lower().replace("ё", "е"))


class Unusable(ValueError):
    """The reason why a reply is no document, worded the same for the same fault so that reports can count it."""


def read_document(reply: str, question: Question, number: int) -> Row:
    """Return the row of the document in a reply.

    Args:
        reply: The teacher's text, with one JSON object somewhere in it.
        question: What was asked: the task, the label, and for a paraphrase its source.
        number: The document's idx; training gives it a free one.

    Raises:
        Unusable: The reply holds no valid document.
    """
    task = get_task(question.task)
    assert task.writing is not None
    columns = _object(reply)
    if not question.shots:
        columns |= {name: question.row[name] for name in task.writing.kept}
    texts: Row = {}
    for name in task.writing.columns:
        value = columns.get(name)
        if not isinstance(value, str) or not _WORD.search(value):
            raise Unusable(f"no text in the field {name}")
        texts[name] = " ".join(value.split())
    try:
        return task.parse({**task.writing.complete(texts), "idx": number, "label": question.label}).row()
    except ValidationError as error:
        raise Unusable(f"not in the schema: {describe(error)}") from error
    except DocumentFault as fault:
        raise Unusable(str(fault)) from fault


def _object(reply: str) -> Row:
    """Return the JSON object in a reply, which may stand between other words or in a code block."""
    start, end = reply.find("{"), reply.rfind("}")
    if start < 0 or end < start:
        raise Unusable("no JSON object")
    try:
        found = json.loads(reply[start : end + 1])
        json.dumps(found, ensure_ascii=False).encode("utf-8")  # half a surrogate pair is no character
    except ValueError as error:
        raise Unusable("invalid JSON") from error
    return found
