"""The training loop, on accelerate: it brings devices, mixed precision and processes, and leaves the loop to us.

transformers.Trainer would not do: its batches come from one data set in one order and its checkpoints hold pickles,
while a step here sums batches of several tasks, whose lower layers may come from the disk.

Every batch of every step follows from the seed, every step seeds its own noise, and gradients are summed over batches
before anything is divided: so a resumed run and a run on several processes give the numbers of one undisturbed run.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from adapters.base import OutOfMemory
from adapters.torch_backend import raise_if_out_of_memory
from harness.errors import UserError
from harness.training.evaluation import mean_figure, task_figures
from harness.training.examples import Example
from harness.training.frozen import FrozenStates
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
from harness.training.schedule import make_schedule, one_epoch
from harness.training.state import Progress, load_state, save_state

LOG = "log.jsonl"
# Cross-entropy over a handful of choices: e**-50 for the right one is no loss but a model that has blown up.
EXPLODED_LOSS = 50.0
# Documents of each task by which its head's inputs are standardised.
STANDARDISING_DOCUMENTS = 48
Examples = Mapping[str, Sequence[Example]]


@dataclass(frozen=True)
class Evaluation:
    """Figures on validation after `step` steps: task -> metric -> value, and the mean of the official ones."""

    step: int
    mean: float
    figures: dict[str, dict[str, float]]


class Trainer:
    """One training run.

    Args:
        recipe: what to do.
        model: at its start.
        train, validation: examples by task.
        frozen: keeps what the frozen layers give; its sequences are the train examples, then the validation ones.
        accelerator: devices and processes.
        work: directory for states and the log.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: MultitaskModel,
        train: Examples,
        validation: Examples,
        frozen: FrozenStates | None,
        accelerator: Accelerator,
        work: Path,
    ) -> None:
        self.recipe = recipe
        self.model = model
        self.train_examples = train
        self.validation = validation
        self.work = work
        self.progress = Progress()
        self._frozen = frozen
        self._accelerator = accelerator
        self._numbers = {id(example): number for number, example in enumerate(all_examples(train, validation))}
        self._weights = task_weights(recipe, {task: len(examples) for task, examples in train.items()})
        self._parameters = trained_parameters(model, recipe)
        heads = [p for name, p in self._parameters.items() if name.startswith(("head_", "log_"))]
        body = [p for name, p in self._parameters.items() if not name.startswith(("head_", "log_"))]
        groups = [
            {"params": body, "peak": recipe.learning_rate, "weight_decay": recipe.weight_decay},
            {"params": heads, "peak": recipe.heads_learning_rate, "weight_decay": 0.0},
        ]
        self._optimiser = torch.optim.AdamW([group for group in groups if group["params"]], lr=recipe.learning_rate)

    def run(
        self,
        on_start: Callable[[int], object],
        on_step: Callable[[int, float], object],
        on_evaluation: Callable[[Evaluation], object],
        on_best: Callable[[Evaluation], object],
    ) -> Progress:
        """Trains from the latest state to the end, or until the mean on validation stops rising.

        Args:
            on_start: called with the number of steps done before.
            on_step: called with (step, loss) after every step.
            on_evaluation: called after every evaluation.
            on_best: called when the mean is the best so far; saves the checkpoint.

        Raises:
            UserError: the loss is not finite or has exploded, memory is short, the disk is full. The best checkpoint
                and the latest state stand.
        """
        recipe = self.recipe
        self.progress = load_state(self.work, self._kept_tensors(), self._optimiser)
        if self.progress.step == 0:
            with self._memory_advice():
                self._standardise_heads()
        on_start(self.progress.step)
        with _Log(self.work / LOG, self.progress.step, self._accelerator.is_main_process) as log:
            schedule = make_schedule(
                self.train_examples,
                steps=recipe.steps,
                batches_per_step=recipe.batches_per_step,
                batch_tokens=recipe.batch_tokens,
                temperature=recipe.sampling_temperature,
                seed=recipe.seed,
            )
            started = time.monotonic() - self.progress.seconds
            while self.progress.step < recipe.steps and not self._is_patience_over():
                with self._memory_advice():
                    entry = self._step(schedule[self.progress.step])
                self.progress.step += 1
                log.write({"step": self.progress.step, **entry})
                on_step(self.progress.step, entry["loss"])
                last = self.progress.step == recipe.steps
                if self.progress.step % recipe.evaluate_every == 0 or last:
                    with self._memory_advice():
                        evaluation = self.evaluate()
                    log.write({"step": evaluation.step, "mean": evaluation.mean, "figures": evaluation.figures})
                    on_evaluation(evaluation)
                    self._note(evaluation, on_best)
                self.progress.seconds = time.monotonic() - started
                if self.progress.step % recipe.save_every == 0 or last:
                    self._save()
        return self.progress

    def _kept_tensors(self) -> dict[str, torch.Tensor]:
        """What a state keeps: trained parameters, and the measures that the heads' training started with."""
        return {**self._parameters, **{name: value for name, value in self.model.named_buffers() if "head_" in name}}

    @torch.no_grad()
    def _standardise_heads(self) -> None:
        """Measures what each head reads of some training documents before anything is trained."""
        self.model.eval()
        for task, kind in self.model.layout.kinds.items():
            if kind == "likelihood":
                continue
            examples = self.train_examples[task]
            chosen = examples[:: max(1, len(examples) // STANDARDISING_DOCUMENTS)]
            states = []
            for batch in one_epoch(chosen, self.recipe.batch_tokens):
                inputs, lower = self._inputs([chosen[number] for number in batch])
                with self._accelerator.autocast():
                    states.append(self.model.read_states(inputs, lower).float())
            self.model.standardise(task, torch.cat(states))

    def _is_patience_over(self) -> bool:
        return self.recipe.patience is not None and self.progress.since_best >= self.recipe.patience

    def _note(self, evaluation: Evaluation, on_best: Callable[[Evaluation], object]) -> None:
        best = self.progress.best_mean
        if best is not None and evaluation.mean <= best:
            self.progress.since_best += 1
            return
        self.progress.best_mean = evaluation.mean
        self.progress.best_step = evaluation.step
        self.progress.since_best = 0
        on_best(evaluation)

    def _save(self) -> None:
        if self._accelerator.is_main_process:
            save_state(self.work, self.progress, self._kept_tensors(), self._optimiser)
        self._accelerator.wait_for_everyone()

    def _step(self, batches: Sequence[tuple[str, list[int]]]) -> dict[str, Any]:
        """One optimiser step. Gives what the log keeps of it."""
        accelerator, recipe = self._accelerator, self.recipe
        rate = learning_rate_share(recipe, self.progress.step)
        for group in self._optimiser.param_groups:
            group["lr"] = group["peak"] * rate
        self.model.train()
        losses = torch.zeros(len(batches), device=accelerator.device)
        for number in range(accelerator.process_index, len(batches), accelerator.num_processes):
            task, chosen = batches[number]
            # Noise (LoRA's dropout) depends on the batch alone, not on what ran before or on which process.
            torch.manual_seed(recipe.seed + self.progress.step * recipe.batches_per_step + number)
            examples = [self.train_examples[task][index] for index in chosen]
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
        """The batch's part of the unified loss, and its questions' plain mean cross-entropy (detached)."""
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
        """Scores of all choices of a batch, float32 [choices]."""
        inputs, lower = self._inputs(examples)
        with self._accelerator.autocast():
            return self.model(inputs, lower, task)

    def _inputs(self, examples: Sequence[Example]) -> tuple[Inputs, torch.Tensor]:
        """A batch, and the output of the frozen layers for it."""
        inputs = make_inputs([example.packed for example in examples], self.model.window, self._accelerator.device)
        with self._accelerator.autocast():
            return inputs, self._lower(inputs, examples)

    def _lower(self, inputs: Inputs, examples: Sequence[Example]) -> torch.Tensor:
        """Output of the frozen layers for a batch, from the disk where it is kept.

        Where any example's is missing, the whole batch is computed, so that the numbers do not depend on what a killed
        run had kept already.
        """
        if self._frozen is None:
            return self.model.lower(inputs)
        numbers = [self._numbers[id(example)] for example in examples]
        kept = [self._frozen.get(number) for number in numbers]
        if all(states is not None for states in kept):
            width = inputs.tokens.shape[1]
            padded = np.zeros((len(kept), width, kept[0].shape[1]), dtype=kept[0].dtype)  # type: ignore[union-attr]
            for row, states in enumerate(kept):
                padded[row, : len(states)] = states  # type: ignore[arg-type]
            return _from_stored(padded).to(self._accelerator.device)
        lower = self.model.lower(inputs)
        stored = _to_stored(lower)
        for row, (number, example, states) in enumerate(zip(numbers, examples, kept, strict=True)):
            if states is None:
                self._frozen.put(number, stored[row, : len(example.packed)])
            else:
                lower[row, : len(states)] = _from_stored(np.array(states)).to(lower.device)
        return lower

    def _sum_over_processes(self) -> None:
        if self._accelerator.num_processes == 1:
            return
        for parameter in self._parameters.values():
            # A task that only other processes had in this step leaves no gradient here.
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = self._accelerator.reduce(gradient, reduction="sum")

    @torch.no_grad()
    def evaluate(self) -> Evaluation:
        """The official metrics on the validation examples."""
        self.model.eval()
        accelerator = self._accelerator
        figures = {}
        for task, examples in self.validation.items():
            batches = one_epoch(examples, self.recipe.batch_tokens)
            scored: list[tuple[int, np.ndarray]] = []
            for batch in batches[accelerator.process_index :: accelerator.num_processes]:
                scores = self._scores(task, [examples[number] for number in batch]).float().cpu().numpy()
                borders = np.cumsum([examples[number].packed.sequences for number in batch])[:-1]
                scored.extend(zip(batch, np.split(scores, borders), strict=True))
            if accelerator.num_processes > 1:
                scored = gather_object(scored)
            by_number = dict(scored)
            figures[task] = task_figures(task, [(one, by_number[number]) for number, one in enumerate(examples)])
        return Evaluation(self.progress.step, mean_figure(figures), figures)

    def _check(self, found: float, limit: float, task: str) -> None:
        """Raises UserError for a loss or gradient that no training can go on from."""
        if found < limit:  # not so for NaN
            return
        best = self.progress.best_step
        kept = f"the checkpoint of step {best} is kept in {self.work}" if best else "no checkpoint was made yet"
        raise UserError(
            f"the loss or its gradient is {found:.3g} at step {self.progress.step + 1}, task {task}; {kept}",
            "lower learning_rate or raise warmup_steps in the recipe",
        )

    @contextlib.contextmanager
    def _memory_advice(self) -> Iterator[None]:
        """Says what lowers the use of memory when there is not enough."""
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


def all_examples(train: Examples, validation: Examples) -> list[Example]:
    """All examples in the order in which `FrozenStates` numbers them."""
    return [example for part in (train, validation) for examples in part.values() for example in examples]


def learning_rate_share(recipe: Recipe, step: int) -> float:
    """The share of the learning rate in the step after `step` steps: a linear warm-up, then the recipe's decay to 0."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[recipe.schedule]


def _to_stored(states: torch.Tensor) -> np.ndarray:
    states = states.detach().cpu()
    return states.view(torch.uint16).numpy() if states.dtype == torch.bfloat16 else states.float().numpy()


def _from_stored(states: np.ndarray) -> torch.Tensor:
    tensor = torch.from_numpy(states)
    return tensor.view(torch.bfloat16) if states.dtype == np.uint16 else tensor


class _Log:
    """log.jsonl, a line a step or an evaluation; lines after the state that training goes on from are dropped."""

    def __init__(self, path: Path, step: int, writes: bool) -> None:
        self._path, self._step, self._writes = path, step, writes

    def __enter__(self) -> _Log:
        if self._writes:
            lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []
            kept = [line for line in lines if _step_of(line) <= self._step]
            self._file = self._path.open("w", encoding="utf-8")
            self._file.writelines(line + "\n" for line in kept)
        return self

    def write(self, entry: dict[str, Any]) -> None:
        if self._writes:
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()

    def __exit__(self, *_: object) -> None:
        if self._writes:
            self._file.close()


def _step_of(line: str) -> float:
    """The step of a line of the log; infinite for one that a kill cut short."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return math.inf
