"""The connection to the teacher: any server that speaks OpenAI's chat or completions API.

The openai package sends, waits and retries. Replies are parsed here, because the servers differ in the shape of their
log-probabilities. According to their documentation, vLLM uses OpenAI's two shapes and llama.cpp the chat shape for both
APIs (neither was tried). mlx_lm.server (tried: 0.32) uses the chat shape for both, gives at most 11 tokens a position,
wants `"logprobs": true` in both, and spells tokens as its vocabulary does ("▁да", "ĠÐ´Ð°").
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from harness.distillation.lines import Usage
from harness.errors import UserError, nearest_hint

try:
    import httpx2
    import openai
except ImportError as error:
    raise UserError("the package openai is not installed", "pip install 'rsg-harness[distill]'") from error

log = logging.getLogger(__name__)

Api = Literal["chat", "completions"]

# The waits double from 0.5 to 8 seconds: about 40 seconds in all. A Retry-After header of up to two minutes is obeyed.
_RETRIES = 8
# An answer that is no JSON comes from a proxy in between, and the next may be right.
_UNREADABLE_RETRIES = 2
_LONGEST_MESSAGE = 200
_BAD_PARAMETER = (400, 422)  # statuses for a parameter that the server does not take
_NO_LOGPROB_STATUSES = (*_BAD_PARAMETER, 403, 501)  # and for log-probabilities that it does not give
# Parameter that a server may refuse -> the name by which some take it; None: it is left out.
_SUBSTITUTES: Mapping[str, str | None] = {"max_tokens": "max_completion_tokens", "seed": None, "temperature": None}
# How servers say that they take no such parameter, and not that its value is wrong: a long prompt leaves few tokens.
_NOT_TAKEN = re.compile(
    r"not support|unsupported|unknown|unrecogni[sz]ed|unexpected|not permitted|instead", re.IGNORECASE
)


class TeacherFailure(Exception):
    """One question got no answer after all retries; the next one may get one.

    Attributes:
        status: The server's HTTP status; None where it gave none.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


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
    """A connection to the server. Close it at the end.

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
        self._endpoint = endpoint
        self._key = key
        self._timeout = timeout
        self._refused_parameters: set[str] = set()
        self._client = openai.AsyncOpenAI(
            base_url=endpoint,
            api_key=key or "none",
            max_retries=_RETRIES,
            http_client=openai.DefaultAsyncHttpxClient(
                timeout=httpx2.Timeout(timeout, connect=min(timeout, 10.0)),
                limits=httpx2.Limits(max_connections=connections, max_keepalive_connections=connections),
            ),
        )

    async def close(self) -> None:
        await self._client.close()

    async def model_names(self) -> list[str]:
        """Return the models that the server lists; empty where it lists none.

        Raises:
            UserError: Nothing answers at the endpoint, or the key is refused.
        """
        try:
            response = await self._client.with_options(max_retries=1).get("/models", cast_to=httpx2.Response)
            return [str(model["id"]) for model in response.json()["data"]]
        except openai.APIConnectionError as error:
            reason = "no answer in time" if isinstance(error, openai.APITimeoutError) else _cause(error)
            raise UserError(
                f"cannot reach {self._endpoint}: {reason}",
                "start the server, or correct --endpoint (http://HOST:PORT/v1)",
            ) from error
        except openai.APIStatusError as error:
            if error.status_code in (401, 403):
                raise self._refused(error) from error
            return []
        except (ValueError, KeyError, TypeError):
            return []

    async def pick_logprobs(self, prompt: str, wanted: bool) -> LogprobRequest:
        """Ask for one token, to learn whether the model is there and which log-probabilities the server gives.

        Raises:
            UserError: The server answers none of the requests.
        """
        tried = LOGPROB_REQUESTS[self._api] if wanted else (_NO_LOGPROBS,)
        for request in tried:
            try:
                reply = await self.ask(prompt, temperature=0.0, max_tokens=1, seed=0, logprobs=request)
            except TeacherFailure as failure:
                if failure.status in _NO_LOGPROB_STATUSES and request is not tried[-1]:
                    continue
                raise UserError(f"{self._endpoint}: {failure}", "see the server's log; try --api completions") from None
            if reply.positions:
                return request
        return _NO_LOGPROBS

    async def ask(
        self, prompt: str, *, temperature: float, max_tokens: int, seed: int, logprobs: LogprobRequest = _NO_LOGPROBS
    ) -> Reply:
        """Return one answer.

        Raises:
            TeacherFailure: There is none after all retries.
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
            path, body["messages"] = "/chat/completions", [{"role": "user", "content": prompt}]
        else:
            path, body["prompt"] = "/completions", prompt
        for _ in range(_UNREADABLE_RETRIES + 1):
            content = await self._post_adapted(path, body)
            try:
                return read_reply(content)
            except ValidationError as error:
                unreadable = error
        first = unreadable.errors()[0]
        where = f" in {'.'.join(map(str, first['loc']))}" if first["loc"] else ""
        raise TeacherFailure(f"not an answer of an OpenAI-compatible server{where}: {first['msg'].lower()}")

    async def _post_adapted(self, path: str, body: dict[str, Any]) -> bytes:
        """Post without the parameters that the server has refused by name, learning which they are."""
        while True:
            taken = {name: value for name, value in body.items() if name not in self._refused_parameters}
            for name in self._refused_parameters & body.keys():
                if substitute := _SUBSTITUTES[name]:
                    taken[substitute] = body[name]
            try:
                return await self._post(path, taken)
            except TeacherFailure as failure:
                refused = self._refused_parameter(str(failure))
                if failure.status not in _BAD_PARAMETER or refused is None or refused not in taken:
                    raise
                log.warning("the server refuses %s: %s", refused, failure)
                self._refused_parameters.add(refused)

    def _refused_parameter(self, message: str) -> str | None:
        """Return the parameter that a server says it does not take; None where it says something else."""
        named = next((name for name in _SUBSTITUTES if re.search(rf"\b{name}\b", message)), None)
        if named == "max_tokens" and not (self._api == "chat" and _NOT_TAKEN.search(message)):
            return None
        return named

    async def _post(self, path: str, body: dict[str, Any]) -> bytes:
        try:
            response = await self._client.post(path, body=body, cast_to=httpx2.Response)
        except openai.APITimeoutError as error:
            raise TeacherFailure(f"no answer within {self._timeout:g} seconds") from error
        except openai.APIConnectionError as error:
            raise TeacherFailure(f"the connection broke: {_cause(error)}") from error
        except openai.APIStatusError as error:
            # Some servers say 403 to log-probabilities alone.
            if error.status_code == 401 or (error.status_code == 403 and "logprobs" not in body):
                raise self._refused(error) from error
            if error.status_code == 404:
                raise await self._no_model(error) from error
            raise TeacherFailure(f"status {error.status_code}: {self._message(error)}", error.status_code) from error
        if failure := self._error_with_status_200(response.content):
            raise failure
        return response.content

    def _error_with_status_200(self, content: bytes) -> TeacherFailure | None:
        """Return what a proxy reports as an error in an answer of status 200; None where it is none."""
        try:
            answer = json.loads(content)
        except ValueError:
            return None
        error = answer.get("error") if isinstance(answer, dict) and not answer.get("choices") else None
        if not error:
            return None
        code = error.get("code") if isinstance(error, dict) else None
        return TeacherFailure(self._shortened(_message_of(answer)), code if isinstance(code, int) else None)

    def _refused(self, error: openai.APIStatusError) -> UserError:
        return UserError(
            f"{self._endpoint} refuses the API key: {self._message(error)}",
            "set OPENAI_API_KEY, or name a file with --api-key-file",
        )

    async def _no_model(self, error: openai.APIStatusError) -> UserError:
        names = await self.model_names()
        hint = nearest_hint(self.name, names, "its models") if names else "correct --teacher or --endpoint"
        return UserError(f"{self._endpoint} has no model {self.name!r}: {self._message(error)}", hint)

    def _message(self, error: openai.APIStatusError) -> str:
        """Return the server's message on one short line."""
        text = error.response.text
        try:
            return self._shortened(_message_of(json.loads(text)) or text)
        except ValueError:
            return self._shortened(text)

    def _shortened(self, text: str) -> str:
        """Return a text on one short line, without the key, which some servers repeat."""
        if self._key:
            text = text.replace(self._key, "KEY")
        text = " ".join(text.split())
        return text if len(text) <= _LONGEST_MESSAGE else text[:_LONGEST_MESSAGE] + "…"


