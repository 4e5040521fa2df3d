"""A stand-in for an OpenAI-compatible server on loopback, in a thread: three servers' shapes, and faults on demand.

Its teacher answers with the word that a function of the prompt picks, so that a test can compute the expected answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web

TEACHER = "stand-in"
# From a body, and whether it is a chat, to an answer, or to the message of an error with status 400.
Model = Callable[[dict[str, Any], bool], "dict[str, Any] | str"]
_KEPT_BODIES = 1000


@dataclass(frozen=True)
class Behaviour:
    """How the server answers.

    Attributes:
        shape: The server whose log-probabilities it imitates: vllm, llama.cpp, mlx, or none.
        texts: The answers, picked by the prompt's hash; {"{hash}"} in one is replaced by it.
        probability: Of the first token of the answer; the others of `words` share the rest but a tenth.
        words: The first tokens that have a probability.
        faults: For the first questions in turn: a status, hang, drop, half, garbage, nothing; "" for a good answer.
        dead_after: Questions after which every one gets status 500.
        retry_after: Seconds, sent with every status.
        finish: finish_reason.
        refused: Pieces of prompts that get status 400.
        most_logprobs: Tokens a position that may be asked for.
        logprobs_status: Status that a question for log-probabilities gets; 0: they are given.
        unsupported: Parameters that get status 400.
        error: Message of an error that every answer of status 200 is in place of a choice; "" for none.
        key: The key that is required; "" for none.
        seconds: Time that an answer takes.
    """

    shape: str = "vllm"
    texts: tuple[str, ...] = ("да", "нет")
    probability: float = 0.7
    words: tuple[str, ...] = ("да", "нет", "1", "2")
    faults: tuple[str, ...] = ()
    dead_after: int | None = None
    retry_after: float | None = None
    finish: str = "stop"
    refused: tuple[str, ...] = ()
    most_logprobs: int = 20
    logprobs_status: int = 0
    unsupported: tuple[str, ...] = ()
    error: str = ""
    key: str = ""
    seconds: float = 0.0


class OpenAIServer:
    """Serves until the with block ends.

    Args:
        behaviour: How it answers.
        model: Answers in place of words that the prompt picks.

    Attributes:
        bodies: The questions that came, probes included; only the first thousand are kept.
        times: When each of these came, in seconds of the server's clock.
        requests: Number of questions that came.
        most_at_once: The most questions in flight.
    """

    def __init__(self, behaviour: Behaviour | None = None, model: Model | None = None) -> None:
        self._behaviour = behaviour or Behaviour()
        self._model = model
        self._faults = list(self._behaviour.faults)
        self.bodies: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.requests = 0
        self.most_at_once = 0
        self._open = 0
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> OpenAIServer:
        self._thread.start()
        assert self._ready.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._ask)
        app.router.add_post("/v1/completions", self._ask)
        # Hanging questions are cut off at the end.
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.01)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self._port: int = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _models(self, request: web.Request) -> web.Response:
        return self._refusal(request) or web.json_response({"data": [{"id": TEACHER}]})

    def _refusal(self, request: web.Request) -> web.Response | None:
        sent = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self._behaviour.key and sent != self._behaviour.key:
            # OpenAI's server repeats the key too.
            return web.json_response({"error": {"message": f"Incorrect API key provided: {sent}"}}, status=401)
        return None

    async def _ask(self, request: web.Request) -> web.StreamResponse:
        behaviour = self._behaviour
        body = await request.json()
        self.requests += 1
        if len(self.bodies) < _KEPT_BODIES:
            self.times.append(self._loop.time())
            self.bodies.append(body)
        self._open += 1
        self.most_at_once = max(self.most_at_once, self._open)
        try:
            if behaviour.seconds:
                await asyncio.sleep(behaviour.seconds)
            refusal = self._refusal(request)
            if refusal is not None:
                return refusal
            fault = self._faults.pop(0) if self._faults else ""
            if behaviour.dead_after is not None and self.requests > behaviour.dead_after:
                fault = "500"
            return await self._faulty(request, fault) if fault else self._answer(body, "messages" in body)
        finally:
            self._open -= 1

    async def _faulty(self, request: web.Request, fault: str) -> web.StreamResponse:
        if fault.isdigit():
            after = self._behaviour.retry_after
            headers = {} if after is None else {"Retry-After": f"{after:g}"}
            return web.json_response({"error": {"message": "on demand"}}, status=int(fault), headers=headers)
        if fault == "hang":
            await asyncio.sleep(3600)
        if fault == "drop":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()  # nobody receives it
        if fault == "half":
            response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "1000"})
            await response.prepare(request)
            await response.write(b'{"choices": [{"mess')
            assert request.transport is not None
            request.transport.abort()
            return response
        if fault == "garbage":
            return web.Response(text="<html>gateway</html>", content_type="text/html")
        assert fault == "nothing"
        return web.json_response({"choices": []})

    def _answer(self, body: dict[str, Any], chat: bool) -> web.Response:
        behaviour = self._behaviour
        if body["model"] != TEACHER:
            return web.json_response({"error": {"message": f"The model `{body['model']}` does not exist."}}, status=404)
        prompt = body["messages"][-1]["content"] if chat else body["prompt"]
        if any(piece in prompt for piece in behaviour.refused):
            message = "'max_tokens' is too large: the maximum context length is exceeded"
            return web.json_response({"error": {"message": message}}, status=400)
        if behaviour.error:
            return web.json_response({"error": {"message": behaviour.error, "code": 402}})
        for name in behaviour.unsupported:
            if name in body:
                return web.json_response({"error": {"message": f"Unsupported parameter: '{name}'"}}, status=400)
        asked = body.get("logprobs", False)
        if asked and behaviour.logprobs_status:
            message = "you may not ask for logprobs"
            return web.json_response({"error": {"message": message}}, status=behaviour.logprobs_status)
        top = body.get("top_logprobs", 0) if chat or isinstance(asked, bool) else asked
        if behaviour.shape == "mlx" and not isinstance(asked, bool):
            return web.json_response({"error": "logprobs must be of type bool"}, status=400)
        if top > behaviour.most_logprobs:
            return web.json_response({"error": f"top_logprobs must be at most {behaviour.most_logprobs}"}, status=400)
        if self._model:
            found = self._model(body, chat)
            return web.json_response(
                {"error": {"message": found}} if isinstance(found, str) else found,
                status=400 if isinstance(found, str) else 200,
            )
        text = picked(prompt, behaviour.texts)
        choice: dict[str, Any] = {"index": 0, "finish_reason": behaviour.finish}
        choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": f" {text}"}
        if asked and behaviour.shape != "none":
            choice["logprobs"] = self._logprobs(text, chat)
        usage = {"prompt_tokens": len(prompt) // 3, "completion_tokens": 1, "total_tokens": 0}
        return web.json_response({"choices": [choice], "usage": usage})

    def _logprobs(self, text: str, chat: bool) -> dict[str, Any]:
        """Return one position: the answer's word, and the others of `words`, which share the rest but a tenth."""
        behaviour = self._behaviour
        others = [word for word in behaviour.words if word != text]
        share = (0.9 - behaviour.probability) / max(1, len(others))
        shown = [(text, math.log(behaviour.probability)), *((word, math.log(share)) for word in others)]
        if behaviour.shape == "mlx":
            tokens = [
                {"id": number, "token": f"▁{word}", "logprob": value} for number, (word, value) in enumerate(shown)
            ]
            return {"content": [{**tokens[-1], "top_logprobs": tokens}]}
        if behaviour.shape == "vllm" and not chat:
            return {
                "tokens": [f" {text}"],
                "token_logprobs": [shown[0][1]],
                "top_logprobs": [{f" {word}": value for word, value in shown}],
                "text_offset": [0],
            }
        tokens = [{"token": word, "logprob": value, "bytes": list(word.encode())} for word, value in shown]
        return {"content": [{**tokens[0], "top_logprobs": tokens}]}


def picked(prompt: str, texts: Sequence[str]) -> str:
    """Return the answer that the stand-in gives to a prompt."""
    digest = hashlib.sha256(prompt.encode()).hexdigest()
    return texts[int(digest, 16) % len(texts)].replace("{hash}", digest[:12])
