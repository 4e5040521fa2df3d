"""The teacher behind a server: its replies, and the log-probabilities that the server gives of them.

mlx_lm.server (tried: 0.32) gives at most 11 tokens a position, and wants `"logprobs": true` in both APIs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from harness.distillation.lines import Usage
from harness.endpoint.answers import Answer, Logprobs, plain_text
from harness.endpoint.connection import BAD_PARAMETER, CHAT, COMPLETIONS, Connection, NoAnswer
from harness.errors import UserError

Api = Literal["chat", "completions"]

_NO_LOGPROB_STATUSES = (*BAD_PARAMETER, 403, 501)  # statuses for log-probabilities that the server does not give


@dataclass(frozen=True)
class Position:
    """One position of an answer: the generated token, and the log-probabilities of the likeliest tokens."""

    token: str
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Reply:
    """One answer of the teacher.

    Attributes:
        text: Without surrounding space.
        cut: Whether it ended at max_tokens.
        declined: Whether the server says that the teacher refused to answer.
        positions: The log-probabilities; empty where the server gives none.
        usage: Tokens as the server counted them.
    """

    text: str
    cut: bool
    declined: bool
    positions: tuple[Position, ...]
    usage: Usage


@dataclass(frozen=True)
class LogprobRequest:
    """One way to ask for log-probabilities: the parameters, and the number of tokens at a position."""

    parameters: dict[str, Any]
    top: int


_NO_LOGPROBS = LogprobRequest({}, 0)
# Tried in turn until the server takes one: the API's maximum first, then the limits of stricter servers.
LOGPROB_REQUESTS: Mapping[Api, tuple[LogprobRequest, ...]] = {
    "chat": (
        LogprobRequest({"logprobs": True, "top_logprobs": 20}, 20),
        LogprobRequest({"logprobs": True, "top_logprobs": 10}, 10),
        LogprobRequest({"logprobs": True, "top_logprobs": 5}, 5),
        _NO_LOGPROBS,
    ),
    "completions": (
        LogprobRequest({"logprobs": 20}, 20),
        LogprobRequest({"logprobs": 5}, 5),
        LogprobRequest({"logprobs": True, "top_logprobs": 10}, 10),
        _NO_LOGPROBS,
    ),
}


class Teacher:
    """A connection to the server. Use as an asynchronous context manager.

    Args:
        endpoint: http://HOST/v1.
        name: Name of the model on the server.
        api: The API to use.
        key: The API key; None where the server wants none.
        timeout: Seconds for one answer.
        connections: The most that may be open at once.
    """

    def __init__(self, endpoint: str, name: str, api: Api, key: str | None, timeout: float, connections: int) -> None:
        self.name = name
        self._api = api
        self._connection = Connection(endpoint, key, timeout, connections, option="--teacher")

    async def __aenter__(self) -> Teacher:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connection.close()

    async def pick_logprobs(self, prompt: str, wanted: bool) -> LogprobRequest:
        """Ask for one token, to learn whether the model is there and which log-probabilities the server gives.

        Raises:
            UserError: Nothing answers at the endpoint, or the server answers none of the requests.
        """
        await self._connection.model_names()
        tried = LOGPROB_REQUESTS[self._api] if wanted else (_NO_LOGPROBS,)
        for request in tried:
            try:
                reply = await self.ask(prompt, temperature=0.0, max_tokens=1, seed=0, logprobs=request)
            except NoAnswer as failure:
                if failure.status in _NO_LOGPROB_STATUSES and request is not tried[-1]:
                    continue
                raise UserError(
                    f"{self._connection.address}: {failure}", "see the server's log; try --api completions"
                ) from None
            if reply.positions:
                return request
        return _NO_LOGPROBS

    async def ask(
        self, prompt: str, *, temperature: float, max_tokens: int, seed: int, logprobs: LogprobRequest = _NO_LOGPROBS
    ) -> Reply:
        """Return one answer.

        Raises:
            NoAnswer: There is none after all retries.
            UserError: The key or the model is wrong, so the server will never answer.
        """
        body: dict[str, Any] = {
            "model": self.name,
            "temperature": temperature,
            "max_tokens": max_tokens,
            "seed": seed,
            **logprobs.parameters,
        }
        if self._api == "chat":
            path, body["messages"] = CHAT, [{"role": "user", "content": prompt}]
        else:
            path, body["prompt"] = COMPLETIONS, prompt
        return make_reply(await self._connection.ask(path, body))


def make_reply(answer: Answer) -> Reply:
    """Return what an answer of either API says."""
    usage = answer.usage
    return Reply(
        text=answer.text.strip(),
        cut=answer.is_cut,
        declined=answer.is_declined,
        positions=_positions(answer.choice.logprobs) if answer.choice.logprobs else (),
        usage=Usage(**usage.model_dump()) if usage else Usage(),
    )


def _positions(logprobs: Logprobs) -> tuple[Position, ...]:
    if logprobs.content is not None:
        shown = [(one.token, _known((top.token, top.logprob) for top in one.top_logprobs)) for one in logprobs.content]
    else:
        tops = logprobs.top_logprobs or []
        shown = [(token, _known((top or {}).items())) for token, top in zip(logprobs.tokens or [], tops, strict=False)]
    if not any(top for _, top in shown):
        return ()
    return tuple(
        Position(plain_text(token), tuple((plain_text(text), value) for text, value in top)) for token, top in shown
    )


def _known(pairs: Iterable[tuple[str, float | None]]) -> list[tuple[str, float]]:
    return [(token, logprob) for token, logprob in pairs if logprob is not None]
