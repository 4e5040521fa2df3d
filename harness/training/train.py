"""`rsg-harness train`: recipe and data to a checkpoint."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState

from adapters.torch_backend import load_tokenizer, pick_dtype
from harness.cache import cache_dir
from harness.checkpoint import (
    ADAPTER,
    ADAPTER_CONFIG,
    HEADS,
    LAYERS,
    BaseReference,
    head_descriptions,
    write_checkpoint,
)
from harness.data import Split, cached_split
from harness.data.sampling import sample_documents
from harness.errors import UserError
from harness.evaluation import provenance
from harness.evaluation.catalogue import ChosenTask, choose, prompt_hash
from harness.evaluation.record import write_atomically
from harness.evaluation.rendering import load_tasks
from harness.heads import HeadLayout, make_layout
from harness.models import KEPT_CHECKPOINTS, LocalModel, resolve_model
from harness.scoring.encoding import TextEncoder
from harness.training.card import model_card
from harness.training.examples import Example, make_examples
from harness.training.frozen import GIB, FrozenStates
from harness.training.model import MultitaskModel, build_model
from harness.training.recipe import Recipe, load_recipe
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
    command: str = "rsg-harness train"


@dataclass(frozen=True)
class _Prepared:
    """A recipe's data, rendered and encoded."""

    chosen: dict[str, ChosenTask]
    splits: dict[tuple[str, str], Split]
    train: dict[str, list[Example]]
    validation: dict[str, list[Example]]
    layout: HeadLayout
    chat_template: bool


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
    output = options.output or KEPT_CHECKPOINTS / f"{Path(options.recipe).stem}-rsg"
    processes = PartialState()
    dtype = pick_dtype(recipe.dtype, processes.device.type)
    accelerator = Accelerator(mixed_precision="bf16" if dtype is torch.bfloat16 else "no")
    if not accelerator.is_main_process:
        say = _silent
        progress = None
    work = output.with_name(output.name + ".training")
    if accelerator.is_main_process:
        _check_place(output, work, options.resume)
    splits = _load_splits(recipe, options.data, say)
    base = resolve_model(recipe.model, say)
    settings = _settings(recipe, base, splits)
    if accelerator.is_main_process:
        _agree(work, settings, options.resume)
    accelerator.wait_for_everyone()
    prepared = _prepare(recipe, options.data, splits, base, say)
    model, wrapper = build_model(recipe, base.path, prepared.layout, accelerator.device, dtype)
    _start_heads(recipe, model, prepared, base)
    with accelerator.main_process_first():
        frozen = _frozen_states(recipe, base, prepared, model, dtype, say)
    trainer = Trainer(recipe, model, prepared.train, prepared.validation, frozen, accelerator, work)
    board = _Board(work / _EVENTS, accelerator.is_main_process)

    def save_best(evaluation: Evaluation) -> None:
        if accelerator.is_main_process:
            directory = work / f"{_BEST}{evaluation.step:06d}"
            if not directory.exists():  # else a killed run came this far already
                record = _training_record(recipe, options, prepared, evaluation)
                _save_checkpoint(directory, output.name, recipe, base, prepared, model, wrapper, record)
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


def _load_splits(recipe: Recipe, data: str, say: Callable[[str], None]) -> dict[tuple[str, str], Split]:
    splits = {}
    for task in recipe.tasks:
        for split in ("train", "validation"):
            found = cached_split(task, split, data)
            if not found.documents:
                raise UserError(f"{task} has no {split} documents in {data}", "leave the task out of the recipe")
            for warning in found.warnings:
                say(f"warning: {warning}")
            splits[task, split] = found
    return splits


