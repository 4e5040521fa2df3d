"""Single questions to a model: documents made of a user's own fields, answered like those of a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from pydantic import ValidationError

from harness.data import DOCUMENTS, LABELS
from harness.errors import UserError, nearest_hint
from harness.evaluation.checkpoints import open_checkpoint
from harness.evaluation.language_model import PlannedModel
from harness.evaluation.options import RunOptions, check_options
from harness.models.heads import log_softmax
from harness.models.loading import load_model
from harness.models.resolve import LocalModel, default_model, resolve_model
from harness.tasks.prompts import choose
from harness.tasks.rendering import load_tasks, render_document, uses_chat_template

# What a question of each task consists of, in the order in which one would ask for it.
FIELDS: Mapping[str, tuple[str, ...]] = {
    "lidirus": ("sentence1", "sentence2"),
    "rcb": ("premise", "hypothesis"),
    "parus": ("premise", "question", "choice1", "choice2"),
    "muserc": ("paragraph", "question", "answer"),
    "terra": ("premise", "hypothesis"),
    "russe": ("word", "sentence1", "sentence2"),
    "rwsd": ("text", "span1_text", "span2_text"),
    "danetqa": ("passage", "question"),
    "rucos": ("passage", "query", "entities"),
}
GAP = "@placeholder"  # what RuCoS's query has in place of the entity
# Columns that no prompt shows.
_UNSHOWN: Mapping[str, Any] = {
    **dict.fromkeys(("start1", "end1", "start2", "end2", "span1_index", "span2_index"), 0),
    "answers": (),
    "label": -1,
}


@dataclass(frozen=True)
class Answer:
    """The model's answer to one question.

    Attributes:
        task: short name.
        choices: label (for RuCoS entity) -> probability, in the order of the labels.
        words: what the prompt calls each choice.
    """

    task: str
    choices: dict[str, float]
    words: tuple[str, ...]

    @property
    def best(self) -> str:
        return max(self.choices, key=lambda label: self.choices[label])


class Predictor:
    """A loaded model that answers questions of any task.

    Args:
        model: as --model takes it; None: the default.
        backend, backend_args, execution, dtype: as in a run.
        say: told what takes long.

    Raises:
        UserError: what the user asked for is not to be had here.
    """

    def __init__(
        self,
        model: str | None = None,
        backend: str = "torch",
        backend_args: Sequence[str] = (),
        execution: str = "auto",
        dtype: str = "auto",
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        options = RunOptions(backend=backend, backend_args=tuple(backend_args), execution=execution, dtype=dtype)
        check_options(options)
        name = model or default_model()
        checkpoint = open_checkpoint(name)
        self.model: LocalModel = resolve_model(name, say)
        self.backend, heads = load_model(self.model, options)
        self._chosen = {
            task.file.task: task for task in choose(["rsg"], defaults=checkpoint.prompts() if checkpoint else None)
        }
        self._tasks = load_tasks(list(self._chosen.values()), data="mini", split="validation")
        self.language_model = PlannedModel(self.backend, self.backend.info.batch_tokens, heads=heads)
        self._chat = uses_chat_template(self.backend.tokenizer, "auto")

    def answer(self, questions: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Answer]:
        """Answers (task, fields) pairs, together in as few batches as the planner makes of them.

        Raises:
            UserError: an unknown task, or a field that is missing or not to be read.
        """
        documents = [(task, make_document(task, fields)) for task, fields in questions]
        requests = self.render(documents)
        answers = []
        for (task, doc), rendered, logprobs in zip(documents, requests, self.log_probabilities(requests), strict=True):
            labels = doc["entities"] if task == "rucos" else LABELS[task]
            words = tuple(request.args[1].strip() for request in rendered)
            probabilities = np.exp(logprobs).tolist()
            answers.append(Answer(task, dict(zip(labels, probabilities, strict=True)), words))
        return answers

    def render(self, documents: Sequence[tuple[str, dict[str, Any]]]) -> list[list[Instance]]:
        """The requests of (task, row) pairs, a request a choice."""
        found = []
        for number, (task, doc) in enumerate(documents):
            loaded = self._tasks[self._chosen[task].file.full_name]
            rendered = render_document(loaded, doc, self.backend.tokenizer, self._chat)
            for request in rendered:
                request.doc_id = number
            found.append(rendered)
        return found

    def log_probabilities(self, requests: Sequence[Sequence[Instance]]) -> list[np.ndarray]:
        """Normalised log-probabilities of each document's choices, float64 [choices].

        Args:
            requests: from `render`, of all its documents.
        """
        scores = iter(self.language_model.loglikelihood([request for rendered in requests for request in rendered]))
        return [log_softmax([next(scores)[0] for _ in rendered]) for rendered in requests]


def make_document(task: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """A row as the task's prompts read it, of a user's fields.

    Raises:
        UserError: an unknown task, or a field that is missing, not the task's, or not to be read.
    """
    if task not in FIELDS:
        raise UserError(f"unknown task {task!r}", nearest_hint(task, FIELDS, "tasks"))
    given = {name: value.strip() if isinstance(value, str) else value for name, value in fields.items()}
    given = {name: value for name, value in given.items() if value is not None}
    for name in given:
        if name not in FIELDS[task]:
            raise UserError(f"{task} has no field {name!r}", f"it takes {_options(FIELDS[task])}")
    missing = [name for name in FIELDS[task] if not given.get(name)]
    if missing:
        raise UserError(f"{task} needs {_options(missing)}", f"it takes {_options(FIELDS[task])}")
    if task == "rucos":
        given["entities"] = split_entities(str(given["entities"]))
        if len(given["entities"]) < 2 or GAP not in str(given["query"]):
            raise UserError(
                "rucos needs a gap and two or more entities",
                "write @placeholder in --query, and --entities 'Москва; Лондон'",
            )
    idx: Any = {"muserc": {"paragraph": 0, "question": 0, "answer": 0}, "rucos": {"passage": 0, "query": 0}}.get(
        task, 0
    )
    known = DOCUMENTS[task].model_fields
    rest = {name: value for name, value in _UNSHOWN.items() if name in known}
    try:
        return DOCUMENTS[task].model_validate({**rest, **given, "idx": idx}).row()
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{task}: --{first['loc'][0]}: {first['msg']}", "see rsg-harness predict --help") from error


def split_entities(text: str) -> tuple[str, ...]:
    """RuCoS's choices, written with semicolons between them, each once."""
    parts = [part.strip() for part in text.split(";")]
    return tuple(dict.fromkeys(part for part in parts if part))


def _options(names: Sequence[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def timed_answer(predictor: Predictor, task: str, fields: Mapping[str, Any]) -> tuple[Answer, float]:
    """One answer, and the seconds that it took."""
    started = time.monotonic()
    [answer] = predictor.answer([(task, fields)])
    return answer, time.monotonic() - started
