"""Choosing documents and few-shot examples: even, balanced, the same for the same seed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.data import load_split
from harness.data.sampling import draw_shots, sample_documents, without_documents
from harness.tasks import RUSSIAN_SUPERGLUE, document_key

Row = dict[str, Any]


def rows(count: int, labels: int = 2) -> list[Row]:
    return [{"idx": number, "label": number % labels} for number in range(count)]


def muserc(paragraphs: int, answers: int = 6) -> list[Row]:
    return [
        {"idx": {"paragraph": p, "question": p * 10 + a // 2, "answer": p * 100 + a}, "label": a % 2}
        for p in range(paragraphs)
        for a in range(answers)
    ]


# --- a document is never its own example ------------------------------------------------------------------------------


def test_documents_that_ask_the_same_are_left_out_whatever_their_idx_and_label():
    pool = [{"idx": n, "premise": f"П{n}", "hypothesis": "Г", "label": n % 2} for n in range(4)]
    evaluated = [{**pool[2], "idx": 77, "label": -1}, {**pool[1], "hypothesis": "Другая"}]
    assert without_documents("terra", pool, evaluated) == [pool[0], pool[1], pool[3]]


# --- a limited sample -------------------------------------------------------------------------------------------------


@given(count=st.integers(1, 200), limit=st.integers(1, 220), seed=st.integers(0, 5))
def test_as_many_documents_as_asked_for_in_the_order_of_the_file(count, limit, seed):
    found = sample_documents(rows(count), limit, seed)
    numbers = [row["idx"] for row in found]
    assert len(set(numbers)) == len(numbers) == min(limit, count)
    assert numbers == sorted(numbers)


@given(limit=st.integers(2, 50), seed=st.integers(0, 5))
def test_one_document_comes_from_every_stretch_of_the_file(limit, seed):
    found = sample_documents(rows(limit * 7), limit, seed)
    assert [row["idx"] // 7 for row in found] == list(range(limit))


def test_the_seed_fixes_the_sample():
    whole = rows(300)
    assert sample_documents(whole, 20, 1) == sample_documents(whole, 20, 1)
    assert sample_documents(whole, 20, 1) != sample_documents(whole, 20, 2)


def test_a_limit_above_the_number_of_documents_keeps_all():
    whole = rows(5)
    assert sample_documents(whole, 5, 1) == sample_documents(whole, 99, 1) == whole


@given(limit=st.integers(1, 20), seed=st.integers(0, 5))
def test_paragraphs_of_muserc_are_sampled_whole(limit, seed):
    whole = muserc(17)
    found = sample_documents(whole, limit, seed)
    chosen = {document_key(row) for row in found}
    assert len(chosen) == min(limit, 17)
    assert found == [row for row in whole if document_key(row) in chosen]


# --- few-shot examples ------------------------------------------------------------------------------------------------


@given(count=st.integers(0, 30), labels=st.integers(1, 3), seed=st.integers(0, 9))
def test_labels_of_shots_are_balanced(count, labels, seed):
    shots = draw_shots(rows(90, labels), count, seed)
    assert len({row["idx"] for row in shots}) == len(shots) == count
    numbers = [Counter(row["label"] for row in shots)[label] for label in range(labels)]
    assert max(numbers) - min(numbers) <= 1


def test_a_rare_label_is_used_up_before_balance_is_given_up():
    whole = [{"idx": number, "label": int(number < 2)} for number in range(50)]
    assert Counter(row["label"] for row in draw_shots(whole, 8, 0)) == {0: 6, 1: 2}


def test_shots_do_not_depend_on_the_number_of_a_process_but_on_the_seed():
    whole = rows(60)
    assert draw_shots(whole, 6, 1) == draw_shots(whole, 6, 1)
    assert draw_shots(whole, 6, 1) != draw_shots(whole, 6, 2)


def test_labels_of_shots_are_not_always_in_the_same_order():
    orders = {tuple(row["label"] for row in draw_shots(rows(60), 4, seed)) for seed in range(30)}
    assert len(orders) > 3


@given(count=st.integers(0, 12), seed=st.integers(0, 9))
def test_one_answer_of_a_paragraph_is_shown(count, seed):
    shots = draw_shots(muserc(12), count, seed)
    assert len({document_key(row) for row in shots}) == count


@pytest.mark.parametrize("whole", [rows(3), muserc(3)])
def test_too_few_documents_are_an_error_with_their_number(whole):
    with pytest.raises(ValueError, match="only 3 documents"):
        draw_shots(whole, 4, 0)


def test_documents_without_labels_are_drawn_at_large():
    whole = [{"idx": {"passage": number // 2, "query": number}} for number in range(20)]
    assert len({row["idx"]["query"] for row in draw_shots(whole, 7, 0)}) == 7


def test_the_rows_given_stay_as_they_are():
    whole = rows(10)
    draw_shots(whole, 4, 0)
    sample_documents(whole, 4, 0)
    assert whole == rows(10)


@pytest.mark.parametrize("task", [task for task in RUSSIAN_SUPERGLUE if task != "lidirus"])
def test_shots_of_the_mini_set_are_balanced(task):
    whole = [document.row() for document in load_split(task, "train", "mini").documents]
    shots = draw_shots(whole, 6, 1234)
    if task != "rucos":
        assert len(set(Counter(row["label"] for row in shots).values())) == 1