def _message_of(answer: Any) -> str:
    """Return the message of an error, in the shapes that servers give it; "" where there is none."""
    found = answer.get("error", answer) if isinstance(answer, dict) else answer
    if isinstance(found, dict):
        found = found.get("message") or json.dumps(found, ensure_ascii=False)
    return str(found or "")


def _cause(error: Exception) -> str:
    """Return what is behind the library's "Connection error."."""
    return " ".join(str(error.__cause__ or error).split()) or type(error.__cause__ or error).__name__


class _Lenient(BaseModel):
    """A part of an answer; fields that servers add are ignored, and so are those that are null."""

    model_config = ConfigDict(extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, values: Any) -> Any:
        return (
            {key: value for key, value in values.items() if value is not None} if isinstance(values, dict) else values
        )


class _Token(_Lenient):
    token: str = ""
    logprob: float | None = None  # some servers give none for tokens that they rule out


class _Content(_Lenient):
    token: str = ""
    top_logprobs: list[_Token] = []


class _Logprobs(_Lenient):
    content: list[_Content] | None = None  # the chat shape
    tokens: list[str] | None = None  # the completions shape: this field and the next
    top_logprobs: list[dict[str, float | None] | None] | None = None


_TEXT_PARTS = ("text", "output_text")


class _Message(_Lenient):
    content: str | None = None
    refusal: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _joined(cls, value: Any) -> Any:
        """Join the texts of an answer in parts; thoughts and pictures are none of it."""
        if not isinstance(value, list):
            return value
        parts = [part for part in value if isinstance(part, dict) and part.get("type", "text") in _TEXT_PARTS]
        return "".join(str(part.get("text") or "") for part in parts)


