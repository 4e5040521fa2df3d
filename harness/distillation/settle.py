"""One item: what is asked of the teacher about it, and the line that its replies make."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from typing import Any

from harness.distillation.answers import read_label
from harness.distillation.client import LogprobRequest, Reply, Teacher
from harness.distillation.deduplicate import NEW, KnownDocuments, compared_text
from harness.distillation.generate import Unusable, read_document
from harness.distillation.lines import DocumentLine, LabelLine, Sampling, Usage, document_hash
from harness.distillation.prompts import Item, Renderer
from harness.tasks.prompts import ChosenTask


class Settler:
    """Asks about items, one at a time or many at once.

    Args:
        teacher: that is asked.
        renderer: of the prompts.
        sampling: how it is asked.
        logprobs: what the server tells of probabilities.
    """

    def __init__(self, teacher: Teacher, renderer: Renderer, sampling: Sampling, logprobs: LogprobRequest) -> None:
        self._teacher = teacher
        self._renderer = renderer
        self._sampling = sampling
        self._logprobs = logprobs

    async def label(self, item: Item, task: ChosenTask, explained: bool) -> LabelLine:
        """The label of a train document.

        Args:
            item: the document.
            task: its prompt's, with the answer words.
            explained: whether the prompt asks for an explanation before the answer.

        Raises:
            TeacherFailure: no answer.
        """
        words = task.words()
        # Names of several tokens are read, not weighed.
        logprobs = self._logprobs if words else LogprobRequest({}, 0)
        prompt = self._renderer.prompt(item)
        replies = await self._ask(prompt, logprobs)
        entities = item.row.get("entities", [])
        label = read_label(replies, words, entities, explained)
        return LabelLine(
            **self._common(item, prompt, replies, logprobs.top),
            gold=item.row["label"] if words else [entities.index(answer) for answer in item.row["answers"]],
            probabilities=label.probabilities,
            how=label.how,
            rest=label.rest,
            outcome=label.outcome,
            texts=[reply.text for reply in replies],
            rationale=label.rationale,
        )

    async def document(self, item: Item, known: KnownDocuments, kind: Any, number: int) -> DocumentLine:
        """A document that the teacher writes; it joins the known ones if it is kept.

        Args:
            item: what to write.
            known: documents that it must not repeat.
            kind: paraphrases or examples.
            number: its idx.

        Raises:
            TeacherFailure: no answer.
        """
        prompt = self._renderer.prompt(item)
        replies = await self._ask(prompt, LogprobRequest({}, 0))
        document: dict[str, Any] | None = None
        dropped = None
        try:
            document = read_document(replies[0].text, item, number)
        except Unusable as reason:
            dropped = "cut at max_tokens" if replies[0].cut else str(reason)
        if document is not None:
            text = compared_text(item.task, document)
            dropped = known.match(text)
            if dropped is None:
                known.add(text, NEW, near=kind == "examples")
            else:
                document = None  # nor is its text kept: it may be a test document's
        return DocumentLine(
            **self._common(item, prompt, replies, 0), kind=kind, document=document, dropped=dropped
        )  # fmt: skip

    async def _ask(self, prompt: str, logprobs: LogprobRequest) -> list[Reply]:
        """As many replies as samples are wanted, each with a seed of its own."""
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

    def _common(self, item: Item, prompt: str, replies: list[Reply], top: int) -> Mapping[str, Any]:
        """The fields that all lines have."""
        return {
            "key": item.key,
            "task": item.task,
            "idx": item.row["idx"],
            "document_sha256": document_hash(item.row),
            "prompt_sha256": hashlib.sha256(prompt.encode()).hexdigest(),
            "teacher": self._teacher.name,
            "sampling": self._sampling.model_copy(update={"top_logprobs": top}),
            "usage": sum((reply.usage for reply in replies), Usage()),
            "cut": any(reply.cut for reply in replies),
        }
