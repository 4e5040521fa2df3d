"""Documents of a user's own fields: complete, of the right task, and what is wrong is said in the command's options."""

from __future__ import annotations

from typing import Any

import pytest

from harness.errors import UserError
from harness.evaluation.predict import make_document
from harness.tasks import RUSSIAN_SUPERGLUE, get_task

QUESTIONS: dict[str, dict[str, str]] = {
    "lidirus": {"sentence1": "Снег тает.", "sentence2": "Снег не тает."},
    "rcb": {"premise": "Сторож уверен, что ворота закрыты.", "hypothesis": "Ворота закрыты."},
    "parus": {"premise": "Пошёл снег.", "question": "effect", "choice1": "Стало светло.", "choice2": "Все уснули."},
    "muserc": {"paragraph": "(1) Варя пекла пирог.", "question": "Что пекла Варя?", "answer": "Пирог."},
    "terra": {"premise": "Илья спел и сплясал.", "hypothesis": "Илья спел."},
    "russe": {"word": "роман", "sentence1": "Он читал роман.", "sentence2": "У них был роман."},
    "rwsd": {"text": "Кот увидел мышь, и она убежала.", "span1_text": "мышь", "span2_text": "она убежала"},
    "danetqa": {"passage": "Снег тает при нуле градусов.", "question": "Тает ли снег?"},
    "rucos": {"passage": "Пётр приехал в Омск.", "query": "В @placeholder ждут.", "entities": "Пётр; Омск"},
}
FIELDS = {task: tuple(field.name for field in get_task(task).fields) for task in RUSSIAN_SUPERGLUE}
EVERY_FIELD = [(task, field) for task in RUSSIAN_SUPERGLUE for field in FIELDS[task]]


def option(field: str) -> str:
    return "--" + field.replace("_", "-")


def refusal(task: str, fields: dict[str, Any]) -> UserError:
    with pytest.raises(UserError) as caught:
        make_document(task, fields)
    return caught.value


# --- what is accepted -------------------------------------------------------------------------------------------------


def test_every_task_can_be_asked():
    assert set(FIELDS) == set(QUESTIONS) == set(RUSSIAN_SUPERGLUE)


@pytest.mark.parametrize("task", RUSSIAN_SUPERGLUE)
def test_the_fields_of_a_question_are_enough_for_a_document(task):
    row = make_document(task, QUESTIONS[task])
    assert set(QUESTIONS[task]) == set(FIELDS[task])
    for field, value in QUESTIONS[task].items():
        assert row[field] == (["Пётр", "Омск"] if field == "entities" else value)
    assert set(row) == set(get_task(task).document.model_fields)


@pytest.mark.parametrize("task", RUSSIAN_SUPERGLUE)
def test_the_answer_of_a_users_question_is_hidden(task):
    row = make_document(task, QUESTIONS[task])
    assert row.get("label", -1) == -1
    assert row.get("answers", []) == []


@pytest.mark.parametrize("task", RUSSIAN_SUPERGLUE)
def test_fields_of_other_tasks_that_are_none_do_not_matter(task):
    others = {field: None for _, field in EVERY_FIELD}
    assert make_document(task, {**others, **QUESTIONS[task]}) == make_document(task, QUESTIONS[task])


def test_the_fields_given_stay_as_they_are():
    fields = dict(QUESTIONS["rucos"])
    make_document("rucos", fields)
    assert fields == QUESTIONS["rucos"]


@pytest.mark.parametrize("question", ["cause", "effect"])
def test_parus_asks_for_the_cause_or_the_effect(question):
    assert make_document("parus", {**QUESTIONS["parus"], "question": question})["question"] == question


@pytest.mark.parametrize(
    ("given", "entities"),
    [
        ("Пётр;Омск", ["Пётр", "Омск"]),
        ("  Пётр Лужин ;; Омск ; ", ["Пётр Лужин", "Омск"]),
        ("театр «Сова», Тверь; Омск; Пётр", ["театр «Сова», Тверь", "Омск", "Пётр"]),
    ],
)
def test_entities_are_parted_by_semicolons(given, entities):
    assert make_document("rucos", {**QUESTIONS["rucos"], "entities": given})["entities"] == entities


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["absent", None, ""])
@pytest.mark.parametrize(("task", "field"), EVERY_FIELD)
def test_a_missing_field_is_named_as_an_option(task, field, value):
    fields: dict[str, Any] = {**QUESTIONS[task], field: value}
    if value == "absent":
        del fields[field]
    error = refusal(task, fields)
    assert error.message == f"{task} needs {option(field)}"
    assert error.hint == "it takes " + ", ".join(option(name) for name in FIELDS[task])


def test_all_missing_fields_are_named_at_once():
    assert refusal("rwsd", {"text": "Кот спит."}).message == "rwsd needs --span1-text, --span2-text"


@pytest.mark.parametrize(
    ("task", "field"), [("terra", "passage"), ("danetqa", "premise"), ("rcb", "label"), ("russe", "start1")]
)
def test_a_field_that_is_not_the_tasks_is_refused(task, field):
    error = refusal(task, {**QUESTIONS[task], field: "1"})
    assert error.message == f"{task} has no field {field!r}"
    assert error.hint == "it takes " + ", ".join(option(name) for name in FIELDS[task])


def test_an_unknown_field_is_refused_even_where_another_is_missing():
    assert refusal("terra", {"premise": "Снег тает.", "hypotesis": "Снег."}).message == "terra has no field 'hypotesis'"


@pytest.mark.parametrize(("name", "hint"), [("tera", "did you mean terra"), ("", "tasks: lidirus, rcb")])
def test_an_unknown_task_names_the_nearest_one(name, hint):
    error = refusal(name, {})
    assert error.message == f"no task {name!r}"
    assert error.hint.startswith(hint)


def test_a_question_of_parus_that_is_neither_is_refused_with_what_is_allowed():
    error = refusal("parus", {**QUESTIONS["parus"], "question": "причина"})
    assert "--question" in error.message
    assert "is one of cause, effect" in error.message


@pytest.mark.parametrize("entities", ["Омск", "Омск;", " ; ", "Пётр, Омск"])
def test_fewer_than_two_entities_are_refused(entities):
    error = refusal("rucos", {**QUESTIONS["rucos"], "entities": entities})
    assert "--entities takes two or more values" in error.message


def test_a_query_without_a_gap_is_refused():
    error = refusal("rucos", {**QUESTIONS["rucos"], "query": "В Омске ждут."})
    assert "--query must contain @placeholder" in error.message
