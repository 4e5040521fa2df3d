"""`rsg-harness train`: a recipe and data to a checkpoint."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState

from adapters.text import load_tokenizer
from adapters.torch_backend import pick_dtype
from harness.errors import UserError
from harness.files import GIB, cache_dir
from harness.models.chat import chat_template
from harness.models.checkpoint import StartRecord
from harness.models.resolve import (
    KEPT_CHECKPOINTS,
    LocalModel,
    find_model,
    provide,
    require_unquantised,
    rounded_model,
)
from harness.progress import show_output
from harness.scoring.encoding import TextEncoder
from harness.settings import check_settings, keep_settings
from harness.tasks import include
from harness.training.check import check_packing, compile_and_check
from harness.training.data import Examples, Splits, TrainingData, chosen_prompts, load_splits, prepare_data
from harness.training.distilled import DistilledData, read_distilled
from harness.training.frozen import FrozenLayers, FrozenStates
from harness.training.log import copy_log
from harness.training.model import MultitaskModel, build_model, check_trainable, require_compiler
from harness.training.options import TrainOptions
from harness.training.recipe import Recipe, load_recipe
from harness.training.saving import TrainedModel, save_checkpoint, training_record
from harness.training.start import continue_from, read_start
from harness.training.trainer import Trainer
from harness.training.validation import ValidationScores

_BEST = "best-"


def train(options: TrainOptions) -> Path:
    """Train a multitask model and write its checkpoint.

    Until the checkpoint is whole, states and log stand beside it, in a directory called NAME.training.

    Returns:
        The checkpoint's directory.

    Raises:
        UserError: Anything that the user can fix. The best checkpoint and the latest state stay for --resume.
    """
    for directory in options.include_path:
        include(directory)
    recipe = load_recipe(options.recipe, model=options.model, weights=options.weights)
    chosen_prompts(recipe)
    output = options.output or KEPT_CHECKPOINTS / f"{Path(options.recipe).stem}-rsg"
    accelerator, dtype = _accelerator(recipe)
    if not accelerator.is_main_process:
        show_output(False)
    if accelerator.is_main_process and output.exists():
        raise UserError(f"{output} exists already", "name another --output, or remove it")
    if recipe.compile:
        require_compiler(accelerator.device)
    reference = find_model(recipe.model)
    splits = load_splits(recipe, options.data)
    distilled = read_distilled(options.distilled) if options.distilled else None
    with accelerator.main_process_first():
        base = provide(reference)
    require_unquantised(base, "train")
    architecture = check_trainable(recipe, base.path)
    start, started = read_start(options.start, base) if options.start else (None, None)
    with accelerator.main_process_first():
        source = base if recipe.weights == "whole" else rounded_model(base, recipe.weights)
    settings = _settings(recipe, base, splits, distilled, started)
    work = output.with_name(output.name + ".training")
    if accelerator.is_main_process:
        check_settings(work, settings, resume=options.resume, what="training run")
    accelerator.wait_for_everyone()
    template = chat_template(load_tokenizer(source.path))
    encoder = TextEncoder(template.tokenizer, architecture.config.vocab_size)
    data = prepare_data(recipe, options.data, splits, template, encoder, distilled)
    model, wrapper = build_model(recipe, source.path, data.layout, accelerator.device, dtype)
    check_packing(model, encoder, dtype)
    if recipe.heads_start == "words":
        _start_heads(model, data)
    if options.start and start:
        continue_from(options.start, start, model, wrapper)
    if recipe.compile:
        compile_and_check(model, encoder, dtype)
    with accelerator.main_process_first():
        frozen = FrozenLayers(model, _frozen_states(recipe, source, data.examples, model, dtype), data.examples.all())
    trained = TrainedModel(recipe, base, data, model, wrapper)
    if accelerator.is_main_process:  # only now: what could not be prepared leaves no unfinished run behind
        keep_settings(work, settings)
    accelerator.wait_for_everyone()

    def save_best(scores: ValidationScores) -> None:
        if accelerator.is_main_process:
            directory = work / f"{_BEST}{scores.step:06d}"
            if not directory.exists():  # else a killed run came this far already
                record = training_record(settings, data, scores, options.command, accelerator.num_processes)
                save_checkpoint(directory, output.name, trained, record)
            for older in work.glob(f"{_BEST}[0-9]*"):
                if older != directory:
                    shutil.rmtree(older)
        accelerator.wait_for_everyone()

    Trainer(recipe, model, data.examples, frozen, accelerator, work).run(save_best)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _publish(work, output)
    accelerator.end_training()
    return output


def _accelerator(recipe: Recipe) -> tuple[Accelerator, torch.dtype]:
    """Return accelerate's view of devices and processes, and the type to compute in."""
    # Without a CUDA device accelerate takes each of several processes for a single one, unless it is told this.
    on_cpus = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.cuda.is_available()
    dtype = pick_dtype(recipe.dtype, PartialState(cpu=on_cpus).device.type)
    return Accelerator(cpu=on_cpus, mixed_precision="bf16" if dtype is torch.bfloat16 else "no"), dtype


def _settings(
    recipe: Recipe, base: LocalModel, splits: Splits, distilled: DistilledData | None, start: StartRecord | None
) -> dict[str, Any]:
    """Return everything that decides a run's numbers, except the number of processes."""
    return {
        "recipe": recipe.model_dump(mode="json"),
        "base model": base.fingerprint,
        "data": {f"{task} {split}": found.fingerprint for (task, split), found in splits.items()},
        "distilled": distilled.record() if distilled else None,
        "start": start.model_dump() if start else None,
    }


def _start_heads(model: MultitaskModel, data: TrainingData) -> None:
    """Start heads at their prompt's verbalizers; those of a prompt without fixed verbalizers start at zero."""
    for task, kind in data.layout.kinds.items():
        verbalizers = data.chosen[task].verbalizers()
        if verbalizers and kind in ("classification", "sigmoid"):
            tokenizer = data.template.tokenizer
            model.start_from_verbalizers(
                task, [tokenizer(f" {word}", add_special_tokens=False).input_ids for word in verbalizers]
            )


def _frozen_states(
    recipe: Recipe, base: LocalModel, examples: Examples, model: MultitaskModel, dtype: torch.dtype
) -> FrozenStates | None:
    limit = int(recipe.frozen_cache_gb * GIB)
    if not limit or not recipe.frozen_layers:
        return None
    name = str(dtype).removeprefix("torch.")
    identity = (base.fingerprint, recipe.frozen_layers, name, torch.__version__)
    packed = [example.packed for example in examples.all()]
    return FrozenStates(cache_dir() / "frozen", identity, packed, model.head_weight.shape[1], name, limit)


def _publish(work: Path, output: Path) -> None:
    """Move the best checkpoint into place, with the log; the states go."""
    best = max(work.glob(f"{_BEST}[0-9]*"))
    copy_log(work, best)  # copied, so that a kill in between leaves all that --resume needs
    os.rename(best, output)
    shutil.rmtree(work)