class _Choice(_Lenient):
    message: _Message | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Usage(_Lenient):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Answer(_Lenient):
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


def read_reply(content: bytes) -> Reply:
    """Parse an answer of either API.

    Raises:
        ValidationError: It is no JSON, or not an answer's.
    """
    answer = _Answer.model_validate_json(content)
    choice = answer.choices[0]
    message = choice.message or _Message(content=choice.text)
    usage = answer.usage or _Usage()
    return Reply(
        text=(message.content or message.refusal or "").strip(),
        cut=choice.finish_reason == "length",
        declined=bool(message.refusal) or choice.finish_reason == "content_filter",
        positions=_positions(choice.logprobs) if choice.logprobs else (),
        usage=Usage(prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens),
    )


def _positions(logprobs: _Logprobs) -> tuple[Position, ...]:
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


def _byte_letters() -> dict[str, int]:
    """Return letter -> byte, as byte-level vocabularies spell bytes (GPT-2's table, which most others use)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {
        **{chr(byte): byte for byte in shown},
        **{chr(256 + number): byte for number, byte in enumerate(hidden)},
    }


_BYTE_LETTERS = _byte_letters()


def plain_text(token: str) -> str:
    """Return a token as text where the server spells it as its vocabulary does ("▁да", "ĠÐ´Ð°")."""
    token = token.replace("▁", " ")
    if token.isascii():
        return token
    try:
        return bytes(_BYTE_LETTERS[letter] for letter in token).decode("utf-8")
    except (KeyError, UnicodeDecodeError):
        return token
