"""One document schema a task. Column names are the hub's (hyphens as underscores), labels are the hub's class indices.

A label of -1 (RuCoS: no answers) is hidden: the document belongs to a test split.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

TASKS = ("lidirus", "rcb", "parus", "muserc", "terra", "russe", "rwsd", "danetqa", "rucos")

HIDDEN_LABEL = -1

# The position in the tuple is the class index. Spelled as in the official files and submissions; PARus, where those say
# 0 and 1, as on the hub. RuCoS is answered with an entity of the passage and has no classes.
LABELS = MappingProxyType(
    {
        "lidirus": ("entailment", "not_entailment"),
        "rcb": ("entailment", "contradiction", "neutral"),
        "parus": ("choice1", "choice2"),
        "muserc": ("0", "1"),
        "terra": ("entailment", "not_entailment"),
        "russe": ("false", "true"),
        "rwsd": ("False", "True"),
        "danetqa": ("false", "true"),
        "rucos": (),
    }
)


def _whole_number(value: Any) -> Any:
    """LiDiRus writes its idx as a string of digits."""
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        return int(value)
    return value


Index = Annotated[int, BeforeValidator(_whole_number), Field(ge=0)]
Offset = Annotated[int, Field(ge=0)]  # characters from the start of the text
BinaryLabel = Literal[-1, 0, 1]


class Frozen(BaseModel):
    """Strict about types, deaf to columns it does not know: official files carry more than the tasks need."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class Document(Frozen):
    """One example of one task."""

    task: ClassVar[str]

    def row(self) -> dict[str, Any]:
        """Plain values under the column names: lists for tuples, a dict for a nested idx."""
        return self.model_dump(mode="json")


class LiDiRus(Document):
    """Does sentence1 entail sentence2? The four categories name linguistic phenomena, "" where absent."""

    task: ClassVar[str] = "lidirus"
    sentence1: str
    sentence2: str
    knowledge: str = ""
    lexical_semantics: str = ""
    logic: str = ""
    predicate_argument_structure: str = ""
    idx: Index
    label: BinaryLabel


class RCB(Document):
    """Entailment, contradiction or neutral. `verb` and `negation` describe the premise, "" where absent."""

    task: ClassVar[str] = "rcb"
    premise: str
    hypothesis: str
    verb: str = ""
    negation: str = ""
    idx: Index
    label: Literal[-1, 0, 1, 2]


class PARus(Document):
    """Which choice is the cause, or the effect, of the premise?"""

    task: ClassVar[str] = "parus"
    premise: str
    choice1: str
    choice2: str
    question: Literal["cause", "effect"]
    idx: Index
    label: BinaryLabel


class AnswerIndex(Frozen):
    """Question and answer numbers are unique across the file, not only within their paragraph."""

    paragraph: Index
    question: Index
    answer: Index


class MuSeRC(Document):
    """Is this answer to the question about the paragraph right? A document is one answer."""

    task: ClassVar[str] = "muserc"
    paragraph: str
    question: str
    answer: str
    idx: AnswerIndex
    label: BinaryLabel


class TERRa(Document):
    """Does the premise entail the hypothesis?"""

    task: ClassVar[str] = "terra"
    premise: str
    hypothesis: str
    idx: Index
    label: BinaryLabel


class RUSSE(Document):
    """Does the word mean the same in both sentences? `sentence[start:end]` is the word's form there."""

    task: ClassVar[str] = "russe"
    word: str
    sentence1: str
    sentence2: str
    start1: Offset
    end1: Offset
    start2: Offset
    end2: Offset
    idx: Index
    label: BinaryLabel


class RWSD(Document):
    """Does the pronoun in span 2 refer to span 1?

    `*_index` is the official token number, wrong in many rows; `*_start` is the character offset in `text` at which the
    span really begins, -1 if it does not occur.
    """

    task: ClassVar[str] = "rwsd"
    text: str
    span1_text: str
    span2_text: str
    span1_index: int
    span2_index: int
    span1_start: int = -1
    span2_start: int = -1
    idx: Index
    label: BinaryLabel


class DaNetQA(Document):
    """A yes/no question about a passage."""

    task: ClassVar[str] = "danetqa"
    question: str
    passage: str
    idx: Index
    label: BinaryLabel


class QueryIndex(Frozen):
    """RuCoS: a submission names the query."""

    passage: Index
    query: Index


class RuCoS(Document):
    """Which entity of the passage stands at @placeholder in the query? Entities in order of first appearance."""

    task: ClassVar[str] = "rucos"
    passage: str
    query: str
    entities: tuple[str, ...]
    answers: tuple[str, ...]
    idx: QueryIndex


DOCUMENTS: MappingProxyType[str, type[Document]] = MappingProxyType(
    {model.task: model for model in (LiDiRus, RCB, PARus, MuSeRC, TERRa, RUSSE, RWSD, DaNetQA, RuCoS)}
)
