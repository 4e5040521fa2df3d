"""Documents that a teacher wrote: read, checked, and kept apart from the official ones."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.data import cached_split
from harness.distillation.deduplicate import (
    NEAR,
    NEW,
    KnownDocuments,
    compared_text,
    jaccard,
    official_documents,
    shingles,
)
from harness.distillation.prompts import Question
from harness.distillation.replies import Unusable, read_document

RWSD = {
    "text": "Кубок не помещается в чемодан, потому что он слишком большой.",
    "span1_text": "Кубок",
    "span2_text": "он слишком большой",
}
RCB = {"premise": "Дождь шёл всю ночь. К утру река вышла из берегов.", "hypothesis": "Ночью шёл дождь."}
PARUS = {"premise": "Река вышла из берегов.", "question": "cause", "choice1": "Шёл дождь.", "choice2": "Пели птицы."}


def example(task: str, label: int = 1) -> Question:
    return Question("key", task, {}, ({},), label)


def read(task: str, fields: Any, **question: Any) -> dict[str, Any]:
    reply = fields if isinstance(fields, str) else json.dumps(fields, ensure_ascii=False)
    return read_document(reply, example(task, **question), 5)


def refusal(task: str, fields: Any) -> str:
    with pytest.raises(Unusable) as caught:
        read(task, fields)
    return str(caught.value)


# --- reading ----------------------------------------------------------------------------------------------------------


def test_a_document_is_read_from_among_other_words() -> None:
    said = json.dumps(RCB, ensure_ascii=False)
    row = read("rcb", f"Вот пример:\n```json\n{said}\n```\nГотово!", label=2)
    assert row == {**RCB, "verb": "", "negation": "", "idx": 5, "label": 2}


def test_the_spans_of_rwsd_are_found_with_their_tokens() -> None:
    row = read("rwsd", RWSD)
    assert (row["span1_index"], row["span2_index"]) == (0, 7)
    for span in ("span1", "span2"):
        start = row[f"{span}_start"]
        assert row["text"][start:].startswith(row[f"{span}_text"])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"span1_text": "Трофей"}, "span1 is not in the text"),
        ({"span1_text": "Куб"}, "span1 is not in the text"),
        ({"span2_text": "она слишком большая"}, "span2 is not in the text"),
        ({"span1_text": "он слишком"}, "the spans overlap"),
        ({"text": ""}, "no text in the field text"),
        ({"span2_text": None}, "no text in the field span2_text"),
        ({"span1_text": "…"}, "no text in the field span1_text"),
    ],
)
def test_a_document_of_rwsd_that_breaks_its_rules_is_unusable(changes: dict[str, Any], reason: str) -> None:
    assert refusal("rwsd", {**RWSD, **changes}) == reason


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("Не могу.", "no JSON object"),
        ('{"premise": "а", ', "no JSON object"),
        ('{"premise": "а" "hypothesis"}', "invalid JSON"),
        ('{"premise": "\\ud800 а", "hypothesis": "б"}', "invalid JSON"),
        ('{"premise": ["а"], "hypothesis": "б"}', "no text in the field premise"),
    ],
)
def test_a_reply_that_is_no_document_is_unusable(said: str, reason: str) -> None:
    assert refusal("rcb", said) == reason


def test_parus_needs_two_choices_and_a_known_question() -> None:
    assert refusal("parus", {**PARUS, "choice2": "шел дождь"}) == "both choices are the same"
    assert refusal("parus", {**PARUS, "question": "why"}).startswith('not in the schema: field "question"')
    assert read("parus", PARUS)["question"] == "cause"


def test_a_paraphrase_of_parus_asks_what_its_source_asks() -> None:
    said = json.dumps({**PARUS, "question": "cause"}, ensure_ascii=False)
    paraphrase = Question("key", "parus", {"question": "effect"}, label=0)
    assert read_document(said, paraphrase, 0)["question"] == "effect"


# --- comparing --------------------------------------------------------------------------------------------------------


def test_case_punctuation_and_the_order_of_choices_do_not_make_a_document_new() -> None:
    other = {**PARUS, "premise": "река вышла из берегов", "choice1": "Пели птицы!", "choice2": "Шел дождь"}
    assert compared_text("parus", PARUS) == compared_text("parus", other)


def test_the_same_and_the_nearly_same_are_refused_and_the_different_is_not() -> None:
    known = KnownDocuments()
    text = compared_text("rwsd", RWSD)
    known.add(text, "rwsd validation")
    assert known.match(text) == "the same as in rwsd validation"
    near = text.replace("слишком большой", "слишком велик")
    assert NEAR <= jaccard(shingles(text), shingles(near)) < 1
    assert known.match(near) == "nearly the same as in rwsd validation"
    assert known.match("совсем другой текст о том, как две подруги ходили в театр") is None


def test_what_is_compared_exactly_may_be_near() -> None:
    known = KnownDocuments()
    text = compared_text("rwsd", RWSD)
    known.add(text, NEW, near=False)
    assert known.match(text) == f"the same as in {NEW}"
    assert known.match(text.replace("слишком большой", "слишком велик")) is None


@given(st.text(max_size=60), st.text(max_size=60))
def test_likeness_is_a_share_and_goes_both_ways(first: str, second: str) -> None:
    one, other = shingles(first), shingles(second)
    assert 0 <= jaccard(one, other) == jaccard(other, one) <= 1
    assert jaccard(one, one) == 1


@pytest.mark.parametrize("task", ["rcb", "parus", "rwsd"])
def test_every_official_document_is_refused_and_none_is_lost_to_the_estimate(
    task: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Exactly, and with its last word changed, which MinHash alone only estimates."""
    examples = official_documents(task, "mini", paraphrases=False)
    paraphrases = official_documents(task, "mini", paraphrases=True)
    for split in ("train", "validation"):
        for document in cached_split(task, split, "mini").documents:
            text = compared_text(task, document.row())
            assert examples.match(text) == paraphrases.match(text) == f"the same as in {task} {split}"
            changed = text[: text.rindex(" ")] + " кот"
            assert jaccard(shingles(text), shingles(changed)) >= NEAR or len(text) < 60
            if jaccard(shingles(text), shingles(changed)) >= NEAR:
                assert str(examples.match(changed)).startswith("nearly the same as in ")
                # A paraphrase may be near train documents, among which is its source.
                expected = None if split == "train" else f"nearly the same as in {task} validation"
                assert paraphrases.match(changed) in (expected, f"nearly the same as in {task} validation")
    assert any(f"{task} test (the mini set has no test split" in line for line in caplog.messages)
