"""Single questions to a model: documents made from a person's fields, answered like those of a run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from pydantic import ValidationError

from harness.errors import UserError
from harness.evaluation.language_model import PlannedModel
from harness.models.heads import log_softmax
from harness.models.open import OpenModel
from harness.tasks import InputField, Row, Task, get_task
from harness.tasks.prompts import GROUPS, choose, task_files
from harness.tasks.rendering import PLACEHOLDER, load_tasks, render_document


@dataclass(frozen=True)
class Answer:
    """The model's answer to one question.

    Attributes:
        task: The task's name.
        choices: Label, or one of the document's own choices -> probability, in the order of the labels.
        words: What the prompt calls each choice.
    """

    task: str
    choices: dict[str, float]
    words: tuple[str, ...]

    @property
    def best(self) -> str:
        """The most probable choice."""
        return max(self.choices, key=lambda label: self.choices[label])


class Predictor:
    """Answers questions of any task with an open model.

    Args:
        opened: The model; its checkpoint's prompts are used where it has heads.
    """

    def __init__(self, opened: OpenModel) -> None:
        self.opened = opened
        added = [file.name for file in task_files().values() if file.group not in GROUPS and not file.is_generated]
        self._chosen = {task.file.task: task for task in choose(["rsg", *added], defaults=opened.prompts)}
        self._tasks = load_tasks(list(self._chosen.values()), data=PLACEHOLDER, split="validation")
        self.language_model = PlannedModel(opened)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks that can be asked."""
        return tuple(get_task(name) for name in self._chosen)

    def answer(self, questions: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Answer]:
        """Answer (task, fields) pairs together, in as few batches as the planner makes of them.

        Raises:
            UserError: An unknown task, or a field that is missing or not valid.
        """
        documents = [(task, make_document(task, fields)) for task, fields in questions]
        requests = self.render(documents)
        answers = []
        for (task, doc), rendered, logprobs in zip(documents, requests, self.log_probabilities(requests), strict=True):
            names = get_task(task).choice_names(doc)
            asked = () if self._chosen[task].gives_pair else rendered  # two texts are no words for the labels
            words = tuple(request.args[1].strip() for request in asked) or names
            answers.append(Answer(task, dict(zip(names, np.exp(logprobs).tolist(), strict=True)), words))
        return answers

    def render(self, documents: Sequence[tuple[str, Row]]) -> list[list[Instance]]:
        """Return the requests of (task, row) pairs, a request a choice."""
        found = []
        for number, (task, doc) in enumerate(documents):
            loaded = self._tasks[self._chosen[task].file.full_name]
            rendered = render_document(loaded, doc, self.opened.template)
            for request in rendered:
                request.doc_id = number
            found.append(rendered)
        return found

    def log_probabilities(self, requests: Sequence[Sequence[Instance]]) -> list[np.ndarray]:
        """Return the normalised log-probabilities of each document's choices, float64 [choices].

        Args:
            requests: From `render`, of all its documents.
        """
        scores = iter(self.language_model.loglikelihood([request for rendered in requests for request in rendered]))
        return [log_softmax([next(scores)[0] for _ in rendered]) for rendered in requests]


def make_document(task: str, fields: Mapping[str, Any]) -> Row:
    """Return a row as the task's prompts read it, made from a person's fields.

    Raises:
        UserError: An unknown task, or a field that is missing, not the task's, or not valid.
    """
    found = get_task(task)
    known = {field.name: field for field in found.fields}
    given = {name: value.strip() if isinstance(value, str) else value for name, value in fields.items()}
    given = {name: value for name, value in given.items() if value is not None}
    for name in given:
        if name not in known:
            raise UserError(f"{task} has no field {name!r}", f"it takes {_options(known)}")
    missing = [name for name in known if not given.get(name)]
    if missing:
        raise UserError(f"{task} needs {_options(missing)}", f"it takes {_options(known)}")
    for name, field in known.items():
        if field.is_list:
            given[name] = split_list(str(given[name]))
        if problem := field_problem(field, given[name]):
            raise UserError(f"{task}: --{name.replace('_', '-')} {problem}", "see rsg-harness predict --help")
    columns = {"idx": 0, **found.unasked, **given}
    if "label" in found.document.model_fields:
        columns["label"] = -1
    try:
        return found.document.model_validate(columns).row()
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{task}: --{first['loc'][0]}: {first['msg']}", "see rsg-harness predict --help") from error


def field_problem(field: InputField, value: Any) -> str:
    """Say what is wrong with a field's value; "" where nothing is."""
    if field.options and value not in field.options:
        return f"is one of {', '.join(field.options)}"
    if field.is_list and len(value) < 2:
        return "takes two or more values, separated by semicolons: 'Москва; Лондон'"
    if field.contains and field.contains not in value:
        return f"must contain {field.contains}"
    return ""


def split_list(text: str) -> tuple[str, ...]:
    """Split values that are separated by semicolons, keeping each once."""
    parts = [part.strip() for part in text.split(";")]
    return tuple(dict.fromkeys(part for part in parts if part))


def _options(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def timed_answer(predictor: Predictor, task: str, fields: Mapping[str, Any]) -> tuple[Answer, float]:
    """Return one answer, and the seconds that it took."""
    started = time.monotonic()
    [answer] = predictor.answer([(task, fields)])
    return answer, time.monotonic() - started
