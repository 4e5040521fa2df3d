"""`rsg-harness predict`: answer one question."""

from __future__ import annotations

import argparse
from typing import Any

from adapters.base import UserError
from harness.commands.arguments import add_backend, add_include_path, add_model

HELP = "answer one question, with probabilities"
DESCRIPTION = (
    "Answer one question of a task. The task decides which fields it takes: "
    "rsg-harness predict --task terra --premise TEXT --hypothesis TEXT"
)
INTERRUPTED = "interrupted"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments: those of the model, and the fields of all tasks."""
    add_model(parser)
    add_backend(parser)
    add_include_path(parser)
    parser.add_argument("--task", required=True, metavar="NAME", help="see `rsg-harness tasks`")
    fields = parser.add_argument_group("fields of the question")
    for name, text in _field_help().items():
        option = f"--{name.replace('_', '-')}"
        try:
            fields.add_argument(option, dest="fields", action=_Field, const=name, metavar="TEXT", help=text)
        except argparse.ArgumentError as error:
            raise UserError(f"predict has a {option} of its own", "give the task's field another name") from error


class _Field(argparse.Action):
    """Collects the fields that are given in one dictionary, by the names in `const`."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        """Add the field."""
        namespace.fields = {**getattr(namespace, "fields", {}), self.const: values}


def _field_help() -> dict[str, str]:
    """Return a line of help for each field: the tasks that take it, and what to write there."""
    from harness.tasks import get_task, task_names

    takers: dict[str, dict[str, list[str]]] = {}  # field -> what to write there -> tasks
    for task in map(get_task, task_names()):
        for field in task.fields:
            text = field.help or " or ".join(field.options)
            takers.setdefault(field.name, {}).setdefault(text, []).append(task.name)
    return {
        # Tasks whose field needs no explanation come first.
        name: "; ".join(
            ", ".join(tasks) + (f": {text}" if text else "")
            for text, tasks in sorted(texts.items(), key=lambda pair: pair[0] != "")
        ).replace("%", "%%")
        for name, texts in takers.items()
    }


def call(arguments: dict[str, Any]) -> None:
    """Answer, and print the choices with their probabilities."""
    from harness.evaluation.options import PredictOptions
    from harness.evaluation.predict import Predictor, make_document, timed_answer
    from harness.models.open import open_model
    from harness.progress import show_output
    from harness.reports.tables import answer_table

    options = PredictOptions(**arguments)
    make_document(options.task, options.fields)  # refuses a question before a model is loaded
    opened = open_model(options)
    show_output(False)  # a bar for one question tells nothing
    answer, seconds = timed_answer(Predictor(opened), options.task, options.fields)
    print(answer_table(answer.words, answer.choices))
    print(f"{opened.name} · {opened.backend.info.name}, {1000 * seconds:.0f} ms")
