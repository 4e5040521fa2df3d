"""`rsg-harness train`: recipe and data to a checkpoint."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState

from adapters.torch_backend import load_tokenizer, pick_dtype
from harness.errors import UserError
from harness.files import GIB, cache_dir, write_atomically
from harness.models.resolve import KEPT_CHECKPOINTS, LocalModel, resolve_model
from harness.settings import check_same_settings
from harness.training.board import Board
from harness.training.data import Splits, TrainingData, load_splits, prepare
from harness.training.distilled import DistilledData, read_distilled
from harness.training.frozen import FrozenStates
from harness.training.model import MultitaskModel, build_model, count_layers
from harness.training.recipe import Recipe, load_recipe
from harness.training.saving import save_checkpoint, training_record
from harness.training.trainer import LOG, Evaluation, Trainer, all_examples

_SETTINGS = "settings.json"
_BEST = "best-"
_EVENTS = "tensorboard"


@dataclass(frozen=True)
class TrainOptions:
    """What the user asked for; see `rsg-harness train --help`."""

    recipe: str
    data: str = "mini"
    output: Path | None = None
    resume: bool = False
    distilled: tuple[Path, ...] = ()
    command: str = "rsg-harness train"
    model: str | None = None  # in place of the recipe's


def train(
    options: TrainOptions,
    say: Callable[[str], None] = lambda text: None,
    progress: Callable[[int], Callable[[int, str], None]] | None = None,
) -> Path:
    """Trains a multitask model and writes its checkpoint.

    Args:
        options: recipe, data, where to.
        say: told what happens, line by line.
        progress: called with the number of steps; gives a function to call with (step, text to show beside).

    Returns:
        The checkpoint's directory.

    Raises:
        UserError: anything that the user can mend. The best checkpoint and the latest state stay for --resume.
    """
    recipe = load_recipe(options.recipe)
    if options.model is not None:
        recipe = recipe.model_copy(update={"model": options.model})
    output = options.output or KEPT_CHECKPOINTS / f"{Path(options.recipe).stem}-rsg"
    # accelerate takes each of several processes without a CUDA device for a single one, unless it is told this.
    on_cpus = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.cuda.is_available()
    dtype = pick_dtype(recipe.dtype, PartialState(cpu=on_cpus).device.type)
    accelerator = Accelerator(cpu=on_cpus, mixed_precision="bf16" if dtype is torch.bfloat16 else "no")
    if not accelerator.is_main_process:
        say = _silent
        progress = None
    work = output.with_name(output.name + ".training")
    if accelerator.is_main_process:
        _check_place(output, work, options.resume)
    splits = load_splits(recipe, options.data, say)
    distilled = read_distilled(options.distilled) if options.distilled else None
    base = resolve_model(recipe.model, say)
    count_layers(recipe, base.path)  # a recipe that cannot work leaves no unfinished run behind
    settings = _settings(recipe, base, splits, distilled)
    if accelerator.is_main_process:
        _agree(work, settings, options.resume)
    accelerator.wait_for_everyone()
    tokenizer = load_tokenizer(base.path)
    data = prepare(recipe, options.data, splits, tokenizer, say, distilled)
    model, wrapper = build_model(recipe, base.path, data.layout, accelerator.device, dtype)
    if recipe.heads_start == "words":
        _start_heads(model, data, tokenizer)
    with accelerator.main_process_first():
        frozen = _frozen_states(recipe, base, data, model, dtype, say)
    trainer = Trainer(recipe, model, data.train, data.validation, frozen, accelerator, work)
    board = Board(work / _EVENTS, accelerator.is_main_process)

    def save_best(evaluation: Evaluation) -> None:
        if accelerator.is_main_process:
            directory = work / f"{_BEST}{evaluation.step:06d}"
            if not directory.exists():  # else a killed run came this far already
                record = training_record(settings, data, evaluation, options.command, accelerator.num_processes)
                save_checkpoint(directory, output.name, recipe, base, data, model, wrapper, record)
            for older in work.glob(f"{_BEST}[0-9]*"):
                if older != directory:
                    shutil.rmtree(older)
        accelerator.wait_for_everyone()

    def report(evaluation: Evaluation) -> None:
        board.evaluation(evaluation)
        parts = ", ".join(f"{task} {100 * parts['rsg']:.1f}" for task, parts in evaluation.figures.items())
        say(f"step {evaluation.step}: mean {100 * evaluation.mean:.1f} ({parts})")

    show = progress(recipe.steps) if progress else _show_nothing

    def start(step: int) -> None:
        board.start(step)
        show(step, "")

    def step_done(step: int, loss: float) -> None:
        board.step(step, loss)
        show(step, f"loss {loss:.3f}")

    trainer.run(start, step_done, report, save_best)
    board.close()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _publish(work, output)
    accelerator.end_training()
    return output


def _silent(text: str) -> None:
    """For processes other than the first."""


def _show_nothing(step: int, text: str) -> None:
    """Where nobody watches."""


def _check_place(output: Path, work: Path, resume: bool) -> None:
    """Makes the directory where states and logs stand until the checkpoint is whole: beside it, as NAME.training.

    Raises:
        UserError: a finished checkpoint or another run is in the way, or there is nothing to resume.
    """
    if output.exists():
        raise UserError(f"{output} exists already", "name another --output, or remove it")
    started = (work / _SETTINGS).exists()
    if started and not resume:
        raise UserError(f"{work} holds an unfinished training run", "go on with --resume, or remove it")
    if resume and not started:
        raise UserError(f"no training run to resume in {work}", "leave out --resume, or name its --output")
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {work}: {error.strerror}", "name another --output") from error


def _settings(recipe: Recipe, base: LocalModel, splits: Splits, distilled: DistilledData | None) -> dict[str, Any]:
    """Everything that decides a run's numbers, but the number of processes. A resumed run must have the same."""
    return {
        "recipe": recipe.model_dump(mode="json"),
        "base model": base.fingerprint,
        "data": {f"{task} {split}": found.fingerprint for (task, split), found in splits.items()},
        "distilled": distilled.record() if distilled else None,
    }


