"""A stand-in for an OpenAI-compatible server on loopback, in a process of its own: three servers' shapes, and faults.

Its teacher answers with the word that a function of the prompt picks, so that a test can say what must come out.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import multiprocessing
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.managers import SyncManager
from typing import Any

from aiohttp import web

TEACHER = "stand-in"


@dataclass(frozen=True)
class Behaviour:
    """How the server answers.

    Attributes:
        shape: whose log-probabilities: vllm, llama.cpp, mlx, or none.
        texts: the answers, picked by the prompt's hash; {"{hash}"} in one is replaced by it.
        probability: that the said first token has; the others of `words` share the rest but a tenth.
        words: the first tokens that have a probability.
        faults: in turn, for the first questions: a status, hang, drop, half, garbage, nothing; "" for a good answer.
        dead_after: questions, from which on all are met with status 500.
        retry_after: seconds, sent with every status.
        finish: finish_reason.
        refused: pieces of prompts that are answered with status 400.
        most_logprobs: tokens a position that may be asked for.
        key: that is asked for; "" for none.
        seconds: that an answer takes.
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
    key: str = ""
    seconds: float = 0.0


@dataclass
class OpenAIServer:
    """Serves until the with block ends.

    Attributes:
        behaviour: fixed at the start.
    """

    behaviour: Behaviour = field(default_factory=Behaviour)

    def __enter__(self) -> OpenAIServer:
        context = multiprocessing.get_context("spawn")
        self._manager: SyncManager = context.Manager()
        self._bodies = self._manager.list()
        self._numbers = self._manager.dict()
        ready = context.Queue()
        self._process = context.Process(
            target=_serve, args=(self.behaviour, ready, self._bodies, self._numbers), daemon=True
        )
        self._process.start()
        self.port = ready.get(timeout=60)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        self._manager.shutdown()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """The questions that came, probes included; only the first thousand are kept."""
        return list(self._bodies)

    @property
    def most_at_once(self) -> int:
        return self._numbers.get("most", 0)

    @property
    def requests(self) -> int:
        return self._numbers.get("requests", 0)

    @property
    def times(self) -> list[float]:
        """When each of these came, in seconds of the server's clock."""
        return list(self._numbers.get("times", []))


def picked(prompt: str, texts: Sequence[str]) -> str:
    """The answer that the stand-in gives to a prompt."""
    digest = hashlib.sha256(prompt.encode()).hexdigest()
    return texts[int(digest, 16) % len(texts)].replace("{hash}", digest[:12])


def _serve(behaviour: Behaviour, ready: Any, bodies: Any, numbers: Any) -> None:
    asyncio.run(_Serving(behaviour, bodies, numbers).run(ready))


class _Serving:
    def __init__(self, behaviour: Behaviour, bodies: Any, numbers: Any) -> None:
        self._behaviour = behaviour
        self._bodies, self._numbers = bodies, numbers
        self._kept = 0
        self._faults = list(behaviour.faults)
        self._now: Counter[str] = Counter()
        self._times: list[float] = []

    async def run(self, ready: Any) -> None:
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._ask)
        app.router.add_post("/v1/completions", self._ask)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        ready.put(site._server.sockets[0].getsockname()[1])  # type: ignore[union-attr]
        while True:
            await asyncio.sleep(0.05)
            self._numbers["most"] = self._now["most"]
            self._numbers["requests"] = self._now["requests"]
            self._numbers["times"] = self._times

    async def _models(self, request: web.Request) -> web.Response:
        return self._refusal(request) or web.json_response({"data": [{"id": TEACHER}]})

    def _refusal(self, request: web.Request) -> web.Response | None:
        sent = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self._behaviour.key and sent != self._behaviour.key:
            # As OpenAI's does, with what came repeated.
            return web.json_response({"error": {"message": f"Incorrect API key provided: {sent}"}}, status=401)
        return None

    async def _ask(self, request: web.Request) -> web.StreamResponse:
        behaviour = self._behaviour
        body = await request.json()
        self._now["requests"] += 1
        if self._kept < 1000:
            self._kept += 1
            self._times.append(asyncio.get_running_loop().time())
            self._bodies.append(body)
        self._now["open"] += 1
        self._now["most"] = max(self._now["most"], self._now["open"])
        try:
            if behaviour.seconds:
                await asyncio.sleep(behaviour.seconds)
            refusal = self._refusal(request)
            if refusal is not None:
                return refusal
            fault = self._faults.pop(0) if self._faults else ""
            if behaviour.dead_after is not None and self._now["requests"] > behaviour.dead_after:
                fault = "500"
            return await self._faulty(request, fault) if fault else self._answer(body, "messages" in body)
        finally:
            self._now["open"] -= 1

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
            return web.Response()  # which nobody gets
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
            return web.json_response({"error": {"message": "maximum context length exceeded"}}, status=400)
        asked = body.get("logprobs", False)
        top = body.get("top_logprobs", 0) if chat or isinstance(asked, bool) else asked
        if behaviour.shape == "mlx" and not isinstance(asked, bool):
            return web.json_response({"error": "logprobs must be of type bool"}, status=400)
        if top > behaviour.most_logprobs:
            return web.json_response({"error": f"top_logprobs must be at most {behaviour.most_logprobs}"}, status=400)
        text = picked(prompt, behaviour.texts)
        choice: dict[str, Any] = {"index": 0, "finish_reason": behaviour.finish}
        choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": f" {text}"}
        if asked and behaviour.shape != "none":
            choice["logprobs"] = self._logprobs(text, chat)
        usage = {"prompt_tokens": len(prompt) // 3, "completion_tokens": 1, "total_tokens": 0}
        return web.json_response({"choices": [choice], "usage": usage})

    def _logprobs(self, text: str, chat: bool) -> dict[str, Any]:
        """One position: the said word, and the others of `words` with what is left but a tenth."""
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
