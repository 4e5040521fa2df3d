"""The model that lm-eval sees where an OpenAI-compatible server answers."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.models.utils import normalize_gen_kwargs

from adapters.text import cut_at_stop
from harness.endpoint.answers import without_thoughts
from harness.endpoint.asking import ask_all
from harness.endpoint.connection import CHAT, COMPLETIONS, Connection
from harness.endpoint.prompt_scores import PromptScore, score_prompt
from harness.errors import UserError
from harness.evaluation.account import Account
from harness.evaluation.answering import AnsweringModel, repeats
from harness.evaluation.endpoint import Endpoint
from harness.progress import Bar
from harness.records.run import ENDPOINT, EndpointRecord, ModelRecord
from harness.scoring.encoding import move_trailing_space
from harness.scoring.store import ProgressStore

_MOST_STOPS = 4  # that OpenAI's API takes; all of them cut the text here

log = logging.getLogger(__name__)

Job = TypeVar("Job", bound=Hashable)
Found = TypeVar("Found")


class Conversation(str):
    """A conversation as JSON: what a prompt is where the server applies its own chat template."""


@dataclass(frozen=True)
class ScoredText:
    """A continuation whose log-probability is asked for, after a context without trailing white space."""

    context: str
    continuation: str


@dataclass(frozen=True)
class WrittenText:
    """An answer to be written.

    Attributes:
        prompt: A text, or a conversation as JSON.
        chat: Whether it is a conversation.
        stop: Strings that end the answer.
    """

    prompt: str
    chat: bool
    max_tokens: int
    stop: tuple[str, ...]
    temperature: float
    top_p: float
    seed: int


class EndpointModel(AnsweringModel):
    """lm-eval's interface to a model behind a server. Every answer is stored when it comes.

    Args:
        endpoint: The server, and how it is asked.
        store: Keeps the answers.
        seed: For sampled texts.
    """

    def __init__(self, endpoint: Endpoint, store: ProgressStore, seed: int = 0) -> None:
        super().__init__()
        self._endpoint = endpoint
        self._store = store
        self._seed = seed
        self._apis: set[str] = set()
        self._cut_short = 0  # empty answers of this call that ended at max_tokens

    @property
    def applies_chat_template(self) -> bool:
        return self._endpoint.chat

    @property
    def tokenizer_name(self) -> str:
        return self._endpoint.model.replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a conversation for the server, which applies its own template.

        The beginning of the answer ("Ответ:") is left out, also of the examples' answers: not every server continues
        one, and our prompts say what is wanted.
        """
        beginning = ""
        if not add_generation_prompt:
            *chat_history, last = chat_history
            beginning = last["content"]
        turns = [{**turn, "content": turn["content"].removeprefix(beginning).strip()} for turn in chat_history]
        return Conversation(json.dumps(turns, ensure_ascii=False))

    def account(self, scoring_seconds: float) -> Account:
        address = self._endpoint.address
        model = ModelRecord(
            name=self._endpoint.model, origin=address, sha256=None, parameters=None, weights=None, weights_bytes=None
        )
        fields = {
            "model": model,
            "backend": ENDPOINT,
            "execution": ENDPOINT,
            "device": None,
            "dtype": None,
            "memory": None,
            "tokens": None,
            "endpoint": EndpointRecord(address=address, apis=tuple(sorted(self._apis))),
        }
        return Account(scoring_seconds, 1, fields)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        jobs = [ScoredText(*move_trailing_space(*request.args)) for request in requests]
        return [(score.logprob, score.greedy) for score in self._scores(jobs, requests, "scoring choices")]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        jobs = [ScoredText("", request.args[0]) for request in requests]
        return [score.logprob for score in self._scores(jobs, requests, "scoring texts")]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        self._cut_short = 0
        jobs = [
            self._written_text(request, repeat) for request, repeat in zip(requests, repeats(requests), strict=True)
        ]
        self._apis |= {"chat" if job.chat else "completions" for job in jobs}
        texts = self._answers(
            jobs, requests, "generating answers", self._write, self._store.texts, self._store.put_texts
        )
        if self._cut_short:
            log.warning(
                "%d answers are empty and used up their tokens: if the model thinks before it answers, let the server "
                "turn that off", self._cut_short,
            )  # fmt: skip
        return texts

    def _written_text(self, request: Instance, repeat: int) -> WrittenText:
        context, asked = request.args
        options = normalize_gen_kwargs(asked)
        return WrittenText(
            prompt=context,
            chat=isinstance(context, Conversation),
            max_tokens=int(options["max_gen_toks"]),
            stop=tuple(stop for stop in options["until"] if stop),
            temperature=float(options.get("temperature", 0.0)),
            top_p=float(options.get("top_p", 1.0)),
            seed=self._seed + repeat,
        )

    async def _write(self, connection: Connection, job: WrittenText) -> str:
        body: dict[str, Any] = {
            "model": self._endpoint.model,
            "max_tokens": job.max_tokens,
            "temperature": job.temperature,
            "seed": job.seed,
        }
        if job.stop:
            body["stop"] = list(job.stop[:_MOST_STOPS])
        if job.top_p != 1.0:
            body["top_p"] = job.top_p
        if job.chat:
            path, body["messages"] = CHAT, json.loads(job.prompt)
            body["chat_template_kwargs"] = {"enable_thinking": False}  # as for models on this machine
        else:
            path, body["prompt"] = COMPLETIONS, job.prompt
        answer = await connection.ask(path, body)
        text = without_thoughts(answer.text) if job.chat else answer.text
        self._cut_short += answer.is_cut and not text
        return cut_at_stop(text, job.stop)[0]

    def _scores(self, jobs: Sequence[ScoredText], requests: Sequence[Instance], what: str) -> list[PromptScore]:
        self._apis.add("completions")

        async def ask(connection: Connection, job: ScoredText) -> PromptScore:
            return await score_prompt(connection, self._endpoint.model, job.context, job.continuation)

        def kept(plan: str) -> dict[int, PromptScore]:
            units = self._store.scored_units(plan).items()
            return {number: PromptScore(float(value[0]), bool(greedy[0])) for number, (value, greedy) in units}

        def keep(plan: str, found: Mapping[int, PromptScore]) -> None:
            scored = {number: (np.array([score.logprob]), np.array([score.greedy])) for number, score in found.items()}
            self._store.put_units(plan, scored)

        return self._answers(jobs, requests, what, ask, kept, keep)

    def _answers(
        self,
        jobs: Sequence[Job],
        requests: Sequence[Instance],
        what: str,
        ask: Callable[[Connection, Job], Awaitable[Found]],
        kept: Callable[[str], dict[int, Found]],
        keep: Callable[[str, dict[int, Found]], None],
    ) -> list[Found]:
        """Return the answer to every job, in order. Equal jobs are asked once, and stored ones not again.

        Args:
            jobs: In the order of the requests.
            requests: What lm-eval wants to know, for messages.
            what: The work in words.
            ask: Asks one job.
            kept: Returns the stored answers of a plan, by the number of the job.
            keep: Stores answers.

        Raises:
            UserError: Some got no answer; the others are stored.
        """
        numbers: dict[Job, int] = {}
        names: list[str] = []
        for job, request in zip(jobs, requests, strict=True):
            if numbers.setdefault(job, len(numbers)) == len(names):
                names.append(f"{request.task_name}, document {request.doc_id}")
        plan = hashlib.sha256("\n".join(map(repr, numbers)).encode()).hexdigest()
        found = kept(plan)
        left = [job for job, number in numbers.items() if number not in found]

        async def run() -> list[str]:
            async with self._endpoint.connection() as connection:
                with Bar(what, len(numbers), "answer", done=len(found)) as bar:
                    started = time.monotonic()

                    def store(job: Job, answer: Found) -> None:
                        found[numbers[job]] = answer
                        keep(plan, {numbers[job]: answer})
                        bar.advance()

                    try:
                        return await ask_all(
                            left,
                            lambda job: ask(connection, job),
                            store,
                            lambda job: names[numbers[job]],
                            self._endpoint.concurrency,
                        )
                    finally:
                        self._store.add_seconds(time.monotonic() - started)

        failures = asyncio.run(run()) if left else []
        if failures:
            raise UserError(
                f"{len(failures)} of {len(numbers)} questions got no answer, first {failures[0]}",
                "the other answers are kept: ask these again with --resume; where a prompt is too long, let the server "
                "take more tokens, show fewer examples or leave the task out",
            )
        return [found[numbers[job]] for job in jobs]
