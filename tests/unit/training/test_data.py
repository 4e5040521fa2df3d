"""A recipe's data: further train documents, and their numbers."""

from __future__ import annotations

import pytest

from harness.data import load_split
from harness.errors import UserError
from harness.models.chat import Template
from harness.scoring.encoding import TextEncoder
from harness.tasks import get_task
from harness.training.data import _behind, load_splits, prepare_data
from harness.training.recipe import Recipe, TaskRecipe
from tests.tiny_gemma import make_tiny_tokenizer

TOKENIZER = make_tiny_tokenizer()
WRITTEN = ("terra", "rcb", "parus", "rwsd", "danetqa", "russe")


def recipe_with(**tasks: TaskRecipe) -> Recipe:
    return Recipe(
        model="tiny", frozen_layers=0, tasks=tasks, steps=1, learning_rate=1e-3, heads_learning_rate=1e-3,
        max_tokens=100_000, evaluate_limit=2,
    )  # fmt: skip


def test_documents_of_further_sources_are_trained_on_and_nothing_else_changes():
    recipe = recipe_with(rcb=TaskRecipe(limit=5, more=("written",)), terra=TaskRecipe())
    splits = load_splits(recipe, "mini")
    assert set(splits) == {
        ("rcb", "train"),
        ("rcb", "validation"),
        ("rcb", "train of written"),
        ("terra", "train"),
        ("terra", "validation"),
    }
    data = prepare_data(recipe, "mini", splits, Template(TOKENIZER, applied=False), TextEncoder(TOKENIZER))
    written = splits["rcb", "train of written"].documents
    docs = [doc for example in data.examples.train["rcb"] for doc in example.docs]
    assert len(docs) == 5 + len(written)
    assert [doc["premise"] for doc in docs[5:]] == [document.premise for document in written]
    assert len({doc["idx"] for doc in docs}) == len(docs)
    assert len(data.examples.train["terra"]) == len(splits["terra", "train"].documents)
    assert len(data.examples.validation["rcb"]) == 2


def test_documents_move_behind_others_number_by_number():
    assert _behind([{"idx": 4}, {"idx": 2}], [{"idx": 0, "label": 1}, {"idx": 7}]) == [
        {"idx": 5, "label": 1},
        {"idx": 12},
    ]
    held = [{"idx": {"paragraph": 3, "question": 8}}]
    added = [{"idx": {"paragraph": 0, "question": 0}}, {"idx": {"paragraph": 0, "question": 1}}]
    assert [row["idx"] for row in _behind(held, added)] == [
        {"paragraph": 4, "question": 9}, {"paragraph": 4, "question": 10},
    ]  # fmt: skip
    assert _behind(held, []) == []


def test_a_source_without_the_task_is_refused():
    with pytest.raises(UserError, match="no train documents of muserc are written"):
        load_splits(recipe_with(muserc=TaskRecipe(more=("written",))), "mini")


@pytest.mark.parametrize("task", WRITTEN)
def test_written_documents_are_balanced_and_each_there_once(task):
    rows = [document.row() for document in load_split(task, "train", "written").documents]
    assert len(rows) >= 350
    names = [field.name for field in get_task(task).fields]
    assert len({tuple(row[name] for name in names) for row in rows}) == len(rows)
    counts = [sum(row["label"] == label for row in rows) for label in range(len(get_task(task).labels))]
    assert max(counts) <= 1.1 * min(counts)
    if task == "rwsd":
        assert all(row["span1_start"] >= 0 and row["span2_start"] >= 0 for row in rows)
