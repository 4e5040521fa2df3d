"""Heads: their rows in one matrix, what they read and how their scores become probabilities."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import UserError
from harness.models.heads import (
    Heads,
    check_prompts,
    choice_scores,
    head_sequences,
    log_softmax,
    make_layout,
    pair_scores,
)
from harness.scoring.encoding import TextEncoder, encode_pairs
from harness.tasks import RUSSIAN_SUPERGLUE, HeadKind, get_task, trainable_tasks
from harness.tasks.prompts import choose
from tests.tiny_gemma import make_tiny_tokenizer

TOKENIZER = make_tiny_tokenizer()
ENCODER = TextEncoder(TOKENIZER)
TRAINED = trainable_tasks()

layouts = st.permutations(TRAINED).flatmap(
    lambda tasks: st.fixed_dictionaries({task: st.sampled_from(get_task(task).head_kinds) for task in tasks})
)

# --- which head -------------------------------------------------------------------------------------------------------


def test_lidirus_is_answered_by_the_head_of_terra_and_all_others_by_their_own():
    assert {task: get_task(task).head_owner for task in RUSSIAN_SUPERGLUE} == {
        task: task for task in RUSSIAN_SUPERGLUE
    } | {"lidirus": "terra"}


@pytest.mark.parametrize("task", TRAINED)
def test_every_tasks_usual_head_is_one_it_may_have(task):
    assert get_task(task).head in get_task(task).head_kinds
    assert set(get_task(task).head_kinds) <= set(get_args(HeadKind))


def test_only_tasks_with_two_labels_may_have_a_sigmoid_and_only_those_without_words_of_their_own_are_ranked():
    assert {task for task in TRAINED if "sigmoid" in get_task(task).head_kinds} == set(TRAINED) - {
        "rcb",
        "parus",
        "rucos",
    }
    assert {task for task in TRAINED if "ranking" in get_task(task).head_kinds} == {"parus", "rucos"}


# --- rows -------------------------------------------------------------------------------------------------------------


@given(kinds=layouts)
def test_rows_of_heads_are_disjoint_and_leave_the_first_one_free(kinds):
    layout = make_layout(kinds)
    rows = [row for task in kinds for row in layout.rows_of(task)]
    assert sorted(rows) == list(range(1, layout.rows))


@given(kinds=layouts)
def test_every_choice_is_scored_by_a_row_of_its_own_task_or_by_the_constant(kinds):
    layout = make_layout(kinds)
    for task, kind in kinds.items():
        own = list(layout.rows_of(task))
        if kind == "pair":  # whose choices are scored by all its rows together
            assert len(own) > 2
            continue
        rows = [layout.row(task, choice) for choice in range(len(get_task(task).labels) or 4)]
        if kind == "classification":
            assert rows == own
        elif kind == "sigmoid":
            assert rows == [0, *own]
        elif kind == "ranking":
            assert set(rows) == set(own)
        else:
            assert own == []


def test_the_order_of_the_tasks_is_the_order_of_their_rows():
    layout = make_layout(
        {"terra": "classification", "parus": "likelihood", "muserc": "sigmoid", "rcb": "classification"}
    )
    assert layout.starts == {"terra": 1, "parus": 3, "muserc": 3, "rcb": 4}
    assert layout.rows == 7


# --- scores -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def heads() -> Heads:
    """Heads with random numbers, the constant row zero."""
    layout = make_layout({"terra": "sigmoid", "rcb": "classification"})
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(layout.rows, 8)), rng.normal(size=layout.rows)
    weight[0] = bias[0] = 0
    return Heads(layout, weight.astype(np.float32), bias.astype(np.float32))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_scores_are_the_chosen_entries_of_the_whole_matrix_product(heads, dtype):
    rng = np.random.default_rng(1)
    hidden = rng.normal(size=(6, 8)).astype(dtype)
    sources, rows = rng.integers(0, 6, 40), rng.integers(0, heads.layout.rows, 40)
    scores, flags = heads.project(hidden, sources, rows)
    product = hidden.astype(np.float64) @ heads.weight.astype(np.float64).T + heads.bias
    np.testing.assert_allclose(scores, product[sources, rows], rtol=1e-12)
    assert scores.dtype == np.float64
    assert flags.tolist() == [False] * 40


def test_the_first_label_of_a_sigmoid_head_scores_nothing(heads):
    hidden = np.random.default_rng(2).normal(size=(5, 8)).astype(np.float32)
    rows = np.array([heads.layout.row("terra", choice) for choice in (0, 1)])
    for number in range(5):
        scores, _ = heads.project(hidden, np.array([number, number]), rows)
        assert scores[0] == 0
        logit = float(hidden[number].astype(np.float64) @ heads.weight[1].astype(np.float64) + heads.bias[1])
        assert np.exp(log_softmax(scores))[1] == pytest.approx(1 / (1 + math.exp(-logit)))


@given(values=st.lists(st.floats(-10, 10), min_size=6, max_size=6))
def test_a_pair_head_compares_the_features_of_two_texts_and_adds_what_both_allow(values):
    near, x, y, other_near, other_x, other_y = values
    expected = near + other_near - (x - other_x) ** 2 - (y - other_y) ** 2
    assert choice_scores("pair", values) == pytest.approx([0, expected])
    assert choice_scores("pair", [*values[3:], *values[:3]]) == choice_scores("pair", values)  # in either order
    torch.testing.assert_close(
        pair_scores(torch.tensor([values, values], dtype=torch.float64).view(2, 2, 3)),
        torch.tensor([expected] * 2, dtype=torch.float64),
    )


def test_the_scores_of_other_heads_are_those_of_their_choices():
    assert choice_scores("classification", [0.5, -1.0, 2.0]) == [0.5, -1.0, 2.0]


@given(scores=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
def test_log_softmax_is_scipys_and_its_probabilities_sum_to_one(scores):
    found = log_softmax(scores)
    np.testing.assert_allclose(found, scipy.special.log_softmax(scores), rtol=1e-12, atol=1e-9)
    assert np.exp(found).sum() == pytest.approx(1)


# --- what a head reads ------------------------------------------------------------------------------------------------

PROMPT = "Текст: снег тает.\nВопрос: тает ли снег?\nОтвет:"
PAIRS = [(PROMPT, " да"), (PROMPT, " нет")]
LAYOUT = make_layout({"rcb": "classification", "terra": "classification", "muserc": "sigmoid", "parus": "ranking"})


def read(task: str, pairs: list[tuple[str, str]], context_length: int = 1000) -> list[tuple[list[int], int]]:
    """(tokens that the head reads, its row) of each choice."""
    sequences = head_sequences(ENCODER, LAYOUT, task, pairs, context_length)
    for sequence in sequences:
        assert sequence.continuation_start == len(sequence.tokens) - 1  # one virtual token, which is scored
    return [(list(sequence.inputs), sequence.tokens[-1]) for sequence in sequences]


@pytest.mark.parametrize(("task", "rows"), [("terra", [4, 5]), ("lidirus", [4, 5]), ("muserc", [0, 6])])
def test_a_classifying_head_reads_the_prompt_and_no_answer(task, rows):
    assert read(task, PAIRS) == [(TOKENIZER(PROMPT).input_ids, row) for row in rows]


def test_a_ranking_head_reads_each_candidate_after_the_prompt():
    pairs = [("Пошёл снег. Следствие:", " Стало светло."), ("Пошёл снег. Следствие:", " Все уснули.")]
    assert read("parus", pairs) == [
        (TOKENIZER("Пошёл снег. Следствие: Стало светло.").input_ids, 7),
        (TOKENIZER("Пошёл снег. Следствие: Все уснули.").input_ids, 7),
    ]


def test_a_pair_head_reads_each_text_with_every_row():
    layout = make_layout({"terra": "sigmoid", "russe": "pair"})
    pairs = [("Слово: ключ\n", "Ключ от дома."), ("Слово: ключ\n", "Ключ бьёт из земли.")]
    sequences = head_sequences(ENCODER, layout, "russe", pairs, 1000)
    texts = [TOKENIZER(context + text).input_ids for context, text in pairs]
    assert [sequence.tokens for sequence in sequences] == [
        (*tokens, row) for tokens in texts for row in layout.rows_of("russe")
    ]


@pytest.mark.parametrize(("prompt", "kind"), [("texts", "sigmoid"), ("dictionary", "pair")])
def test_a_prompt_of_two_texts_is_for_a_pair_head_alone(prompt, kind):
    chosen = choose(["russe", "terra"], f"russe={prompt}")
    fitting = "dictionary, sense, same, senses" if prompt == "texts" else "texts"
    with pytest.raises(UserError, match=rf"prompt {prompt} of russe gives .* \(prompts that fit: {fitting}"):
        check_prompts(chosen, {"russe": kind, "terra": "sigmoid"})
    check_prompts(choose(["russe"], "texts"), {"russe": "pair"})
    check_prompts(choose(["russe", "gen_russe"]), {})


def test_heads_do_not_read_the_white_space_at_the_end():
    assert read("terra", [(PROMPT + " \n", "да")]) == [(TOKENIZER(PROMPT).input_ids, 4)]


def test_a_likelihood_head_reads_what_the_language_model_does():
    layout = make_layout({"terra": "likelihood"})
    for task in ("terra", "lidirus"):
        assert head_sequences(ENCODER, layout, task, PAIRS, 1000) == encode_pairs(ENCODER, PAIRS, 1000)


@pytest.mark.parametrize("task", ["terra", "parus"])
def test_a_text_longer_than_the_context_loses_its_left_end_but_not_its_bos(task):
    whole = read(task, PAIRS)
    for (tokens, row), (cut, cut_row), sequence in zip(
        whole, read(task, PAIRS, 20), head_sequences(ENCODER, LAYOUT, task, PAIRS, 20), strict=True
    ):
        assert cut == [TOKENIZER.bos_token_id, *tokens[-19:]]
        assert cut_row == row
        assert sequence.dropped == len(tokens) - 20


def test_a_likelihood_head_refuses_a_candidate_that_fills_the_context():
    layout = make_layout({"parus": "likelihood"})
    with pytest.raises(UserError, match="fills the model's context"):
        head_sequences(ENCODER, layout, "parus", [("Да", " слово" * 40)], 16)
