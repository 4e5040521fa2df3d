"""A server to evaluate: which model it serves, by which API it is asked, and whether it gives what the tasks need.

All of it is found out before the first document is sent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.endpoint.connection import CHAT, COMPLETIONS, Connection, NoAnswer
from harness.endpoint.options import public_address, read_key
from harness.endpoint.prompt_scores import score_prompt
from harness.errors import UserError, nearest_hint
from harness.evaluation.options import RunOptions, foreign_chat_template
from harness.models.checkpoint import is_checkpoint
from harness.tasks.foreign import ForeignTasks
from harness.tasks.prompts import ChosenTask

_TROUBLE = (429, 500, 502, 503, 504)  # statuses that say nothing about what the server gives
_NO_CHAT = (400, 404, 405, 422, 501)  # statuses of servers without a chat template for the model
_PROBE = ("Вопрос: идёт ли снег зимой?\nОтвет:", " да")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Endpoint:
    """A server and how it is asked.

    Attributes:
        url: Its address, maybe with a user and a password.
        model: Name of the model there.
        chat: Whether the tasks of Russian SuperGLUE are asked by its chat API.
        concurrency: Requests at a time.
        timeout: Seconds for one answer.
    """

    url: str = field(repr=False)
    model: str
    chat: bool
    concurrency: int
    timeout: float
    key: str | None = field(repr=False)

    @property
    def address(self) -> str:
        """The address as messages and records show it."""
        return public_address(self.url)

    def settings(self) -> dict[str, Any]:
        """Return what decides the answers; where the server stands does not."""
        return {"model": self.model, "chat": self.chat}

    def connection(self) -> Connection:
        """Return a connection that is not open yet."""
        return Connection(self.url, self.key, self.timeout, self.concurrency)


def find_endpoint(options: RunOptions, chosen: Sequence[ChosenTask], foreign: ForeignTasks | None) -> Endpoint:
    """Ask the server for what the tasks need, with a request of a few tokens each.

    Raises:
        UserError: Nothing answers, the key is refused, there is no such model, or the server gives no log-probabilities
            of a prompt and a task needs them.
    """
    if options.model is not None and is_checkpoint(Path(options.model)):
        raise UserError(
            f"{options.model} is a checkpoint, whose heads answer on this machine only",
            "leave out --endpoint, or name the model as the server does",
        )
    return asyncio.run(_find(options, _Needs.of(options, chosen, foreign)))


@dataclass(frozen=True)
class _Needs:
    """What the tasks need of the server.

    Attributes:
        scored: The first task that needs log-probabilities; None: none does.
        api: The API of our tasks' written answers: CHAT, COMPLETIONS, or None where the server decides.
        written: The APIs of all other written answers.
    """

    scored: str | None
    api: str | None
    written: frozenset[str]

    @staticmethod
    def of(options: RunOptions, chosen: Sequence[ChosenTask], foreign: ForeignTasks | None) -> _Needs:
        own = {task.file.name: task.file.is_generated for task in chosen}
        others = {
            name: task.OUTPUT_TYPE == "generate_until" for name, task in (foreign.tasks if foreign else {}).items()
        }
        scored = next((name for name, is_written in {**own, **others}.items() if not is_written), None)
        if scored and options.apply_chat_template == "on":
            raise UserError(
                f"the chat API gives no log-probabilities of a prompt, and {scored} needs them",
                "leave out --apply-chat-template, or ask for written answers: --tasks rsg_gen",
            )
        # lm-eval renders our tasks all alike, and choices go by completions.
        plain = options.apply_chat_template == "off" or not all(own.values())
        api = COMPLETIONS if plain or not own else CHAT if options.apply_chat_template == "on" else None
        written = {api} if api and any(own.values()) else set()
        if any(others.values()):
            written.add(CHAT if foreign_chat_template(options) else COMPLETIONS)
        return _Needs(scored, api, frozenset(written))


async def _find(options: RunOptions, needs: _Needs) -> Endpoint:
    assert options.endpoint is not None
    key = read_key(options.api_key_file)
    async with Connection(options.endpoint, key, options.timeout, options.concurrency) as connection:
        model = await _model_name(connection, options.model)
        checked = set()
        if needs.scored:
            await _check_scores(connection, model, needs.scored)
            checked.add(COMPLETIONS)
        api = needs.api
        if api is None:
            api = await _pick_api(connection, model)
            checked.add(api)
        for path in sorted(needs.written - checked):
            await _check_api(connection, model, path)
    return Endpoint(options.endpoint, model, api == CHAT, options.concurrency, options.timeout, key)


async def _model_name(connection: Connection, wanted: str | None) -> str:
    """Return the model's name on the server, by default that of the only one there."""
    names = await connection.model_names()
    if wanted is None:
        if len(names) != 1:
            listed = nearest_hint("", names, "one of") if names else "it lists none"
            raise UserError(f"{connection.address}: which model?", f"name it with --model, {listed}")
        return names[0]
    if names and wanted not in names:
        log.warning("%s lists no model %s: %s", connection.address, wanted, nearest_hint(wanted, names, "it lists"))
    return wanted


async def _check_scores(connection: Connection, model: str, task: str) -> None:
    """Refuse a server that gives no log-probabilities of a prompt."""
    try:
        await score_prompt(connection, model, *_PROBE)
    except NoAnswer as failure:
        if not failure.is_question and (failure.status is None or failure.status in _TROUBLE):
            raise _unusable(connection, failure) from None
        raise UserError(
            f"{connection.address} gives no log-probabilities of a prompt ({failure}), and {task} needs them",
            "ask for written answers: --tasks rsg_gen; vLLM and SGLang give log-probabilities",
        ) from None


async def _pick_api(connection: Connection, model: str) -> str:
    """Return CHAT, or COMPLETIONS where the server has no chat template for the model, as for base models."""
    try:
        await _ask(connection, model, CHAT)
    except NoAnswer as failure:
        if failure.status not in _NO_CHAT:
            raise _unusable(connection, failure) from None
        try:
            await _ask(connection, model, COMPLETIONS)
        except NoAnswer:
            raise _unusable(connection, failure) from None
        log.info("asking by the completions API, since the chat API says %s", failure)
        return COMPLETIONS
    log.info("asking by the chat API; --apply-chat-template off asks by the completions API, as base models need")
    return CHAT


async def _check_api(connection: Connection, model: str, path: str) -> None:
    """Refuse a server that does not answer by an API."""
    try:
        await _ask(connection, model, path)
    except NoAnswer as failure:
        other = "on asks by the chat API" if path == COMPLETIONS else "off asks by the completions API"
        raise _unusable(connection, failure, f"--apply-chat-template {other}") from None


async def _ask(connection: Connection, model: str, path: str) -> None:
    asked: Mapping[str, Any] = {"prompt": _PROBE[0]}
    if path == CHAT:
        asked = {"messages": [{"role": "user", "content": _PROBE[0]}]}
    await connection.ask(path, {"model": model, "max_tokens": 1, "temperature": 0.0, **asked})


def _unusable(connection: Connection, failure: NoAnswer, hint: str = "see the server's log") -> UserError:
    return UserError(f"{connection.address}: {failure}", hint)
