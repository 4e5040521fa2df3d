"""The connection to any server that speaks OpenAI's chat or completions API.

The openai package sends, waits and retries. Answers are parsed by us, because the servers differ in their shapes.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from pydantic import ValidationError

from harness.endpoint.answers import Answer
from harness.endpoint.options import KEY_VARIABLE, public_address
from harness.errors import UserError, nearest_hint

try:
    import httpx2
    import openai
except ImportError as error:
    raise UserError("the package openai is not installed", "pip install 'rsg-harness[endpoint]'") from error

log = logging.getLogger(__name__)

CHAT, COMPLETIONS = "/chat/completions", "/completions"
# The waits double from 0.5 to 8 seconds: about 40 seconds in all. A Retry-After header of up to two minutes is obeyed.
_RETRIES = 8
# An answer that is no JSON comes from a proxy in between, and the next may be right.
_UNREADABLE_RETRIES = 2
_LONGEST_MESSAGE = 200
BAD_PARAMETER = (400, 422)  # statuses for a parameter that the server does not take
_BAD_QUESTION = (400, 413, 422)  # too long, most often
# Parameter that a server may refuse -> the name by which some take it; None: it is left out.
_SUBSTITUTES: Mapping[str, str | None] = {
    "max_tokens": "max_completion_tokens",
    "seed": None,
    "temperature": None,
    "stop": None,
    "chat_template_kwargs": None,
}
# How servers say that they take no such parameter, and not that its value is wrong: a long prompt leaves few tokens.
_NOT_TAKEN = re.compile(
    r"not support|unsupported|unknown|unrecogni[sz]ed|unexpected|not permitted|instead", re.IGNORECASE
)


class NoAnswer(Exception):
    """One question got no answer after all retries; the next one may get one.

    Attributes:
        status: The server's HTTP status; None where it gave none.
        is_question: Whether this question is the reason, and not the server.
    """

    def __init__(self, message: str, status: int | None = None, *, is_question: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.is_question = is_question or status in _BAD_QUESTION


class Connection:
    """A connection to a server. Use as an asynchronous context manager, within one event loop.

    Args:
        address: http://HOST/v1.
        key: The API key; None where the server wants none.
        timeout: Seconds for one answer.
        connections: The most that may be open at once.
        option: The option that names the model, for messages.

    Attributes:
        address: The address as messages and records show it.
    """

    def __init__(
        self, address: str, key: str | None, timeout: float, connections: int, option: str = "--model"
    ) -> None:
        self.address = public_address(address)
        self._key = key
        self._timeout = timeout
        self._option = option
        self._refused_parameters: set[str] = set()
        parts = urlsplit(address)
        self._client = openai.AsyncOpenAI(
            base_url=urlunsplit(parts._replace(query="", fragment="")),
            default_query=dict(parse_qsl(parts.query)),
            api_key=key or "none",
            max_retries=_RETRIES,
            http_client=openai.DefaultAsyncHttpxClient(
                timeout=httpx2.Timeout(timeout, connect=min(timeout, 10.0)),
                limits=httpx2.Limits(max_connections=connections, max_keepalive_connections=connections),
            ),
        )

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._client.close()

    async def model_names(self) -> list[str]:
        """Return the models that the server lists; empty where it lists none.

        Raises:
            UserError: Nothing answers at the address, or the key is refused.
        """
        try:
            response = await self._client.with_options(max_retries=1).get("/models", cast_to=httpx2.Response)
            return [str(model["id"]) for model in response.json()["data"]]
        except openai.APIConnectionError as error:
            reason = "no answer in time" if isinstance(error, openai.APITimeoutError) else _cause(error)
            raise UserError(
                f"cannot reach {self.address}: {reason}",
                "start the server, or correct --endpoint (http://HOST:PORT/v1)",
            ) from error
        except openai.APIStatusError as error:
            if error.status_code in (401, 403):
                raise self._refused(error) from error
            return []
        except (ValueError, KeyError, TypeError):
            return []

    async def ask(self, path: str, body: Mapping[str, Any]) -> Answer:
        """Return one answer.

        Args:
            path: CHAT or COMPLETIONS.
            body: The question as the API has it.

        Raises:
            NoAnswer: There is none after all retries.
            UserError: The key or the model is wrong, so the server will never answer.
        """
        for _ in range(_UNREADABLE_RETRIES + 1):
            content = await self._post_adapted(path, body)
            try:
                return Answer.model_validate_json(content)
            except ValidationError as error:
                unreadable = error
        first = unreadable.errors()[0]
        where = f" in {'.'.join(map(str, first['loc']))}" if first["loc"] else ""
        raise NoAnswer(f"not an answer of an OpenAI-compatible server{where}: {first['msg'].lower()}")

    async def _post_adapted(self, path: str, body: Mapping[str, Any]) -> bytes:
        """Post without the parameters that the server has refused by name, learning which they are."""
        while True:
            taken = {name: value for name, value in body.items() if name not in self._refused_parameters}
            for name in self._refused_parameters & body.keys():
                if substitute := _SUBSTITUTES[name]:
                    taken[substitute] = body[name]
            try:
                return await self._post(path, taken)
            except NoAnswer as failure:
                refused = _refused_parameter(path, str(failure))
                if failure.status not in BAD_PARAMETER or refused is None or refused not in taken:
                    raise
                log.warning("the server refuses %s: %s", refused, failure)
                self._refused_parameters.add(refused)

    async def _post(self, path: str, body: dict[str, Any]) -> bytes:
        try:
            response = await self._client.post(path, body=body, cast_to=httpx2.Response)
        except openai.APITimeoutError as error:
            raise NoAnswer(f"no answer within {self._timeout:g} seconds") from error
        except openai.APIConnectionError as error:
            raise NoAnswer(f"the connection broke: {_cause(error)}") from error
        except openai.APIStatusError as error:
            # Some servers say 403 to log-probabilities alone.
            if error.status_code == 401 or (error.status_code == 403 and "logprobs" not in body):
                raise self._refused(error) from error
            if error.status_code == 404:
                raise await self._not_found(error, str(body.get("model"))) from error
            raise NoAnswer(f"status {error.status_code}: {self._message(error)}", error.status_code) from error
        if failure := self._error_with_status_200(response.content):
            raise failure
        return response.content

    def _error_with_status_200(self, content: bytes) -> NoAnswer | None:
        """Return what a proxy reports as an error in an answer of status 200; None where it is none."""
        try:
            answer = json.loads(content)
        except ValueError:
            return None
        error = answer.get("error") if isinstance(answer, dict) and not answer.get("choices") else None
        if not error:
            return None
        code = error.get("code") if isinstance(error, dict) else None
        return NoAnswer(self._shortened(_message_of(answer)), code if isinstance(code, int) else None)

    def _refused(self, error: openai.APIStatusError) -> UserError:
        return UserError(
            f"{self.address} refuses the API key: {self._message(error)}",
            f"set {KEY_VARIABLE}, or name a file with --api-key-file",
        )

    async def _not_found(self, error: openai.APIStatusError, model: str) -> UserError | NoAnswer:
        """Return what a status 404 means: the server lacks the model, or, where it lists it, the API."""
        names = await self.model_names()
        if model in names:
            return NoAnswer(f"status 404: {self._message(error)}", 404)
        hint = nearest_hint(model, names, "its models") if names else f"correct {self._option} or --endpoint"
        return UserError(f"{self.address} has no model {model!r}: {self._message(error)}", hint)

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


def _refused_parameter(path: str, message: str) -> str | None:
    """Return the parameter that a server says it does not take; None where it says something else."""
    named = next((name for name in _SUBSTITUTES if re.search(rf"\b{name}\b", message)), None)
    if named in ("max_tokens", "stop") and not _NOT_TAKEN.search(message):
        return None
    return None if named == "max_tokens" and path != CHAT else named


def _message_of(answer: Any) -> str:
    """Return the message of an error, in the shapes that servers give it; "" where there is none."""
    found = answer.get("error", answer) if isinstance(answer, dict) else answer
    if isinstance(found, dict):
        found = found.get("message") or json.dumps(found, ensure_ascii=False)
    return str(found or "")


def _cause(error: Exception) -> str:
    """Return what is behind the library's "Connection error."."""
    return " ".join(str(error.__cause__ or error).split()) or type(error.__cause__ or error).__name__
