"""The training loop, on accelerate: it brings devices, mixed precision and processes, and leaves the loop to us.

transformers.Trainer would not do: its batches come from one data set in one order and its checkpoints hold pickles,
while a step here sums batches of several tasks, whose lower layers may come from the disk.

Every batch of every step follows from the seed, every step seeds its own noise, and gradients are summed over batches
before anything is divided. So a resumed run and a run on several processes compute the numbers of one undisturbed run.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from adapters.base import OutOfMemory
from adapters.torch_backend import raise_if_out_of_memory
from harness.errors import UserError
from harness.progress import Bar
from harness.training.data import Examples
from harness.training.examples import Example
from harness.training.frozen import FrozenLayers
from harness.training.log import TrainingLog
from harness.training.loss import (
    batch_loss,
    batch_soft_labels,
    batch_targets,
    distilled_losses,
    question_losses,
    task_weights,
)
from harness.training.model import Inputs, MultitaskModel, make_inputs, trained_parameters
from harness.training.recipe import Recipe
from harness.training.schedule import learning_rate_share, make_schedule, one_epoch
from harness.training.state import Position, load_state, save_state
from harness.training.validation import ValidationScores, task_scores, validation_scores

# Cross-entropy over a handful of choices: e**-50 for the right choice is no loss but a model that has blown up.
EXPLODED_LOSS = 50.0
# Documents of each task by which its head's inputs are standardised.
STANDARDISING_DOCUMENTS = 48

log = logging.getLogger(__name__)


class Trainer:
    """One training run.

    Args:
        recipe: What to do.
        model: At its start.
        examples: To train on and to validate with.
        frozen: The frozen layers of the model.
        accelerator: Devices and processes.
        work: Directory for states and the log.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: MultitaskModel,
        examples: Examples,
        frozen: FrozenLayers,
        accelerator: Accelerator,
        work: Path,
    ) -> None:
        self.recipe = recipe
        self.model = model
        self.examples = examples
        self.work = work
        self.position = Position()
        self._frozen = frozen
        self._accelerator = accelerator
        self._weights = task_weights(recipe, {task: len(found) for task, found in examples.train.items()})
        self._parameters = trained_parameters(model, recipe)
        heads = [p for name, p in self._parameters.items() if name.startswith(("head_", "log_"))]
        body = [p for name, p in self._parameters.items() if not name.startswith(("head_", "log_"))]
        groups = [
            {"params": body, "peak": recipe.learning_rate, "weight_decay": recipe.weight_decay},
            {"params": heads, "peak": recipe.heads_learning_rate, "weight_decay": 0.0},
        ]
        self._optimiser = torch.optim.AdamW([group for group in groups if group["params"]], lr=recipe.learning_rate)

    def run(self, save_best: Callable[[ValidationScores], None]) -> Position:
        """Train from the latest state to the end, or until the mean on validation stops rising.

        Args:
            save_best: Called when the mean is the best so far; saves the checkpoint.

        Returns:
            Where the run ended.

        Raises:
            UserError: The loss is not finite or has exploded, memory is short, or the disk is full. The best checkpoint
                and the latest state stay.
        """
        recipe = self.recipe
        self.position = load_state(self.work, self._kept_tensors(), self._optimiser)
        if self.position.step == 0:
            with self._memory_advice():
                self._standardise_heads()
        schedule = make_schedule(
            self.examples.train,
            steps=recipe.steps,
            batches_per_step=recipe.batches_per_step,
            batch_tokens=recipe.batch_tokens,
            temperature=recipe.sampling_temperature,
            seed=recipe.seed,
        )
        with (
            TrainingLog(self.work, self.position.step, self._accelerator.is_main_process) as lines,
            Bar("training", recipe.steps, "step", self.position.step) as bar,
        ):
            started = time.monotonic() - self.position.seconds
            while self.position.step < recipe.steps and not self._is_patience_over():
                with self._memory_advice():
                    entry = self._step(schedule[self.position.step])
                self.position.step += 1
                lines.step(self.position.step, entry)
                bar.advance(1, f"loss {entry['loss']:.3f}")
                last = self.position.step == recipe.steps
                if self.position.step % recipe.evaluate_every == 0 or last:
                    with self._memory_advice():
                        scores = self.validate()
                    lines.validation(scores)
                    self._note(scores, save_best)
                self.position.seconds = time.monotonic() - started
                if self.position.step % recipe.save_every == 0 or last:
                    self._save()
        return self.position

    def _kept_tensors(self) -> dict[str, torch.Tensor]:
        """Return what a state keeps: trained parameters, and the statistics by which the heads' inputs are scaled."""
        return {**self._parameters, **{name: value for name, value in self.model.named_buffers() if "head_" in name}}

    @torch.no_grad()
    def _standardise_heads(self) -> None:
        """Let each head read standardised states, measured on some training documents before anything is trained."""
        self.model.eval()
        for task, kind in self.model.layout.kinds.items():
            if kind == "likelihood":
                continue
            examples = self.examples.train[task]
            chosen = examples[:: max(1, len(examples) // STANDARDISING_DOCUMENTS)]
            states = []
            for batch in one_epoch(chosen, self.recipe.batch_tokens):
                inputs, lower = self._inputs([chosen[number] for number in batch])
                with self._accelerator.autocast():
                    states.append(self.model.read_states(inputs, lower).float())
            self.model.standardise(task, torch.cat(states))

    def _is_patience_over(self) -> bool:
        return self.recipe.patience is not None and self.position.since_best >= self.recipe.patience

    def _note(self, found: ValidationScores, save_best: Callable[[ValidationScores], None]) -> None:
        """Tell the scores, and save the model if they are the best so far."""
        parts = ", ".join(f"{task} {100 * metrics['rsg']:.1f}" for task, metrics in found.scores.items())
        log.info("step %d: mean %.1f (%s)", found.step, 100 * found.mean, parts)
        best = self.position.best_mean
        if best is not None and found.mean <= best:
            self.position.since_best += 1
            return
        self.position.best_mean = found.mean
        self.position.best_step = found.step
        self.position.since_best = 0
        save_best(found)

    def _save(self) -> None:
        if self._accelerator.is_main_process:
            save_state(self.work, self.position, self._kept_tensors(), self._optimiser)
        self._accelerator.wait_for_everyone()

    def _step(self, batches: Sequence[tuple[str, list[int]]]) -> dict[str, Any]:
        """Make one step of the optimiser; return what the log keeps of it."""
        accelerator, recipe = self._accelerator, self.recipe
        rate = learning_rate_share(recipe, self.position.step)
        for group in self._optimiser.param_groups:
            group["lr"] = group["peak"] * rate
        self.model.train()
        losses = torch.zeros(len(batches), device=accelerator.device)
        for number in range(accelerator.process_index, len(batches), accelerator.num_processes):
            task, chosen = batches[number]
            # Noise (LoRA's dropout) depends on the batch alone, not on what ran before or on which process.
            torch.manual_seed(recipe.seed + self.position.step * recipe.batches_per_step + number)
            examples = [self.examples.train[task][index] for index in chosen]
            loss, plain = self._loss(task, examples)
            self._check(float(plain), EXPLODED_LOSS, task)
            (loss / len(batches)).backward()
            losses[number] = plain
        self._sum_over_processes()
        losses = accelerator.reduce(losses, reduction="sum")
        norm = torch.nn.utils.clip_grad_norm_(list(self._parameters.values()), recipe.max_gradient_norm)
        self._check(float(norm), math.inf, ", ".join(sorted({task for task, _ in batches})))
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        values = losses.tolist()
        by_task: dict[str, list[float]] = {}
        for (task, _), value in zip(batches, values, strict=True):
            by_task.setdefault(task, []).append(value)
        return {
            "loss": sum(values) / len(values),
            "tasks": {task: sum(parts) / len(parts) for task, parts in by_task.items()},
            "gradient_norm": float(norm),
            "learning_rate": recipe.learning_rate * rate,
        }

    def _loss(self, task: str, examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the batch's part of the loss, and its questions' plain mean cross-entropy (detached)."""
        scores = self._scores(task, examples)
        questions, right, count = batch_targets(examples, scores.device)
        losses = question_losses(scores, questions, right, count)
        plain = losses.detach().mean()
        soft = batch_soft_labels(examples, scores.device)
        if soft is not None:
            losses = distilled_losses(losses, scores, soft, questions, self.recipe.distillation)
        labels = [doc.get("label", -1) for example in examples for doc in example.docs]
        log_variance = None
        if self.recipe.loss.weights == "uncertainty":
            log_variance = self.model.log_variances[list(self.model.layout.kinds).index(task)]
        loss = batch_loss(
            losses,
            torch.tensor(labels, device=scores.device),
            self.recipe.tasks[task].class_weights,
            self._weights[task],
            log_variance,
        )
        return loss, plain

    def _scores(self, task: str, examples: Sequence[Example]) -> torch.Tensor:
        """Return the scores of all choices of a batch, float32 [choices]."""
        inputs, lower = self._inputs(examples)
        with self._accelerator.autocast():
            return self.model(inputs, lower, task)

    def _inputs(self, examples: Sequence[Example]) -> tuple[Inputs, torch.Tensor | None]:
        """Return a batch, and the output of the frozen layers for it."""
        inputs = make_inputs([example.packed for example in examples], self.model.windows, self._accelerator.device)
        with self._accelerator.autocast():
            return inputs, self._frozen(inputs, examples)

    def _sum_over_processes(self) -> None:
        if self._accelerator.num_processes == 1:
            return
        for parameter in self._parameters.values():
            # A task that only other processes had in this step leaves no gradient here.
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = self._accelerator.reduce(gradient, reduction="sum")

    @torch.no_grad()
    def validate(self) -> ValidationScores:
        """Return the official metrics on the validation examples."""
        self.model.eval()
        accelerator = self._accelerator
        scores = {}
        for task, examples in self.examples.validation.items():
            batches = one_epoch(examples, self.recipe.batch_tokens)
            scored: list[tuple[int, np.ndarray]] = []
            for batch in batches[accelerator.process_index :: accelerator.num_processes]:
                found = self._scores(task, [examples[number] for number in batch]).float().cpu().numpy()
                borders = np.cumsum([len(examples[number].right) for number in batch])[:-1]
                scored.extend(zip(batch, np.split(found, borders), strict=True))
            if accelerator.num_processes > 1:
                scored = gather_object(scored)
            by_number = dict(scored)
            scores[task] = task_scores([(example, by_number[number]) for number, example in enumerate(examples)])
        return validation_scores(self.position.step, scores)

    def _check(self, found: float, limit: float, task: str) -> None:
        """Raise UserError for a loss or gradient from which no training can continue."""
        if found < limit:  # not so for NaN
            return
        best = self.position.best_step
        kept = f"the checkpoint of step {best} is kept in {self.work}" if best else "no checkpoint was made yet"
        raise UserError(
            f"the loss or its gradient is {found:.3g} at step {self.position.step + 1}, task {task}; {kept}",
            "lower learning_rate or raise warmup_steps in the recipe",
        )

    @contextlib.contextmanager
    def _memory_advice(self) -> Iterator[None]:
        """Turn a lack of memory into a UserError that names the settings which lower its use."""
        recipe = self.recipe
        advice = f"lower batch_tokens (now {recipe.batch_tokens}) or max_tokens (now {recipe.max_tokens}) in the recipe"
        try:
            yield
        except MemoryError as error:
            raise UserError("not enough memory", advice) from error
        except RuntimeError as error:
            try:
                raise_if_out_of_memory(error)
            except OutOfMemory:
                raise UserError(f"not enough memory on {self._accelerator.device.type}", advice) from error
            raise
