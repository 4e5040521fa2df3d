"""Ask the teacher single questions, and turn the replies into lines."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from typing import Any, Literal

from harness.distillation.client import LogprobRequest, Reply, Teacher
from harness.distillation.deduplicate import NEW, KnownDocuments, compared_text
from harness.distillation.lines import DocumentLine, LabelLine, TeacherSampling, Usage, document_hash
from harness.distillation.prompts import Question, Renderer
from harness.distillation.replies import Unusable, read_document, read_label
from harness.tasks import Row, get_task
from harness.tasks.prompts import ChosenTask


class Asker:
    """Asks single questions and makes their lines.

    Args:
        teacher: The connection.
        renderer: Makes the prompts.
        sampling: How the teacher is asked.
        logprobs: The log-probabilities that the server gives.
    """

    def __init__(
        self, teacher: Teacher, renderer: Renderer, sampling: TeacherSampling, logprobs: LogprobRequest
    ) -> None:
        self._teacher = teacher
        self._renderer = renderer
        self._sampling = sampling
        self._logprobs = logprobs

    async def label(self, question: Question, task: ChosenTask, explained: bool) -> LabelLine:
        """Ask for the label of a train document.

        Args:
            question: About the document.
            task: Its prompt, with the verbalizers.
            explained: Whether the prompt asks for an explanation before the answer.

        Raises:
            NoAnswer: There is no answer.
        """
        verbalizers = task.verbalizers()
        # A document's own choices have several tokens: they are parsed from the text.
        logprobs = self._logprobs if verbalizers else LogprobRequest({}, 0)
        prompt = self._renderer.prompt(question)
        replies = await self._replies(prompt, logprobs)
        spec = get_task(question.task)
        entities = question.row[spec.choices] if spec.choices else []
        label = read_label(replies, verbalizers, entities, explained)
        return LabelLine(
            **self._common(question, prompt, replies, logprobs.top),
            gold=[entities.index(answer) for answer in question.row[spec.answers]]
            if spec.answers
            else question.row["label"],
            probabilities=label.probabilities,
            how=label.how,
            rest=label.rest,
            outcome=label.outcome,
            texts=[reply.text for reply in replies],
            rationale=label.rationale,
        )

    async def document(
        self, question: Question, known: KnownDocuments, kind: Literal["paraphrases", "examples"], number: int
    ) -> DocumentLine:
        """Ask for a new document and add it to the known ones if it is kept.

        Args:
            question: Says what to write.
            known: Documents that it must not repeat.
            kind: What the new document is.
            number: Its idx.

        Raises:
            NoAnswer: There is no answer.
        """
        prompt = self._renderer.prompt(question)
        replies = await self._replies(prompt, LogprobRequest({}, 0))
        document: Row | None = None
        dropped = None
        try:
            document = read_document(replies[0].text, question, number)
        except Unusable as reason:
            dropped = "cut at max_tokens" if replies[0].cut else str(reason)
        if document is not None:
            text = compared_text(question.task, document)
            dropped = known.match(text)
            if dropped is None:
                known.add(text, NEW, near=kind == "examples")
            else:
                document = None  # its text is not kept either: it may be that of a test document
        return DocumentLine(
            **self._common(question, prompt, replies, 0), kind=kind, document=document, dropped=dropped
        )  # fmt: skip

    async def _replies(self, prompt: str, logprobs: LogprobRequest) -> list[Reply]:
        """Return as many replies as samples are wanted, each with its own seed."""
        sampling = self._sampling
        return await asyncio.gather(
            *(
                self._teacher.ask(
                    prompt,
                    temperature=sampling.temperature,
                    max_tokens=sampling.max_tokens,
                    seed=sampling.seed + number,
                    logprobs=logprobs,
                )
                for number in range(sampling.samples)
            )
        )

    def _common(self, question: Question, prompt: str, replies: list[Reply], top: int) -> Mapping[str, Any]:
        """Return the fields that all lines have."""
        return {
            "key": question.key,
            "task": question.task,
            "idx": question.row["idx"],
            "document_sha256": document_hash(question.row),
            "prompt_sha256": hashlib.sha256(prompt.encode()).hexdigest(),
            "teacher": self._teacher.name,
            "sampling": self._sampling.model_copy(update={"top_logprobs": top}),
            "usage": sum((reply.usage for reply in replies), Usage()),
            "cut": any(reply.cut for reply in replies),
        }
