"""What a task is: one object that every other part of the program reads.

Reading a `Task` imports neither lm-eval nor a tensor library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from harness.errors import UserError
from harness.tasks.document import HIDDEN_LABEL, Document, LabelError, Row, document_key
from harness.tasks.metrics import Item, Metric
from harness.text import as_json, short

SPLITS = ("train", "validation", "test")

# classification: a row a label, read after the prompt, softmax over the labels
# sigmoid: one row, read after the prompt; the first label has the score 0
# ranking: one row, read after prompt and candidate, softmax over the candidates of a document
# pair: the prompt gives two texts, which are read apart; the nearer their features, the likelier the second label
# likelihood: no rows: the language model's own log-probability of the candidate, softmax over the candidates
HeadKind = Literal["classification", "sigmoid", "ranking", "pair", "likelihood"]
# Features of a text that a pair head compares.
PAIR_FEATURES = 32

# Official spellings of a yes/no label, as JSON text.
BOOLEANS: Mapping[str, int] = MappingProxyType(
    {"false": 0, "true": 1, '"false"': 0, '"true"': 1, '"False"': 0, '"True"': 1, "0": 0, "1": 1}
)


@dataclass(frozen=True)
class InputField:
    """A field that a person fills in to ask one question.

    Attributes:
        name: The column.
        help: What to write there, in a few words; "" where the name says it.
        options: The values it may have; empty: any text.
        is_list: Several values, separated by semicolons.
        contains: What the text must contain, such as RuCoS's gap.
    """

    name: str
    help: str = ""
    options: tuple[str, ...] = ()
    is_list: bool = False
    contains: str = ""


def _unchanged(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Writing:
    """How a teacher writes new documents of a task.

    Attributes:
        columns: What the teacher writes; the other columns follow from it.
        kept: Those of `columns` that a paraphrase takes over from its source.
        relatives: Tasks whose documents may be of the same origin, so that a new document must not repeat them either.
        complete: Adds the columns that follow from the written ones; raises `DocumentFault` where they contradict each
            other.
    """

    columns: tuple[str, ...]
    kept: tuple[str, ...] = ()
    relatives: tuple[str, ...] = ()
    complete: Callable[[Row], Row] = _unchanged


def _one_row(line: Row) -> Iterator[Row]:
    yield line


def _unchanged_row(row: Row, split: str) -> Row:
    return row


@dataclass(frozen=True)
class Task:
    """One task: its documents, labels, splits, metrics and names.

    Attributes:
        name: In commands, records and task files: "terra". It is also the hub's configuration.
        title: Its directory in the official archive and its file in a submission: "TERRa".
        document: The schema of its documents.
        fields: What a person fills in to ask one question, in the order in which one would ask.
        metrics: Metric name -> metric; "rsg" is the task's part of the Russian SuperGLUE score.
        official: Names of the metrics whose mean is "rsg".
        labels: Position is the class index; spelled as in the official files. Empty where every document has choices
            of its own.
        choices: The column that holds a document's own choices, where `labels` is empty.
        answers: The column that holds the right ones among these choices.
        official_labels: JSON text of a label in the official files -> class index, where it is not the label's name.
        hub_labels: The hub's names of the classes, where they differ from `labels`.
        submitted_labels: Values of the labels in a submission, where they differ from `labels`.
        files: Split -> file in the official archive.
        hidden: Splits whose labels the official files do not tell.
        sizes: Split -> examples of the official release, as published.
        clusters: Split -> published number of documents, where a document holds several examples.
        head: The kind of head that a multitask model has for the task by default.
        borrows: The task whose head answers this one; such a task is a test set that is never trained on.
        borrowed_columns: Column of this task -> column of the task that it borrows from.
        passage: The column that may be shortened where a document is too long for training.
        generated: The words that a generated answer may name, in the order of the labels.
        group: The key of the idx that tells which examples of a document belong together.
        categories: Columns that name linguistic categories an example belongs to.
        unasked: Column -> value of the columns that no prompt shows, for questions that a person asks.
        compared: Columns that tell whether two documents are the same.
        writing: How a teacher writes new documents; None where the official ones are enough.
        read: Turns a line of the official file into rows by the schema's columns.
        clean: Corrects what is known to be wrong with a document.
        read_hub: Turns a row of the hub's parquet files, of this split, into the official values.
    """

    name: str
    title: str
    document: type[Document]
    fields: tuple[InputField, ...]
    metrics: Mapping[str, Metric]
    official: tuple[str, ...]
    labels: tuple[str, ...] = ()
    choices: str | None = None
    answers: str | None = None
    official_labels: Mapping[str, int] | None = None
    hub_labels: tuple[str, ...] = ()
    submitted_labels: tuple[Any, ...] = ()
    files: Mapping[str, str] = field(
        default_factory=lambda: MappingProxyType(
            {"train": "train.jsonl", "validation": "val.jsonl", "test": "test.jsonl"}
        )
    )
    hidden: tuple[str, ...] = ("test",)
    sizes: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    clusters: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    head: HeadKind = "classification"
    borrows: str | None = None
    borrowed_columns: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    passage: str | None = None
    generated: tuple[str, ...] = ()
    group: str | None = None
    categories: tuple[str, ...] = ()
    unasked: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    compared: tuple[str, ...] = ()
    writing: Writing | None = None
    read: Callable[[Row], Iterator[Row]] = _one_row
    clean: Callable[[Any], Document] = _unchanged
    read_hub: Callable[[Row, str], Row] = _unchanged_row

    # Documents.

    def parse(self, columns: Mapping[str, Any]) -> Document:
        """Validate one example and correct what is known to be wrong with it.

        Args:
            columns: Values by the hub's column names; the label as a class index, -1 if hidden.

        Raises:
            ValidationError: A column is missing or of a wrong type; `describe` words it.
        """
        return self.clean(
            self.document.model_validate({name.replace("-", "_"): value for name, value in columns.items()})
        )

    def placeholder(self) -> Row:
        """Return an invented document, for code that needs one to start from."""
        values: Row = {}
        for part in self.fields:
            text = part.options[0] if part.options else f"{part.name} {part.contains}".strip()
            values[part.name] = (f"{text} 1", f"{text} 2") if part.is_list else text
        if "label" in self.document.model_fields:
            values["label"] = HIDDEN_LABEL
        return self.document.model_validate({"idx": 0, **self.unasked, **values}).row()

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that the task has."""
        return tuple(self.files)

    @property
    def is_trainable(self) -> bool:
        """Whether there are documents to train on; a test set has none."""
        return "train" in self.files

    def split(self, wanted: str) -> str:
        """Return the split to read where `wanted` is asked for: a test set has only one, which validation reads too.

        Raises:
            UserError: The train split of a test set.
        """
        if wanted in self.files:
            return wanted
        if wanted == "train":
            raise UserError(
                f"{self.name} is a test set and has no train split",
                f"train on other tasks{f', {self.borrows} is the nearest' if self.borrows else ''}",
            )
        return next(iter(self.files))

    # Labels and choices.

    def label_index(self, value: Any) -> int:
        """Return the class index of a label as an official file spells it.

        Raises:
            LabelError: Names the value and the allowed spellings.
        """
        spellings = self.official_labels or {as_json(name): index for index, name in enumerate(self.labels)}
        # By its JSON text: Python takes True for 1, the files do not.
        index = spellings.get(as_json(value))
        if index is None:
            raise LabelError(f"label is {short(value)}, allowed: {', '.join(spellings)}")
        return index

    def hub_label_index(self, value: Any, names: Sequence[str] | None) -> int:
        """Return the class index of a label in the hub's parquet files.

        Args:
            value: A class index, -1 where hidden; or a string where the column is no ClassLabel.
            names: The ClassLabel's own names in its own order, or None where the file does not tell.

        Raises:
            LabelError: The value or its name is not one of the task's.
        """
        if isinstance(value, int) and not isinstance(value, bool):
            if value == HIDDEN_LABEL:
                return HIDDEN_LABEL
            if not 0 <= value < len(names or self.labels):
                raise LabelError(f"label is {value}, allowed: -1 to {len(names or self.labels) - 1}")
            if names is None:
                return value
            # By name, not by number: classes in another order must not silently swap the labels.
            value = names[value]
        return self.hub_labels.index(value) if value in self.hub_labels else self.label_index(value)

    def choice_names(self, doc: Mapping[str, Any]) -> tuple[str, ...]:
        """Return what can be answered to a document: the labels, or its own choices."""
        return tuple(doc[self.choices]) if self.choices else self.labels

    def right_choices(self, doc: Mapping[str, Any], count: int) -> list[bool]:
        """Return for each of `count` choices whether it is a right one."""
        if self.choices and self.answers:
            return [choice in doc[self.answers] for choice in doc[self.choices]]
        return [choice == doc["label"] for choice in range(count)]

    def prediction(self, doc: Mapping[str, Any], choice: int) -> Any:
        """Return the answer that choosing this choice gives: a class index, or one of the document's own choices."""
        return doc[self.choices][choice] if self.choices else choice

    def gold(self, doc: Mapping[str, Any]) -> Any:
        """Return the right answer: a class index, or a tuple of right choices; None where it is hidden."""
        if self.answers:
            return tuple(doc[self.answers]) or None
        return doc["label"] if doc["label"] >= 0 else None

    def named(self, answer: Any) -> Any:
        """Return an answer as records spell it: the label's name, or the choice itself; None stays None."""
        if self.choices:
            return list(answer) if isinstance(answer, tuple) else answer
        return None if answer is None else self.labels[answer]

    def submitted(self, name: Any) -> Any:
        """Return a record's answer as a submission spells it.

        Raises:
            LabelError: It is not an answer of this task.
        """
        if self.choices:
            if isinstance(name, str) and name:
                return name
        elif name in self.labels:
            return (self.submitted_labels or self.labels)[self.labels.index(name)]
        raise LabelError(f"{name!r} is no label")

    def item(self, doc: Mapping[str, Any], prediction: Any) -> Item:
        """Return what the metrics read of an answered document; its gold answer is None where that is hidden."""
        return Item(
            cluster=document_key(doc),
            gold=self.gold(doc),
            prediction=prediction,
            group=doc["idx"][self.group] if self.group else None,
            categories=tuple(name for name in self.categories if doc.get(name)),
            task=self.name,
        )

    def recorded_item(self, idx: Any, gold: Any, prediction: Any) -> Item:
        """Return what the metrics read of a sample in a record, whose answers are spelled by `named`."""
        index = (lambda name: name) if self.choices else self.labels.index
        return Item(
            cluster=document_key({"idx": idx}),
            gold=tuple(gold) if self.choices else index(gold),
            prediction=None if prediction is None else index(prediction),
            group=idx[self.group] if self.group else None,
            task=self.name,
        )

    # Heads.

    @property
    def head_owner(self) -> str:
        """The task whose head answers this one."""
        return self.borrows or self.name

    @property
    def head_kinds(self) -> tuple[HeadKind, ...]:
        """The kinds of head the task can have: its labels are classified, differing candidates are ranked."""
        if self.head in ("ranking", "likelihood"):
            return ("ranking", "likelihood")
        if len(self.labels) == 2:
            return ("classification", "sigmoid", "pair", "likelihood")
        return ("classification", "likelihood")

    def head_rows(self, kind: HeadKind) -> int:
        """Return the number of rows that a head of this kind has."""
        return {
            "classification": len(self.labels),
            "sigmoid": 1,
            "ranking": 1,
            "pair": 1 + PAIR_FEATURES,
            "likelihood": 0,
        }[kind]
