"""Recipes: what a YAML file may say, and what a person is told where it says something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.errors import UserError
from harness.tasks import get_task, trainable_tasks
from harness.training.recipe import LoraRecipe, Recipe, load_recipe, recipe_names

SMALL: dict[str, Any] = {
    "model": "embedded",
    "frozen_layers": 2,
    "tasks": {"terra": {}},
    "steps": 10,
    "learning_rate": 1e-4,
    "heads_learning_rate": 1e-3,
}


def written(directory: Path, content: str | bytes) -> str:
    path = directory / "own.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def loaded(directory: Path, **changes: Any) -> Recipe:
    return load_recipe(written(directory, yaml.safe_dump({**SMALL, **changes})))


def refusal(directory: Path, **changes: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        loaded(directory, **changes)
    assert str(directory / "own.yaml") in caught.value.message
    return caught.value


# --- what is accepted -------------------------------------------------------------------------------------------------


def test_a_recipe_of_the_required_keys_is_enough(tmp_path):
    recipe = loaded(tmp_path)
    assert (recipe.model, recipe.frozen_layers, recipe.steps) == ("embedded", 2, 10)
    assert recipe.lora == LoraRecipe()
    assert recipe.loss.weights == "fixed"


def test_a_recipe_is_found_by_its_path_and_keeps_what_it_says(tmp_path):
    recipe = loaded(
        tmp_path,
        tasks={"terra": {"weight": 2, "limit": 5, "prompt": "then"}, "rcb": {"class_weights": [1, 2, 3]}},
        lora={"rank": 4, "targets": ["q_proj"]},
        loss={"weights": "size", "temperature": 3},
    )
    assert recipe.tasks["terra"].model_dump() == {
        "head": None,
        "weight": 2.0,
        "limit": 5,
        "more": (),
        "prompt": "then",
        "class_weights": None,
    }
    assert recipe.tasks["rcb"].class_weights == (1, 2, 3)
    assert recipe.lora is not None
    assert (recipe.lora.rank, recipe.lora.alpha, recipe.lora.targets) == (4, 32, ("q_proj",))
    assert (recipe.loss.weights, recipe.loss.temperature) == ("size", 3)


def test_values_of_the_command_replace_those_of_the_file_and_none_leaves_them(tmp_path):
    path = written(tmp_path, yaml.safe_dump(SMALL))
    recipe = load_recipe(path, model="other", weights=None)
    assert (recipe.model, recipe.weights) == ("other", "whole")
    assert load_recipe(path, weights="mlx-q4").weights == "mlx-q4"


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        ({"weights": "mlx-q44"}, "no weights 'mlx-q44'", "mlx-q4"),
        ({"weights": "torch"}, "no weights 'torch'", "whole, mlx-q8"),
        ({"weights": "mlx-q4", "lora": None}, "layers that are trained in full cannot stay", "weights: whole"),
    ],
)
def test_weights_that_nothing_can_be_trained_for_are_refused(tmp_path, changes, message, hint):
    error = refusal(tmp_path, **changes)
    assert message in error.message
    assert hint in error.hint


def test_a_task_without_settings_takes_part_as_usual(tmp_path):
    assert loaded(tmp_path, tasks={"terra": None}) == loaded(tmp_path, tasks={"terra": {}})


def test_no_lora_means_full_training_of_the_layers(tmp_path):
    assert loaded(tmp_path, lora=None).lora is None


def test_a_number_with_an_exponent_and_no_dot_is_a_number(tmp_path):
    """YAML 1.1 reads 4e-4 as a text."""
    content = yaml.safe_dump({key: value for key, value in SMALL.items() if key != "learning_rate"})
    assert load_recipe(written(tmp_path, content + "learning_rate: 4e-4\n")).learning_rate == 4e-4


@pytest.mark.parametrize("name", recipe_names())
def test_every_bundled_recipe_loads_by_its_name(name):
    recipe = load_recipe(name)
    assert recipe.tasks
    assert "lidirus" not in recipe.tasks


def test_there_is_a_bundled_recipe():
    assert "gemma-3-270m" in recipe_names()


def test_every_task_but_lidirus_has_a_usual_head(tmp_path):
    """The first kind that the task's answers allow, but for MuSeRC, whose answers are judged one at a time."""
    assert len(trainable_tasks()) == 8
    kinds = loaded(tmp_path, tasks=dict.fromkeys(trainable_tasks())).kinds()
    assert kinds == {**{task: get_task(task).head_kinds[0] for task in trainable_tasks()}, "muserc": "sigmoid"}


def test_a_head_that_is_named_takes_the_place_of_the_usual_one(tmp_path):
    tasks = {"parus": {"head": "likelihood"}, "terra": None, "muserc": {"head": "classification"}}
    kinds = loaded(tmp_path, tasks=tasks).kinds()
    assert kinds == {"parus": "likelihood", "terra": "classification", "muserc": "classification"}
    assert list(kinds) == list(loaded(tmp_path, tasks=tasks).tasks)


# --- unknown names ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "where", "nearest"),
    [
        ({"stepz": 5}, "stepz", "steps"),
        ({"learning_rat": 0.1}, "learning_rat", "learning_rate"),
        ({"tasks": {"terra": {"wieght": 2}}}, "tasks.terra.wieght", "weight"),
        ({"tasks": {"terra": {}, "rcb": {"promt": "statement"}}}, "tasks.rcb.promt", "prompt"),
        ({"lora": {"rnak": 4}}, "lora.rnak", "rank"),
        ({"loss": {"temprature": 4}}, "loss.temprature", "temperature"),
    ],
)
def test_an_unknown_key_names_its_place_and_the_nearest_one(tmp_path, changes, where, nearest):
    error = refusal(tmp_path, **changes)
    assert f"unknown key '{where}'" in error.message
    assert error.hint.startswith(f"did you mean {nearest}")


