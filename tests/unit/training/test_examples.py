"""Documents to training examples: which choices are right, and how passages are cut to fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from harness.data import load_split
from harness.models.chat import Template
from harness.models.heads import HeadLayout, make_layout
from harness.scoring.encoding import TextEncoder
from harness.tasks import HeadKind, document_key, get_task, trainable_tasks
from harness.tasks.prompts import choose
from harness.tasks.rendering import load_tasks
from harness.training.examples import Encoding, Example, make_examples
from tests.tiny_gemma import make_tiny_tokenizer

Row = dict[str, Any]

TOKENIZER = make_tiny_tokenizer()
KINDS: dict[str, HeadKind] = {task: get_task(task).head for task in trainable_tasks()}
LIKELIHOOD = make_layout(dict.fromkeys(KINDS, "likelihood"))
USUAL = make_layout(KINDS)
UNLIMITED = 1_000_000
PASSAGES = {"rcb": "premise", "terra": "premise", "muserc": "paragraph", "danetqa": "passage", "rucos": "passage"}
QUESTIONS = {"rcb": "hypothesis", "terra": "hypothesis", "muserc": "question", "danetqa": "question"}


@pytest.fixture(scope="module")
def tasks() -> dict[str, Any]:
    return load_tasks(choose(list(KINDS)), data="mini", split="validation")


def rows(task: str) -> list[Row]:
    return [document.row() for document in load_split(task, "train", "mini").documents]


def made(
    tasks: dict[str, Any], task: str, whole: list[Row], layout: HeadLayout = USUAL, max_tokens: int = UNLIMITED
) -> list[Example]:
    encoding = Encoding(TextEncoder(TOKENIZER), Template(TOKENIZER, applied=False), layout, max_tokens)
    return make_examples(get_task(task), tasks[f"rsg_{task}"], whole, encoding)


def sequences(example: Example) -> list[list[int]]:
    """The tokens of each packed sequence, put together again from its branch of the tree."""
    packed, found = example.packed, []
    for choice in range(packed.sequences):
        predictions = packed.predictions[packed.predictions[:, 2] == choice]
        end = int(predictions[-1, 0])
        branch = np.arange(end + 1)[packed.subtree_end[: end + 1] > end]
        found.append([*packed.tokens[branch].tolist(), int(predictions[-1, 1])])
    return found


def longest(example: Example) -> int:
    return max(map(len, sequences(example)))


def text(tokens: list[int]) -> str:
    return TOKENIZER.decode(tokens, skip_special_tokens=True)


def right_texts(example: Example) -> list[list[str]]:
    """For each question the texts whose likelihood is scored and which are right."""
    texts = [text(tokens) for tokens in sequences(example)]
    return [
        [texts[place] for place in np.flatnonzero((example.questions == number) & example.right)]
        for number in range(len(example.docs))
    ]


# --- right answers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("rcb", ["Ответ: следует", "Ответ: противоречит", "Ответ: не связана"]),
        ("terra", ["Ответ: да", "Ответ: нет"]),  # entailment, not_entailment
        ("muserc", ["Верно? нет", "Верно? да"]),
        ("rwsd", ["Ответ: нет", "Ответ: да"]),
        ("danetqa", ["Ответ: нет", "Ответ: да"]),
    ],
)
def test_the_right_choice_is_the_word_of_the_documents_label(tasks, task, words):
    found = dict.fromkeys(range(len(words)), 0)
    for example in made(tasks, task, rows(task), LIKELIHOOD):
        for doc, right in zip(example.docs, right_texts(example), strict=True):
            assert len(right) == 1
            assert right[0].endswith(words[doc["label"]])
            found[doc["label"]] += 1
    assert all(found.values())


def test_the_right_choice_of_parus_is_its_sentence(tasks):
    for example in made(tasks, "parus", rows("parus")):
        (doc,) = example.docs
        choices = [doc["choice1"], doc["choice2"]]
        assert [doc["label"] == number for number in range(2)] == example.right.tolist()
        ranked = [text(tokens[:-1]) for tokens in sequences(example)]
        assert [one.endswith(choice) for one, choice in zip(ranked, choices, strict=True)] == [True, True]


def test_every_entity_among_the_answers_of_rucos_is_right(tasks):
    whole = rows("rucos")
    whole[0] = {**whole[0], "answers": [whole[0]["entities"][2], whole[0]["entities"][0]]}
    examples = made(tasks, "rucos", whole, LIKELIHOOD)
    assert examples[0].right.tolist()[:4] == [True, False, True, False]
    for example in examples:
        (doc,) = example.docs
        filled = {doc["query"].replace("@placeholder", answer) for answer in doc["answers"]}
        assert {right.rpartition("\n")[2] for right in right_texts(example)[0]} == filled


@pytest.mark.parametrize("task", KINDS)
def test_right_answers_do_not_depend_on_the_kind_of_head(tasks, task):
    usual, scored = made(tasks, task, rows(task)), made(tasks, task, rows(task), LIKELIHOOD)
    for one, other in zip(usual, scored, strict=True):
        assert one.right.tolist() == other.right.tolist()
        assert one.questions.tolist() == other.questions.tolist()


@pytest.mark.parametrize("task", KINDS)
def test_every_choice_is_one_sequence_and_every_document_comes_in_its_order(tasks, task):
    whole = rows(task)
    examples = made(tasks, task, whole)
    assert [doc for example in examples for doc in example.docs] == whole
    for example in examples:
        assert example.task == task
        assert example.packed.sequences == len(example.right) == len(example.questions)
        assert sorted(set(example.questions.tolist())) == list(range(len(example.docs)))


def test_a_paragraph_of_muserc_is_one_example_with_all_its_answers(tasks):
    whole = rows("muserc")
    examples = made(tasks, "muserc", whole)
    assert len(examples) == len({document_key(row) for row in whole}) < len(whole)
    for example in examples:
        assert len({document_key(doc) for doc in example.docs}) == 1
        # the paragraph, far longer than any question, is there once
        assert len(example.packed) < 0.5 * sum(map(len, sequences(example)))


# --- passages cut to fit ----------------------------------------------------------------------------------------------


def cut_and_whole(
    tasks: dict[str, Any], task: str, excess: int, layout: HeadLayout = USUAL
) -> tuple[list[tuple[Example, Example]], int]:
    """(cut, whole) examples with a limit `excess` tokens below the longest sequence, and the limit."""
    whole = made(tasks, task, rows(task), layout)
    limit = max(map(longest, whole)) - excess
    return list(zip(made(tasks, task, rows(task), layout, limit), whole, strict=True)), limit


@pytest.mark.parametrize("layout", [USUAL, LIKELIHOOD], ids=["usual heads", "likelihood"])
@pytest.mark.parametrize("excess", [1, 20, 50])
@pytest.mark.parametrize("task", QUESTIONS)
def test_passages_are_cut_to_the_limit_and_no_more_than_needed(tasks, task, excess, layout):
    pairs, limit = cut_and_whole(tasks, task, excess, layout)
    cut = [(one, before) for one, before in pairs if one.cut]
    assert cut
    for one, before in cut:
        assert longest(one) <= limit < longest(before)
        assert one.cut == longest(before) - longest(one)
        # a word, the next fiftieth of the passage and a token or two are the most that is lost beyond need
        assert longest(one) > limit - 25 - len(before.docs[0][PASSAGES[task]]) / 50


@pytest.mark.parametrize("task", PASSAGES)
def test_examples_within_the_limit_stay_as_they_are(tasks, task):
    pairs, limit = cut_and_whole(tasks, task, 20)
    assert any(one.cut for one, _ in pairs)
    for one, before in pairs:
        if longest(before) <= limit:
            assert one.cut == 0
            assert sequences(one) == sequences(before)


@pytest.mark.parametrize("task", QUESTIONS)
def test_a_passage_loses_whole_words_from_its_end_and_nothing_else_changes(tasks, task):
    for one, before in cut_and_whole(tasks, task, 50)[0]:
        if not one.cut:
            continue
        passage = before.docs[0][PASSAGES[task]]
        for tokens, tokens_before in zip(sequences(one), sequences(before), strict=True):
            assert tokens[-1] == tokens_before[-1]
            shown = text(tokens[:-1])
            head, tail = text(tokens_before[:-1]).split(passage)
            assert shown.startswith(head)
            assert shown.endswith(tail)
            kept = shown[len(head) : len(shown) - len(tail)]
            assert kept
            assert passage.startswith(kept + " ")


def test_the_answers_of_a_cut_paragraph_share_it_still(tasks):
    for one, before in cut_and_whole(tasks, "muserc", 50)[0]:
        if one.cut:
            assert len(before.packed) - len(one.packed) == one.cut


@pytest.mark.parametrize("task", PASSAGES)
def test_a_cut_example_keeps_its_document_and_its_right_answers(tasks, task):
    for one, before in cut_and_whole(tasks, task, 50)[0]:
        assert one.docs == before.docs
        assert one.right.tolist() == before.right.tolist()
        assert one.questions.tolist() == before.questions.tolist()


def test_every_entity_of_a_cut_rucos_passage_is_still_asked_about(tasks):
    pairs, limit = cut_and_whole(tasks, "rucos", 20)
    cut = [(one, before) for one, before in pairs if one.cut]
    assert cut
    for one, before in cut:
        assert longest(one) <= limit
        (doc,) = one.docs
        filled = [doc["query"].replace("@placeholder", entity) for entity in doc["entities"]]
        assert [text(tokens[:-1]).rpartition("\n")[2] for tokens in sequences(one)] == filled
        assert one.packed.sequences == before.packed.sequences


def test_a_rucos_passage_cut_beyond_a_headline_fits_the_limit(tasks):
    pairs, limit = cut_and_whole(tasks, "rucos", 150)
    assert all(longest(one) <= limit for one, _ in pairs)


@pytest.mark.parametrize("task", ["parus", "russe", "rwsd"])
def test_a_document_without_a_passage_is_never_cut(tasks, task):
    for one, before in cut_and_whole(tasks, task, 30)[0]:
        assert one.cut == 0
        assert sequences(one) == sequences(before)


def test_a_passage_that_leaves_no_room_is_dropped_whole(tasks):
    (example,) = made(tasks, "danetqa", rows("danetqa")[:1], max_tokens=16)
    (doc,) = example.docs
    assert text(sequences(example)[0][:-1]) == f"Текст: \nВопрос: {doc['question']}\nОтвет:"


# --- pairs of texts ---------------------------------------------------------------------------------------------------


def paired(max_tokens: int) -> tuple[list[Row], list[Example]]:
    """Every two of six sentences about a word, and the examples made of them."""
    sentences = [f"Пример номер {number} со словом ключ." for number in range(6)]
    whole = [
        {"idx": 6 * one + other, "word": "ключ", "label": (one + other) % 2, "sentence1": sentences[one],
         "sentence2": sentences[other], "start1": 0, "end1": 0, "start2": 0, "end2": 0}
        for one in range(6) for other in range(one)
    ]  # fmt: skip
    layout = make_layout({"russe": "pair"})
    encoding = Encoding(TextEncoder(TOKENIZER), Template(TOKENIZER, applied=False), layout, max_tokens)
    renderer = load_tasks(choose(["russe"], "texts"), data="mini", split="validation")["rsg_russe"]
    return whole, make_examples(get_task("russe"), renderer, whole, encoding)


def test_documents_that_compare_the_same_texts_are_one_example_with_each_text_once():
    whole, (example,) = paired(UNLIMITED)
    assert sorted(doc["idx"] for doc in example.docs) == sorted(row["idx"] for row in whole)
    assert example.questions.tolist() == [number for number in range(len(whole)) for _ in range(2)]
    assert example.right.reshape(-1, 2).tolist() == [[not doc["label"], bool(doc["label"])] for doc in example.docs]
    texts = {tuple(tokens[:-1]) for tokens in sequences(example)}
    assert len(texts) == 6
    assert len(example.packed) < sum(map(len, texts))  # they share their beginning


def test_examples_of_pairs_keep_to_the_limit_and_lose_no_document():
    whole, examples = paired(240)
    assert len(examples) > 1
    assert sorted(doc["idx"] for example in examples for doc in example.docs) == sorted(row["idx"] for row in whole)
    assert all(len(example.packed) <= 240 for example in examples)
