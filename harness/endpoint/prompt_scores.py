"""Log-probabilities of a given text, from a completion that echoes its prompt.

vLLM and SGLang answer `"echo": true, "logprobs": 1` with a log-probability for every token of the prompt. Their shape
is taken from their sources (vLLM's completion/serving.py, SGLang's serving_completions.py); neither was tried. The
tokens come as texts, which are held against the prompt here, to find where the scored part begins and to refuse what is
no echo. White space does not count: servers lose it where a SentencePiece token begins with it. A token that holds a
part of a character has no text of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.endpoint.answers import Answer, Logprobs, plain_text
from harness.endpoint.connection import COMPLETIONS, Connection, NoAnswer

# A part of a character, as servers show it: U+FFFD, "<0xD0>", "bytes:\xd0".
_PART = re.compile("\N{REPLACEMENT CHARACTER}|<0x[0-9A-Fa-f]{2}>|^bytes:")
_SPACE = re.compile(r"\s+")


class NoPromptScores(NoAnswer):
    """An answer without the log-probabilities of its prompt."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, is_question=True)


@dataclass(frozen=True)
class PromptScore:
    """The log-probability of the scored part in nats, and whether each of its tokens was the likeliest."""

    logprob: float
    greedy: bool


async def score_prompt(connection: Connection, model: str, context: str, continuation: str) -> PromptScore:
    """Ask for the log-probability of a continuation after its context.

    Args:
        connection: To the server.
        model: Its name there.
        context: Without trailing white space; "": the whole text is scored after the BOS that the server puts.
        continuation: The scored part. A token that spans the border counts as context, as in lm-eval.

    Raises:
        NoAnswer: There is none; `NoPromptScores` where the answer holds no log-probabilities of the prompt.
    """
    body: Mapping[str, Any] = {
        "model": model,
        "prompt": context + continuation,
        # One token is generated and ignored: not every server takes 0.
        "max_tokens": 1,
        "temperature": 0.0,
        "logprobs": 1,
        "echo": True,
    }
    return read_prompt_score(await connection.ask(COMPLETIONS, body), context, continuation)


def read_prompt_score(answer: Answer, context: str, continuation: str) -> PromptScore:
    """Return the score of a continuation from the echo of context and continuation.

    Raises:
        NoPromptScores: It is no echo, or its log-probabilities are not complete.
    """
    logprobs = answer.choice.logprobs or Logprobs()
    tokens, values, tops = logprobs.tokens or [], logprobs.token_logprobs or [], logprobs.top_logprobs or []
    length = len(tokens) - (answer.usage.completion_tokens if answer.usage else 1)
    if length < 1 or not len(tokens) == len(values) == len(tops):
        raise NoPromptScores("the answer holds no log-probabilities of the prompt")
    tokens = tokens[:length]
    text = _bare(context + continuation)
    spans = token_spans(tokens, text)
    if spans is None and (without_bos := token_spans(tokens[1:], text)) is not None:
        spans = [(-1, -1), *without_bos]
    if spans is None:
        raise NoPromptScores("the tokens of the answer do not spell the prompt")
    border = len(_bare(context))
    if any(start < border < end and _PART.search(token) for (start, end), token in zip(spans, tokens, strict=True)):
        raise NoPromptScores("a character's parts lie on both sides of the border between prompt and answer")
    scored = [number for number, (start, _) in enumerate(spans) if start >= border]
    if not scored:
        raise NoPromptScores(f"the continuation {continuation!r} has no token of its own")
    if scored[0] == 0:
        raise NoPromptScores("the server shows no log-probability of a text's first token, as it would after a BOS")
    found = [(_known([values[number]]), _known((tops[number] or {}).values())) for number in scored]
    return PromptScore(sum(own for own, _ in found), all(own >= likeliest for own, likeliest in found))


def token_spans(tokens: Sequence[str], text: str) -> list[tuple[int, int]] | None:
    """Return where each token begins and ends in a text; None where they do not spell it.

    Args:
        tokens: As the server shows them. Tokens that are parts of characters get the span of their whole run.
        text: Without white space.
    """
    spans: list[tuple[int, int]] = []
    position = 0
    parts = spaces = 0  # tokens of the run of parts that ends here, and white space after it
    for token in map(plain_text, tokens):
        spelled = _bare(token)
        if _PART.search(token):
            parts, spaces = parts + spaces + 1, 0
            spans.append((position, len(text)))
            continue
        if parts and not spelled:
            spaces += 1
            spans.append((len(text), len(text)))
            continue
        start = text.find(spelled, position) if parts else position
        if start < 0 or not text.startswith(spelled, start):
            return None
        spans[len(spans) - parts - spaces :] = [*[(position, start)] * parts, *[(start, start)] * spaces]
        parts = spaces = 0
        spans.append((start, start + len(spelled)))
        position = start + len(spelled)
    return spans if parts or position == len(text) else None


def _bare(text: str) -> str:
    return _SPACE.sub("", text)


def _known(values: Iterable[float | None]) -> float:
    """Return the largest of the values that are known."""
    known = [value for value in values if value is not None]
    if not known:
        raise NoPromptScores("a token of the answer has no log-probability")
    return max(known)