def test_a_required_key_that_is_misspelt_is_unknown_rather_than_missing(tmp_path):
    misspelt = {"learning_rte" if key == "learning_rate" else key: value for key, value in SMALL.items()}
    with pytest.raises(UserError, match="unknown key 'learning_rte'"):
        load_recipe(written(tmp_path, yaml.safe_dump(misspelt)))


def test_a_key_like_no_other_lists_the_keys_of_its_place(tmp_path):
    assert refusal(tmp_path, lora={"xyz": 1}).hint == "keys here: rank, alpha, dropout, targets"


def test_a_key_of_another_place_is_unknown(tmp_path):
    assert "unknown key 'lora.steps'" in refusal(tmp_path, lora={"steps": 1}).message


@pytest.mark.parametrize(("name", "hint"), [("tera", "did you mean terra"), ("xyz", "tasks: rcb, parus")])
def test_an_unknown_task_names_the_nearest_one(tmp_path, name, hint):
    error = refusal(tmp_path, tasks={"rcb": {}, name: {}})
    assert f"unknown task '{name}'" in error.message
    assert error.hint.startswith(hint)


@pytest.mark.parametrize("tasks", [{"lidirus": None}, {"terra": {}, "lidirus": {"weight": 1}}])
def test_lidirus_is_never_trained_on(tmp_path, tasks):
    error = refusal(tmp_path, tasks=tasks)
    assert "lidirus is a test set and is never trained on" in error.message
    assert "terra" in error.hint


def test_an_unknown_recipe_names_the_nearest_one():
    with pytest.raises(UserError, match="no recipe 'gemma-3-270'") as caught:
        load_recipe("gemma-3-270")
    assert caught.value.hint.startswith("did you mean gemma-3-270m")


def test_a_recipe_file_that_is_not_there_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="no recipe"):
        load_recipe(str(tmp_path / "missing.yaml"))


# --- values that cannot be --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "head", "allowed"),
    [
        ("rcb", "sigmoid", "classification, likelihood"),
        ("rcb", "ranking", "classification, likelihood"),
        ("parus", "classification", "ranking, likelihood"),
        ("rucos", "sigmoid", "ranking, likelihood"),
        ("terra", "ranking", "classification, sigmoid, pair, likelihood"),
        ("muserc", "ranking", "classification, sigmoid, pair, likelihood"),
    ],
)
def test_a_head_that_does_not_fit_its_task_names_those_that_do(tmp_path, task, head, allowed):
    error = refusal(tmp_path, tasks={task: {"head": head}})
    assert f"{task} cannot have a {head} head" in error.message
    assert error.hint == f"it takes {allowed}"


def test_a_head_that_does_not_exist_is_refused(tmp_path):
    assert "tasks.terra.head" in refusal(tmp_path, tasks={"terra": {"head": "regression"}}).message


@pytest.mark.parametrize(
    ("task", "weights"),
    [("terra", [1]), ("terra", [1, 2, 3]), ("rcb", [1, 2]), ("parus", [1, 2]), ("rucos", [1, 2])],
)
def test_class_weights_that_do_not_fit_the_labels_are_refused(tmp_path, task, weights):
    error = refusal(tmp_path, tasks={task: {"class_weights": weights}})
    assert f"tasks.{task}.class_weights does not fit" in error.message
    assert f"{len(get_task(task).labels)} labels" in error.hint


def test_an_empty_list_of_class_weights_is_refused(tmp_path):
    refusal(tmp_path, tasks={"terra": {"class_weights": []}})


def test_a_task_set_to_false_is_refused(tmp_path):
    refusal(tmp_path, tasks={"rcb": None, "terra": False})


@pytest.mark.parametrize("tasks", [{}, None, ["terra"], {"terra": "yes"}])
def test_tasks_that_are_no_mapping_of_settings_are_refused(tmp_path, tasks):
    assert "tasks" in refusal(tmp_path, tasks=tasks).message


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 1.5}, "steps"),
        ({"frozen_layers": -1}, "frozen_layers"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"learning_rate": "fast"}, "learning_rate"),
        ({"schedule": "exponential"}, "schedule"),
        ({"patience": 0}, "patience"),
        ({"lora": {"dropout": 1}}, "lora.dropout"),
        ({"loss": {"weights": "gradnorm"}}, "loss.weights"),
        ({"tasks": {"terra": {"limit": 0}}}, "tasks.terra.limit"),
        ({"tasks": {"terra": {"weight": 0}}}, "tasks.terra.weight"),
    ],
)
def test_a_value_out_of_range_is_named_by_its_place(tmp_path, changes, where):
    assert f": {where}: " in refusal(tmp_path, **changes).message


@pytest.mark.parametrize("key", SMALL)
def test_a_missing_key_is_named(tmp_path, key):
    content = yaml.safe_dump({name: value for name, value in SMALL.items() if name != key})
    with pytest.raises(UserError, match=f": {key}: field required"):
        load_recipe(written(tmp_path, content))


@pytest.mark.parametrize("content", ["tasks: [", "steps: 1\n\tmodel: x", "a: b: c", b"model: \xff\xfe"])
def test_a_file_that_is_not_yaml_is_a_user_error(tmp_path, content):
    with pytest.raises(UserError, match="not valid YAML"):
        load_recipe(written(tmp_path, content))


@pytest.mark.parametrize("content", ["", "- model\n- steps\n", "embedded"])
def test_a_file_that_is_no_mapping_is_a_user_error(tmp_path, content):
    with pytest.raises(UserError, match="a recipe is a mapping of keys"):
        load_recipe(written(tmp_path, content))
