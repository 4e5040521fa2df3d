"""A training recipe: one YAML file that, together with its data, decides a training run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

import task_configs
from adapters.registry import BACKENDS
from harness.errors import UserError, nearest_hint
from harness.tasks import HeadKind, get_task, task_names

ROUNDED_WEIGHTS = ("whole", *(kind.name for kind in BACKENDS.values() if "bits" in kind.settings))
RECIPE_DIR = Path(task_configs.__file__).parent / "recipes"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TaskRecipe(_Part):
    """How one task takes part."""

    head: HeadKind | None = None  # None: the task's default kind
    weight: float = Field(default=1.0, gt=0)  # factor of its loss, where `loss.weights` is "fixed"
    limit: int | None = Field(default=None, ge=1)  # documents, evenly sampled from the train split
    more: tuple[str, ...] = ()  # data sources whose train documents are added: written, or as --data takes them
    prompt: str | None = None  # a prompt of the task file; None: its default
    class_weights: tuple[Annotated[float, Field(gt=0)], ...] | None = None  # factors of the loss by label


class LoraRecipe(_Part):
    """Low-rank adaptation (Hu et al. 2021, https://arxiv.org/abs/2106.09685) of the layers that are not frozen."""

    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: tuple[str, ...] | None = None  # names of projections (q_proj); None: all linear layers


class LossRecipe(_Part):
    """How the tasks' losses become one."""

    # fixed: each task's own `weight`. size: documents ** (1 / temperature), with a mean of 1.
    # uncertainty: learned, Kendall et al. 2018 (https://arxiv.org/abs/1705.07115).
    weights: Literal["fixed", "size", "uncertainty"] = "fixed"
    temperature: float = Field(default=2.0, gt=0)


class DistillationRecipe(_Part):
    """How a teacher's soft labels change the loss (Hinton et al. 2015, https://arxiv.org/abs/1503.02531).

    The loss is (1 − weight) · cross-entropy + weight · T² · KL(teacher ‖ student), both softened by the temperature T.
    """

    weight: float = Field(default=0.5, ge=0, le=1)
    temperature: float = Field(default=2.0, gt=0)


class Recipe(_Part):
    """Everything about a training run except its data. Batch sizes are in tokens."""

    model: str
    # whole: the weights as they are. Else a backend: they are rounded as it stores them before anything is trained, and
    # the adapter stays beside them, so that the model runs on that backend as it was trained.
    weights: str = "whole"
    frozen_layers: int = Field(ge=0)
    lora: LoraRecipe | None = LoraRecipe()  # null: the layers that are not frozen are trained in full
    tasks: dict[str, TaskRecipe]
    heads_start: Literal["words", "zero"] = "words"  # words: at the vocabulary's rows of the prompt's verbalizers
    loss: LossRecipe = LossRecipe()
    distillation: DistillationRecipe = DistillationRecipe()  # where train is given --distilled
    steps: int = Field(ge=1)
    batches_per_step: int = Field(default=4, ge=1)  # batches whose gradients are averaged, each of one task
    batch_tokens: int = Field(default=1024, ge=16)
    max_tokens: int = Field(default=1024, ge=16)  # longest prompt; passages are cut to fit
    # A task's share of the batches is proportional to its tokens ** (1 / temperature).
    sampling_temperature: float = Field(default=2.0, gt=0)
    learning_rate: float = Field(gt=0)
    heads_learning_rate: float = Field(gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup_steps: int = Field(default=0, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    max_gradient_norm: float = Field(default=1.0, gt=0)
    evaluate_every: int = Field(default=100, ge=1)  # steps
    evaluate_limit: int | None = Field(default=200, ge=1)  # documents per task
    save_every: int = Field(default=50, ge=1)  # steps between states to resume from
    patience: int | None = Field(default=None, ge=1)  # evaluations without a better mean before training stops
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = False  # the trained layers, by torch.compile, which takes a minute or two at the start
    frozen_cache_gb: float = Field(default=20.0, ge=0)  # disk for the output of the frozen layers, GiB; 0: none
    seed: int = 1234

    def kinds(self) -> dict[str, HeadKind]:
        """Return the kind of every task's head, in the recipe's order."""
        return {task: part.head or get_task(task).head for task, part in self.tasks.items()}


def recipe_names() -> list[str]:
    """Return the names of the bundled recipes."""
    return sorted(path.stem for path in RECIPE_DIR.glob("*.yaml"))


def load_recipe(name: str, **changes: Any) -> Recipe:
    """Load a bundled recipe by its name, or a YAML file by its path.

    Args:
        name: The name or the path.
        changes: Values in place of the file's; None: as in the file.

    Raises:
        UserError: No such recipe, no YAML, an unknown key or task, or a value that is not allowed.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else RECIPE_DIR / f"{name}.yaml"
    if not path.is_file():
        raise UserError(f"no recipe {name!r}", nearest_hint(name, recipe_names(), "recipes, or the path of a .yaml"))
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {getattr(error, 'problem', error)}", "fix the file") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys", f"see {RECIPE_DIR / 'gemma-3-270m.yaml'}")
    values |= {key: value for key, value in changes.items() if value is not None}
    if isinstance(values.get("tasks"), dict):
        values["tasks"] = {task: {} if part is None else part for task, part in values["tasks"].items()}
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise _explained(path, error) from error
    _check_recipe(path, recipe)
    return recipe


def _explained(path: Path, error: ValidationError) -> UserError:
    """Return the first fault as an error for the user."""
    # Unknown keys first: a misspelt key is also a missing one.
    first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = list(_keys_at(first["loc"]))
        return UserError(f"{path}: unknown key {where!r}", nearest_hint(str(first["loc"][-1]), known, "keys here"))
    return UserError(f"{path}: {where}: {first['msg'].lower()}", "fix the recipe")


def _keys_at(location: tuple[Any, ...]) -> Iterator[str]:
    parts: dict[str, type[BaseModel]] = {
        "tasks": TaskRecipe,
        "lora": LoraRecipe,
        "loss": LossRecipe,
        "distillation": DistillationRecipe,
    }
    model = parts.get(str(location[0]), Recipe) if len(location) > 1 else Recipe
    yield from model.model_fields


def _check_recipe(path: Path, recipe: Recipe) -> None:
    if recipe.weights not in ROUNDED_WEIGHTS:
        raise UserError(
            f"{path}: no weights {recipe.weights!r}", nearest_hint(recipe.weights, ROUNDED_WEIGHTS, "weights")
        )
    if recipe.weights != "whole" and recipe.lora is None:
        raise UserError(
            f"{path}: layers that are trained in full cannot stay in the weights of {recipe.weights}",
            "give the recipe a lora, or weights: whole",
        )
    if not recipe.tasks:
        raise UserError(f"{path}: no tasks to train on", f"tasks: {', '.join(_trainable())}")
    for name, part in recipe.tasks.items():
        _check_task(path, name, part)


def _check_task(path: Path, name: str, part: TaskRecipe) -> None:
    if name not in task_names():
        raise UserError(f"{path}: unknown task {name!r}", nearest_hint(name, _trainable(), "tasks"))
    task = get_task(name)
    if not task.is_trainable:
        answered = f": the head of {task.borrows} answers it" if task.borrows else ""
        raise UserError(f"{path}: {name} is a test set and is never trained on", f"leave it out{answered}")
    if part.head and part.head not in task.head_kinds:
        raise UserError(f"{path}: {name} cannot have a {part.head} head", f"it takes {', '.join(task.head_kinds)}")
    if part.class_weights is not None:
        count = len(task.labels)
        if (part.head or task.head) == "ranking" or len(part.class_weights) != count:
            raise UserError(
                f"{path}: tasks.{name}.class_weights does not fit", f"one number for each of its {count} labels"
            )


def _trainable() -> list[str]:
    """Return the names of all tasks with a train split, those that a user added too."""
    return [name for name in task_names() if get_task(name).is_trainable]
