"""RuCoS: which entity of the passage stands at @placeholder in the query?"""

from __future__ import annotations

from collections.abc import Iterator

from harness.tasks.document import Document, DocumentFault, Index, Offset, Row, Strict
from harness.tasks.metrics import entity_metrics
from harness.tasks.spans import clean_entities
from harness.tasks.task import InputField, Task

GAP = "@placeholder"  # stands in the query in place of the entity


class QueryIndex(Strict):
    """A submission names the query."""

    passage: Index
    query: Index


class RuCoS(Document):
    """A passage and a query with a gap. Entities stand in the order of their first appearance."""

    passage: str
    query: str
    entities: tuple[str, ...]
    answers: tuple[str, ...]
    idx: QueryIndex


class _Entity(Strict):
    start: Offset
    end: Offset  # exclusive


class _Passage(Strict):
    text: str
    entities: list[_Entity]


class _GoldAnswer(Strict):
    text: str


class _Query(Strict):
    query: str
    idx: Index
    answers: list[_GoldAnswer] | None = None


class _Line(Strict):
    idx: Index
    passage: _Passage
    qas: list[_Query]


def _read(line: Row) -> Iterator[Row]:
    parsed = _Line.model_validate(line)
    text = parsed.passage.text
    for entity in parsed.passage.entities:
        if not entity.start < entity.end <= len(text):
            raise DocumentFault(f"entity {entity.start}–{entity.end} is no span of a passage of {len(text)} characters")
    entities = tuple(text[entity.start : entity.end] for entity in parsed.passage.entities)
    for query in parsed.qas:
        row: Row = {
            "passage": text,
            "query": query.query,
            "entities": entities,
            "idx": {"passage": parsed.idx, "query": query.idx},
        }
        if query.answers is not None:
            row["answers"] = tuple(answer.text for answer in query.answers)
        yield row


def _read_hub(row: Row, split: str) -> Row:
    """Parquet gives lists, the schema wants tuples; anything else is left for the schema to refuse."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}


def _clean(document: RuCoS) -> RuCoS:
    entities = clean_entities(document.entities, document.passage)
    if not entities:
        raise DocumentFault('field "entities" names none to choose from')
    return document.model_copy(
        update={
            "entities": entities,
            "answers": clean_entities(document.answers, document.passage),
        }
    )


TASK = Task(
    name="rucos",
    title="RuCoS",
    document=RuCoS,
    fields=(
        InputField("passage"),
        InputField("query", f"with {GAP} for the gap", contains=GAP),
        InputField("entities", "separated by semicolons", is_list=True),
    ),
    metrics=entity_metrics(),
    official=("f1", "em"),
    choices="entities",
    answers="answers",
    sizes={"train": 72193, "validation": 7577, "test": 7257},
    head="ranking",
    passage="passage",
    unasked={"answers": (), "idx": {"passage": 0, "query": 0}},
    read=_read,
    read_hub=_read_hub,
    clean=_clean,
)
