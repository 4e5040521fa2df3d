"""The model's thread and the bounded queue in front of it.

Questions that wait together are answered together, in as few batches as the planner makes of them; so are
conversations. While the language model writes, questions are answered between two of its tokens: they take a fraction
of a second, and nobody waits for another user's long text.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from adapters.base import OutOfMemory, Sampling
from harness.bot.events import TURNS_TOGETHER, ChatJob, QuestionJob
from harness.bot.store import Turn
from harness.evaluation.predict import Answer, Predictor, timed_answer

log = logging.getLogger(__name__)

QUESTION_BATCH = 64
CHAT_BATCH = 8
HISTORY_TOKENS = 1024  # of a dialogue before an answer; those that it shares with the turn before are remembered
TEMPERATURE, TOP_P = 0.6, 0.9
# Models without a chat template: examples make a plain language model answer, and in Russian.
_PLAIN_TURN = "Вопрос: {question}\nОтвет:"
_PLAIN_START = (
    "Ниже — беседа с вежливым собеседником, который отвечает по-русски, коротко и по делу.\n\n"
    "Вопрос: Сколько дней в неделе?\nОтвет: В неделе семь дней.\n\n"
    "Вопрос: Посоветуй, чем заняться в выходные.\n"
    "Ответ: Можно погулять в парке, сходить в музей или испечь пирог.\n\n"
)
_PLAIN_STOP = ("\n",)  # an answer is one line, as in the examples

Answers = list[tuple[str, Answer, float]]


class QueueFull(Exception):
    """The queue holds as much work as it can."""


class Stopped(Exception):
    """The worker stops and will not do this work."""


@dataclass(eq=False)
class Ticket:
    """Work that waits for the model or runs on it.

    Attributes:
        future: The result.
        submitted: When it was handed in, by the monotonic clock.
        text: What the language model has written so far.
        cancelled: Nobody waits for the result any more.
    """

    future: asyncio.Future[Any]
    submitted: float = field(default_factory=time.monotonic, kw_only=True)
    text: str = field(default="", kw_only=True)
    cancelled: bool = field(default=False, kw_only=True)


@dataclass(eq=False)
class QuestionTicket(Ticket):
    """A question of a task; its result is `Answers`."""

    job: QuestionJob


@dataclass(eq=False)
class ChatTicket(Ticket):
    """A question to the language model; its result is a text."""

    job: ChatJob


_Kind = TypeVar("_Kind", QuestionTicket, ChatTicket)


class ModelWorker:
    """A model in a thread of its own, which loads it too.

    GNU OpenMP lets its threads sleep at once when two threads of a program have computed with all cores. Each small
    operation then waits for them to wake, and an answer takes twice as long.

    Args:
        load: Loads the model.
        load_other: Loads the second model of comparisons when one is first asked for.
        capacity: The most tickets that may wait.
        new_tokens: The most tokens of an answer in a conversation.

    Attributes:
        predictor: The model.

    Raises:
        Exception: What `load` raises.
    """

    predictor: Predictor

    def __init__(
        self,
        load: Callable[[], Predictor],
        load_other: Callable[[], Predictor],
        capacity: int = 256,
        new_tokens: int = 96,
    ) -> None:
        self._load_other = load_other
        self._other: Predictor | None = None
        self._capacity = capacity
        self._new_tokens = new_tokens
        self._waiting: deque[QuestionTicket | ChatTicket] = deque()
        self._changed = threading.Condition()
        self._stops = False
        loaded: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._run, args=(load, loaded), name="model", daemon=True)
        self._thread.start()
        try:
            loaded.result()
        except KeyboardInterrupt:
            self.stop()
            self.join()  # a process that ends while PyTorch computes is aborted
            raise

    def forget(self) -> None:
        """Let the model forget the dialogues that it remembers."""
        self._backend.forget()

    def submit(self, job: QuestionJob | ChatJob) -> QuestionTicket | ChatTicket:
        """Hand in work; call it in the event loop.

        Raises:
            QueueFull: Too much work waits.
            Stopped: The worker stops.
        """
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        ticket = QuestionTicket(future, job) if isinstance(job, QuestionJob) else ChatTicket(future, job)
        with self._changed:
            if self._stops:
                raise Stopped
            if len(self._waiting) >= self._capacity:
                raise QueueFull
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket

    def place(self, ticket: Ticket) -> int:
        """Return the ticket's place in the queue, from 1; 0 once the model works on it."""
        with self._changed:
            return next((place for place, waiting in enumerate(self._waiting, 1) if waiting is ticket), 0)

    def cancel(self, ticket: Ticket) -> None:
        """Withdraw work. The result of what the model already computes is dropped."""
        with self._changed:
            ticket.cancelled = True
            self._waiting = deque(waiting for waiting in self._waiting if waiting is not ticket)
        ticket.future.cancel()

    def stop(self) -> None:
        """Let the current work end, and give `Stopped` to all that waits."""
        with self._changed:
            self._stops = True
            waiting = list(self._waiting)
            self._waiting.clear()
            self._changed.notify()
        for ticket in waiting:
            _resolve(ticket, error=Stopped())

    def join(self) -> None:
        """Wait for the current work to end, after `stop`: the interpreter must not exit while the model runs."""
        self._thread.join()

    def _run(self, load: Callable[[], Predictor], loaded: concurrent.futures.Future[None]) -> None:
        try:
            self.predictor = load()
            self._backend = self.predictor.opened.backend
            self._template = self.predictor.opened.template
            if not self._stops:
                self._warm_up()
        except BaseException as error:
            loaded.set_exception(error)
            return
        loaded.set_result(None)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stops)
                if not self._waiting:
                    return
                asks = isinstance(self._waiting[0], QuestionTicket)
                questions = self._take(QuestionTicket, QUESTION_BATCH) if asks else []
                chats = [] if asks else self._take(ChatTicket, CHAT_BATCH)
            if questions:
                self._answer(questions)
            else:
                self._converse(chats)

    def _warm_up(self) -> None:
        """Write a first text, which takes a model longer than the others."""
        try:
            self._backend.generate([self._encode((), "")], Sampling(1), remember=True)
        except Exception as error:  # as for a conversation: questions may be answered all the same
            log.error("the model wrote no first text: %s", error)

    def _take(self, kind: type[_Kind], most: int) -> list[_Kind]:
        """Take the first tickets of a kind from the queue; call it with the lock held."""
        batch = [ticket for ticket in self._waiting if isinstance(ticket, kind)][:most]
        for ticket in batch:
            self._waiting.remove(ticket)
        return batch

    # Questions.

    def _answer(self, batch: Sequence[QuestionTicket]) -> None:
        together = [ticket for ticket in batch if not ticket.job.compare]
        try:
            if together:
                answers = self.predictor.answer([(ticket.job.task, ticket.job.fields) for ticket in together])
                ended = time.monotonic()
                for ticket, answer in zip(together, answers, strict=True):
                    _resolve(ticket, [(label(self.predictor), answer, ended - ticket.submitted)])
            for ticket in batch:
                if ticket.job.compare and not ticket.cancelled:
                    _resolve(ticket, self._compare(ticket.job))
        except Exception as error:
            # Whatever a model's library raises must not end the thread that all users wait for.
            if len(batch) > 1:  # one bad question must not spoil the others
                for ticket in batch:
                    self._answer([ticket])
                return
            log.error("a question failed: %s", type(error).__name__)  # the error's message may quote the user
            _resolve(batch[0], error=error)

    def _compare(self, job: QuestionJob) -> Answers:
        """Ask one model after the other, each alone, so that their seconds compare."""
        if self._other is None:
            self._other = self._load_other()
            timed_answer(self._other, job.task, job.fields)  # a model's first answer takes longer
        return [(label(one), *timed_answer(one, job.task, job.fields)) for one in (self.predictor, self._other)]

    # Conversations.

    def _converse(self, batch: Sequence[ChatTicket]) -> None:
        prompts = [self._prompt(ticket.job) for ticket in batch]
        sampling = Sampling(
            self._new_tokens,
            () if self._template.applied else _PLAIN_STOP,
            temperature=TEMPERATURE,
            top_p=TOP_P,
            seed=time.monotonic_ns() % (1 << 31),
        )

        def on_text(number: int, text: str) -> None:
            batch[number].text = text.strip()
            if all(ticket.cancelled for ticket in batch):
                raise _NobodyWaits
            with self._changed:
                questions = self._take(QuestionTicket, QUESTION_BATCH)
            if questions:
                self._answer(questions)

        try:
            for ticket, text in zip(
                batch, self._backend.generate(prompts, sampling, on_text, remember=True), strict=True
            ):
                _resolve(ticket, text.strip())
        except _NobodyWaits:
            return
        except OutOfMemory as error:
            half = len(batch) // 2
            if not half:
                _resolve(batch[0], error=error)
                return
            self._converse(batch[:half])
            self._converse(batch[half:])
        except Exception as error:
            log.error("%d conversations failed: %s", len(batch), type(error).__name__)
            for ticket in batch:
                _resolve(ticket, error=error)

    def _prompt(self, job: ChatJob) -> list[int]:
        """Return the tokens of the dialogue, with as many of its last turns as fit."""
        tokenizer = self._template.tokenizer
        room = min(self._backend.info.context_length - self._new_tokens, HISTORY_TOKENS)

        def fits(start: int) -> bool:
            return len(self._encode(job.history[start:], job.question)) <= room

        first = steady_start(bisect_left(range(len(job.history) + 1), True, key=fits), len(job.history))
        tokens = self._encode(job.history[first:], job.question)
        if len(tokens) <= room:
            return tokens
        head = [tokenizer.bos_token_id] if tokens[0] == tokenizer.bos_token_id else []
        return head + tokens[len(tokens) - room + len(head) :]  # the question alone is too long: keep its end

    def _encode(self, history: Sequence[Turn], question: str) -> list[int]:
        tokenizer = self._template.tokenizer
        if self._template.applied:
            messages = []
            for turn in history:
                messages += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.answer}]
            text = self._template.text([*messages, {"role": "user", "content": question}])
            return list(tokenizer(text, add_special_tokens=False).input_ids)
        turns = [_PLAIN_TURN.format(question=turn.question) + f" {turn.answer}\n\n" for turn in history]
        text = _PLAIN_START + "".join(turns) + _PLAIN_TURN.format(question=question)
        return list(tokenizer(text).input_ids)


class _NobodyWaits(Exception):
    """All users whom the model writes for have cancelled."""


def steady_start(first: int, turns: int) -> int:
    """Return the first turn of a dialogue to read again, where all from `first` on fit.

    Several turns are left out together, as long as half of those that fit stay: then the prompts of the next turns
    begin with the same turn, and the model remembers what it has computed of it.
    """
    for step in (TURNS_TOGETHER, TURNS_TOGETHER // 2, TURNS_TOGETHER // 4):
        start = -(-first // step) * step
        if 2 * (turns - start) >= turns - first:
            return start
    return first


def label(predictor: Predictor) -> str:
    """Return the name of the model and its backend, as users see it."""
    return f"{predictor.opened.name} ({predictor.opened.backend.info.name})"


def _resolve(ticket: Ticket, result: Any = None, error: Exception | None = None) -> None:
    """Hand a result from the model's thread to the event loop; do nothing where nobody waits any more."""

    def give() -> None:
        if not ticket.future.done():
            if error is not None:
                ticket.future.set_exception(error)
            else:
                ticket.future.set_result(result)

    try:
        ticket.future.get_loop().call_soon_threadsafe(give)
    except RuntimeError:  # the loop is closed: the bot has stopped
        log.debug("an answer came after the end")