def _settings(recipe: Recipe, base: LocalModel, splits: Mapping[tuple[str, str], Split]) -> dict[str, Any]:
    """Everything that decides a run's numbers, but the number of processes. A resumed run must have the same."""
    return {
        "recipe": recipe.model_dump(mode="json"),
        "base model": base.fingerprint,
        "data": {f"{task} {split}": found.fingerprint for (task, split), found in splits.items()},
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
    differing = list(_differences(before, json.loads(json.dumps(settings))))
    if differing:
        raise UserError(
            f"{work} was started with other settings: {'; '.join(differing)}",
            "repeat its recipe and data, or train to another --output",
        )


def _differences(before: Any, now: Any, path: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            found
            for key in {**before, **now}
            for found in _differences(before.get(key), now.get(key), f"{path}.{key}" if path else key)
        ]
    if before == now:
        return []
    shown = [value if len(str(value)) < 30 else f"{str(value)[:12]}…" for value in (before, now)]
    return [f"{path} ({shown[0]}, now {shown[1]})"]


def _prepare(
    recipe: Recipe, data: str, splits: Mapping[tuple[str, str], Split], base: LocalModel, say: Callable[[str], None]
) -> _Prepared:
    """Renders, encodes and packs all documents that the run may read."""
    tokenizer = load_tokenizer(base.path)
    encoder = TextEncoder(tokenizer)
    chat_template = bool(tokenizer.chat_template)
    layout = make_layout(recipe.kinds())
    chosen = {task: choose([task], part.prompt)[0] for task, part in recipe.tasks.items()}
    tasks = load_tasks(list(chosen.values()), data=data, split="validation")
    found: dict[str, dict[str, list[Example]]] = {"train": {}, "validation": {}}
    for task, part in recipe.tasks.items():
        limits = {"train": part.limit, "validation": recipe.evaluate_limit}
        for split, limit in limits.items():
            rows = [document.row() for document in splits[task, split].documents]
            if limit is not None:
                rows = sample_documents(rows, limit, recipe.seed)
            found[split][task] = make_examples(
                task, tasks[f"rsg_{task}"], rows, encoder, tokenizer, layout, recipe.max_tokens, chat_template
            )
        examples = found["train"][task]
        tokens = sum(len(example.packed) for example in examples)
        cut = sum(example.cut > 0 for example in examples)
        note = f", {cut} passages cut to {recipe.max_tokens} tokens" if cut else ""
        say(f"{task}: {len(examples)} train documents, {tokens:,} tokens packed{note}")
    return _Prepared(chosen, dict(splits), found["train"], found["validation"], layout, chat_template)


def _start_heads(recipe: Recipe, model: MultitaskModel, prepared: _Prepared, base: LocalModel) -> None:
    if recipe.heads_start == "zero":
        return
    tokenizer = load_tokenizer(base.path)
    for task, kind in prepared.layout.kinds.items():
        if kind in ("classification", "sigmoid"):
            words = prepared.chosen[task].words()
            model.start_from_words(task, [tokenizer(f" {word}", add_special_tokens=False).input_ids for word in words])


def _frozen_states(
    recipe: Recipe,
    base: LocalModel,
    prepared: _Prepared,
    model: MultitaskModel,
    dtype: torch.dtype,
    say: Callable[[str], None],
) -> FrozenStates | None:
    limit = int(recipe.frozen_cache_gb * GIB)
    if not limit or not recipe.frozen_layers:
        return None
    packed = [example.packed for example in all_examples(prepared.train, prepared.validation)]
    name = str(dtype).removeprefix("torch.")
    identity = (base.fingerprint, recipe.frozen_layers, name, torch.__version__)
    width = model.head_weight.shape[1]
    return FrozenStates(cache_dir() / "frozen", identity, packed, width, name, limit, say)


def _training_record(
    recipe: Recipe, options: TrainOptions, prepared: _Prepared, evaluation: Evaluation
) -> dict[str, Any]:
    return {
        "recipe": recipe.model_dump(mode="json"),
        "step": evaluation.step,
        "validation": {
            "limit": recipe.evaluate_limit,
            "mean": evaluation.mean,
            "figures": evaluation.figures,
        },
        "data": {f"{task} {split}": found.fingerprint for (task, split), found in prepared.splits.items()},
        "documents": {task: len(examples) for task, examples in prepared.train.items()},
        "versions": provenance.versions(),
        "machine": provenance.machine(),
        "git_commit": provenance.git_commit(),
        "command": options.command,
    }


def _save_checkpoint(
    directory: Path,
    name: str,
    recipe: Recipe,
    base: LocalModel,
    prepared: _Prepared,
    model: MultitaskModel,
    wrapper: Any,
    record: dict[str, Any],
) -> None:
    weight, bias = model.heads()
    tensors = {HEADS: {"weight": weight.detach().cpu().contiguous(), "bias": bias.detach().cpu().contiguous()}}
    texts = {}
    if wrapper is not None:
        from peft import get_peft_model_state_dict

        state = get_peft_model_state_dict(wrapper)
        tensors[ADAPTER] = {key: value.detach().cpu().contiguous() for key, value in state.items()}
        config = wrapper.peft_config["default"].to_dict()
        config |= {"base_model_name_or_path": base.origin, "inference_mode": True}
        texts[ADAPTER_CONFIG] = json.dumps(config, default=sorted, indent=2) + "\n"
    else:
        tensors[LAYERS] = {
            key.removeprefix("language_model."): value.detach().cpu().contiguous()
            for key, value in model.named_parameters()
            if value.requires_grad and key.startswith("language_model.")
        }
    prompts = {task: (chosen.prompt, prompt_hash(chosen)) for task, chosen in prepared.chosen.items()}
    description = {
        "name": name,
        "base": BaseReference(model=recipe.model, origin=base.origin, sha256=base.fingerprint),
        "adaptation": "layers" if wrapper is None else "lora",
        "frozen_layers": recipe.frozen_layers,
        "chat_template": prepared.chat_template,
        "tasks": head_descriptions(prepared.layout, prompts),
        "head_rows": prepared.layout.rows,
        "training": record,
    }
    write_checkpoint(directory, description, tensors, {**texts, "README.md": model_card(description)})


def _publish(work: Path, output: Path) -> None:
    """Moves the best checkpoint into place, with the log and TensorBoard's events; the states go."""
    best = max(work.glob(f"{_BEST}[0-9]*"))
    # Copied, so that a kill in between leaves all that --resume needs.
    shutil.copyfile(work / LOG, best / "training_log.jsonl")
    shutil.copytree(work / _EVENTS, best / _EVENTS, dirs_exist_ok=True)
    os.rename(best, output)
    shutil.rmtree(work)


class _Board:
    """TensorBoard's event files, beside the log."""

    def __init__(self, directory: Path, writes: bool) -> None:
        self._directory = directory
        self._writes = writes
        self._writer: Any = None

    def start(self, step: int) -> None:
        """Events after the step that training goes on from are struck out."""
        if self._writes:
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(self._directory), purge_step=step + 1)

    def step(self, step: int, loss: float) -> None:
        if self._writer:
            self._writer.add_scalar("train/loss", loss, step)

    def evaluation(self, evaluation: Evaluation) -> None:
        if self._writer:
            self._writer.add_scalar("validation/mean", evaluation.mean, evaluation.step)
            for task, parts in evaluation.figures.items():
                for metric, value in parts.items():
                    self._writer.add_scalar(f"validation/{task}/{metric}", value, evaluation.step)

    def close(self) -> None:
        if self._writer:
            self._writer.close()
