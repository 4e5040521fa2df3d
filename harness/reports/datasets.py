"""What the nine tasks look like: sizes, lengths in tokens, balance, examples. For the notebook, in Russian."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
from tabulate import tabulate

from harness.data import cached_split
from harness.errors import UserError
from harness.models.chat import chat_template
from harness.tasks import HIDDEN_LABEL, RUSSIAN_SUPERGLUE, SPLITS, document_key, get_task
from harness.tasks.prompts import choose
from harness.tasks.rendering import load_tasks, render_document

_SPLIT_NAMES = {"train": "обучение", "validation": "валидация", "test": "тест"}


@dataclass(frozen=True)
class SplitStatistics:
    """One split of one task.

    Attributes:
        documents: Number of documents. MuSeRC's are paragraphs; elsewhere every example is a document.
        examples: Number of questions that a model answers.
        answers: The answer in Russian -> number of examples; empty if answers are hidden, and for RuCoS.
        tokens: int64 [examples], lengths of the default prompts; empty where not measured.
    """

    task: str
    split: str
    documents: int
    examples: int
    answers: dict[str, int]
    tokens: np.ndarray


def measure(data: str, tokenizer: Any) -> list[SplitStatistics]:
    """Measure every split that the source has; prompts only on validation (LiDiRus: on its only split).

    Args:
        data: A source as `--data` takes it.
        tokenizer: The tokenizer of the model that will read the prompts.
    """
    tasks = load_tasks(choose(["rsg"]), data=data, split="validation")
    template = chat_template(tokenizer)
    found = []
    for task in RUSSIAN_SUPERGLUE:
        validation = get_task(task).split("validation")
        for split in get_task(task).splits:
            try:
                rows = [document.row() for document in cached_split(task, split, data).documents]
            except UserError:
                continue  # a source need not have every split: the mini set has no test
            measured = rows if split == validation else []
            contexts = [render_document(tasks[f"rsg_{task}"], row, template)[0].args[0] for row in measured]
            labels = Counter(row["label"] for row in rows if row.get("label", HIDDEN_LABEL) != HIDDEN_LABEL)
            found.append(
                SplitStatistics(
                    task=task,
                    split=split,
                    documents=len({document_key(row) for row in rows}),
                    examples=len(rows),
                    answers={
                        answer: labels[index] for index, answer in enumerate(get_task(task).generated) if labels[index]
                    },
                    tokens=np.array([len(ids) for ids in tokenizer(contexts).input_ids] if contexts else [], dtype=int),
                )
            )
    return found


def sizes_table(found: Sequence[SplitStatistics]) -> str:
    """Return a table of the documents (and answers, where there are more) of each task and split."""
    cells = {(one.task, one.split): one for one in found}
    rows = []
    for task in dict.fromkeys(one.task for one in found):
        row: list[str | int] = [get_task(task).title]
        for split in SPLITS:
            one = cells.get((task, split))
            several = one is not None and one.examples != one.documents
            row.append(
                "–" if one is None else f"{one.documents} ({one.examples} ответов)" if several else one.documents
            )
        rows.append(row)
    return tabulate(rows, headers=["задача", *_SPLIT_NAMES.values()], tablefmt="github")


def lengths_table(found: Sequence[SplitStatistics]) -> str:
    """Return a table of the median, the 95th percentile and the maximum of the prompts' lengths in tokens."""
    rows = [
        [get_task(one.task).title, *(f"{value:.0f}" for value in np.percentile(one.tokens, [50, 95, 100]))]
        for one in found
        if len(one.tokens)
    ]
    return tabulate(rows, headers=["задача", "медиана", "95 %", "максимум"], tablefmt="github")


def lengths_chart(found: Sequence[SplitStatistics]) -> alt.Chart:
    """Draw the distribution of the prompts' lengths, one box for each task."""
    points = [
        {"task": get_task(one.task).title, "tokens": int(tokens)} for one in found for tokens in one.tokens.tolist()
    ]
    return (
        alt.Chart(alt.InlineData(points))
        .mark_boxplot(extent="min-max")
        .encode(
            y=alt.Y("task:N", title=None, sort=None),
            x=alt.X("tokens:Q", title="токенов в промпте", scale=alt.Scale(type="log", nice=False)),
        )
        .properties(width=480)
    )


def balance_chart(found: Sequence[SplitStatistics]) -> alt.Chart:
    """Draw the shares of the answers in every split whose answers are known."""
    shares = [
        {
            "split": f"{get_task(one.task).title}, {_SPLIT_NAMES[one.split]}",
            "answer": answer,
            "share": count / sum(one.answers.values()),
        }
        for one in found
        for answer, count in one.answers.items()
    ]
    return (
        alt.Chart(alt.InlineData(shares))
        .mark_bar()
        .encode(
            y=alt.Y("split:N", title=None, sort=None, axis=alt.Axis(labelLimit=200)),
            x=alt.X("share:Q", title="доля", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1])),
            color=alt.Color("answer:N", title="ответ", sort=None),
        )
        .properties(width=480)
    )


def example_text(task: str, data: str, tokenizer: Any, number: int = 0) -> str:
    """Return a validation document as the model sees it, with the choices and the right answer."""
    name = f"rsg_{task}"
    loaded = load_tasks(choose([task]), data=data, split="validation")[name]
    row = cached_split(task, "validation", data).documents[number].row()
    requests = render_document(loaded, row, chat_template(tokenizer))
    words = [request.args[1].strip() for request in requests]
    gold = get_task(task).gold(row)
    gold = ", ".join(gold) if isinstance(gold, tuple) else words[gold]
    return f"{requests[0].args[0]}\n\nварианты: {' · '.join(words)}\nверный ответ: {gold}"
