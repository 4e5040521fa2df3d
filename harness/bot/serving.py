"""One thread that runs the model, and a bounded queue before it.

Questions that wait together are answered together, in as few batches as the planner makes of them; so are
conversations. While the language model writes, questions are answered between two of its tokens: they take a fraction
of a second, and nobody waits for another's essay.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from adapters.base import OutOfMemory, Sampling
from harness.bot.conversation import ChatJob, QuestionJob
from harness.bot.store import Turn
from harness.evaluation.predict import Answer, Predictor, timed_answer
from harness.tasks.rendering import chat_text, uses_chat_template

log = logging.getLogger(__name__)

QUESTION_BATCH = 64
CHAT_BATCH = 8
HISTORY_TOKENS = 1024  # of a dialogue: what is read again for every answer
TEMPERATURE, TOP_P = 0.6, 0.9
# For models without a chat template: examples make a plain language model answer, and in Russian.
_PLAIN_TURN = "Вопрос: {question}\nОтвет:"
_PLAIN_START = (
    "Ниже — беседа с вежливым собеседником, который отвечает по-русски, коротко и по делу.\n\n"
    "Вопрос: Сколько дней в неделе?\nОтвет: В неделе семь дней.\n\n"
    "Вопрос: Посоветуй, чем заняться в выходные.\n"
    "Ответ: Можно погулять в парке, сходить в музей или испечь пирог.\n\n"
)
_PLAIN_STOP = ("\n",)  # as the examples, an answer is one line

Answers = list[tuple[str, Answer, float]]


class QueueFull(Exception):
    """More work waits than the queue holds."""


class Stopped(Exception):
    """The worker stops before it came to this work."""


@dataclass(eq=False)
class Ticket:
    """Work that was handed in.

    Attributes:
        job: what is asked.
        future: its result: `Answers` for a question, a text for a conversation.
        text: what the language model has written so far.
        cancelled: nobody waits for it any more.
    """

    job: QuestionJob | ChatJob
    future: asyncio.Future[Any]
    submitted: float = field(default_factory=time.monotonic)
    text: str = ""
    cancelled: bool = False


class ModelWorker:
    """Runs a model in a thread of its own.

    Args:
        predictor: the loaded model.
        load_quantised: loads the 4-bit model when it is first asked for.
        capacity: how much may wait.
        new_tokens: of an answer in a conversation.
    """

    def __init__(
        self,
        predictor: Predictor,
        load_quantised: Callable[[], Predictor],
        capacity: int = 256,
        new_tokens: int = 96,
    ) -> None:
        self.predictor = predictor
        self._load_quantised = load_quantised
        self._quantised: Predictor | None = None
        self._capacity = capacity
        self._new_tokens = new_tokens
        self._waiting: deque[Ticket] = deque()
        self._changed = threading.Condition()
        self._stops = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def submit(self, job: QuestionJob | ChatJob) -> Ticket:
        """Hands work in, from the event loop.

        Raises:
            QueueFull: too much waits.
            Stopped: the worker stops.
        """
        ticket = Ticket(job, asyncio.get_running_loop().create_future())
        with self._changed:
            if self._stops:
                raise Stopped
            if len(self._waiting) >= self._capacity:
                raise QueueFull
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket

    def place(self, ticket: Ticket) -> int:
        """How many are answered before the ticket, itself counted; 0 once it is being worked at."""
        with self._changed:
            return self._waiting.index(ticket) + 1 if ticket in self._waiting else 0

    def cancel(self, ticket: Ticket) -> None:
        """Takes work back. What the model is at just now ends unheard."""
        with self._changed:
            ticket.cancelled = True
            if ticket in self._waiting:
                self._waiting.remove(ticket)
        ticket.future.cancel()

    def stop(self) -> None:
        """Lets the current work end and gives `Stopped` to all that waits."""
        with self._changed:
            self._stops = True
            waiting = list(self._waiting)
            self._waiting.clear()
            self._changed.notify()
        for ticket in waiting:
            _resolve(ticket, error=Stopped())

    def join(self) -> None:
        """Waits for the current work to end, after `stop`: an interpreter must not end under a running model."""
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stops)
                if not self._waiting:
                    return
                kind = type(self._waiting[0].job)
                batch = self._take(kind)
            if kind is QuestionJob:
                self._answer(batch)
            else:
                self._converse(batch)

    def _take(self, kind: type) -> list[Ticket]:
        """The first tickets of a kind; with the lock held."""
        most = QUESTION_BATCH if kind is QuestionJob else CHAT_BATCH
        batch = [ticket for ticket in self._waiting if type(ticket.job) is kind][:most]
        for ticket in batch:
            self._waiting.remove(ticket)
        return batch

    # Questions.

    def _answer(self, batch: Sequence[Ticket]) -> None:
        together = [ticket for ticket in batch if not ticket.job.compare]  # type: ignore[union-attr]
        try:
            if together:
                asked = [(ticket.job.task, ticket.job.fields) for ticket in together]  # type: ignore[union-attr]
                answers = self.predictor.answer(asked)
                ended = time.monotonic()
                for ticket, answer in zip(together, answers, strict=True):
                    _resolve(ticket, [(label(self.predictor), answer, ended - ticket.submitted)])
            for ticket in batch:
                if ticket not in together and not ticket.cancelled:
                    _resolve(ticket, self._compare(ticket.job))  # type: ignore[arg-type]
        except Exception as error:
            # Whatever a model's library raises must not end the thread that all users wait for.
            if len(batch) > 1:  # one question's trouble is not that of the others
                for ticket in batch:
                    self._answer([ticket])
                return
            log.error("a question failed: %s", type(error).__name__)  # its message may quote the user
            _resolve(batch[0], error=error)

    def _compare(self, job: QuestionJob) -> Answers:
        """Both models alone, one after the other, so that their seconds compare."""
        if self._quantised is None:
            self._quantised = self._load_quantised()
            timed_answer(self._quantised, job.task, job.fields)  # the first question of all takes longer
        return [(label(one), *timed_answer(one, job.task, job.fields)) for one in (self.predictor, self._quantised)]

    # Conversations.

    def _converse(self, batch: Sequence[Ticket]) -> None:
        prompts = [self._prompt(ticket.job) for ticket in batch]  # type: ignore[arg-type]
        sampling = Sampling(
            self._new_tokens,
            () if self._chats else _PLAIN_STOP,
            temperature=TEMPERATURE,
            top_p=TOP_P,
            seed=time.monotonic_ns() % (1 << 31),
        )

        def on_text(number: int, text: str) -> None:
            batch[number].text = text.strip()
            if all(ticket.cancelled for ticket in batch):
                raise _NobodyListens
            with self._changed:
                questions = self._take(QuestionJob)
            if questions:
                self._answer(questions)

        try:
            for ticket, text in zip(batch, self.predictor.backend.generate(prompts, sampling, on_text), strict=True):
                _resolve(ticket, text.strip())
        except _NobodyListens:
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

    @property
    def _chats(self) -> bool:
        return uses_chat_template(self.predictor.backend.tokenizer, "auto")

    def _prompt(self, job: ChatJob) -> list[int]:
        """Tokens of the dialogue with as many of its last turns as the model's context and patience hold."""
        tokenizer = self.predictor.backend.tokenizer
        room = min(self.predictor.backend.info.context_length - self._new_tokens, HISTORY_TOKENS)

        def fits(start: int) -> bool:
            return len(self._encode(job.history[start:], job.question)) <= room

        first = bisect_left(range(len(job.history) + 1), True, key=fits)
        tokens = self._encode(job.history[first:], job.question)
        if len(tokens) <= room:
            return tokens
        head = [tokenizer.bos_token_id] if tokens[0] == tokenizer.bos_token_id else []
        return head + tokens[len(tokens) - room + len(head) :]  # the question alone is longer: its end counts

    def _encode(self, history: Sequence[Turn], question: str) -> list[int]:
        tokenizer = self.predictor.backend.tokenizer
        if self._chats:
            messages = []
            for turn in history:
                messages += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.answer}]
            text = chat_text(tokenizer, [*messages, {"role": "user", "content": question}], True)
            return list(tokenizer(text, add_special_tokens=False).input_ids)
        turns = [_PLAIN_TURN.format(question=turn.question) + f" {turn.answer}\n\n" for turn in history]
        text = _PLAIN_START + "".join(turns) + _PLAIN_TURN.format(question=question)
        return list(tokenizer(text).input_ids)


class _NobodyListens(Exception):
    """All whom an answer was written for have gone."""


def label(predictor: Predictor) -> str:
    """The model and its backend, as users see them."""
    return f"{predictor.model.name} ({predictor.backend.info.name})"


def _resolve(ticket: Ticket, result: Any = None, error: Exception | None = None) -> None:
    """Gives a result from the model's thread to the event loop; nothing where nobody waits any more."""

    def give() -> None:
        if not ticket.future.done():
            if error is not None:
                ticket.future.set_exception(error)
            else:
                ticket.future.set_result(result)

    try:
        ticket.future.get_loop().call_soon_threadsafe(give)
    except RuntimeError:  # the loop is closed: the bot has gone
        log.debug("an answer came after the end")