def _agree(work: Path, settings: dict[str, Any], resume: bool) -> None:
    """Keeps a new run's settings, or compares a resumed run's with them.

    Raises:
        UserError: they differ; says where.
    """
    path = work / _SETTINGS
    if not resume:
        write_atomically(path, json.dumps(settings, ensure_ascii=False, indent=2))
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    check_same_settings(work, before, settings, "repeat its recipe and data, or train to another --output")


def _start_heads(model: MultitaskModel, data: TrainingData, tokenizer: Any) -> None:
    for task, kind in data.layout.kinds.items():
        if kind in ("classification", "sigmoid"):
            words = data.chosen[task].words()
            model.start_from_words(task, [tokenizer(f" {word}", add_special_tokens=False).input_ids for word in words])


def _frozen_states(
    recipe: Recipe,
    base: LocalModel,
    data: TrainingData,
    model: MultitaskModel,
    dtype: torch.dtype,
    say: Callable[[str], None],
) -> FrozenStates | None:
    limit = int(recipe.frozen_cache_gb * GIB)
    if not limit or not recipe.frozen_layers:
        return None
    packed = [example.packed for example in all_examples(data.train, data.validation)]
    name = str(dtype).removeprefix("torch.")
    identity = (base.fingerprint, recipe.frozen_layers, name, torch.__version__)
    width = model.head_weight.shape[1]
    return FrozenStates(cache_dir() / "frozen", identity, packed, width, name, limit, say)


def _publish(work: Path, output: Path) -> None:
    """Moves the best checkpoint into place, with the log and TensorBoard's events; the states go."""
    best = max(work.glob(f"{_BEST}[0-9]*"))
    # Copied, so that a kill in between leaves all that --resume needs.
    shutil.copyfile(work / LOG, best / "training_log.jsonl")
    shutil.copytree(work / _EVENTS, best / _EVENTS, dirs_exist_ok=True)
    os.rename(best, output)
    shutil.rmtree(work)
