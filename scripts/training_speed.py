"""Measure what the kept output of the frozen layers, compiled layers and packed sequences save in training.

    python scripts/training_speed.py --data path/to/official [--frozen 12]

Trains the embedded model on the same batches with and without the cache, and compiled without it; compares the second
epoch's time and the losses. Then the tokens and the time of MuSeRC packed and as one sequence per answer.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from adapters.text import load_tokenizer
from adapters.torch_backend import pick_dtype
from harness.data import cached_split
from harness.data.sampling import sample_documents
from harness.models.chat import Template
from harness.models.heads import head_sequences, make_layout
from harness.models.resolve import find_model, provide
from harness.scoring.encoding import TextEncoder
from harness.scoring.packing import pack
from harness.tasks import get_task
from harness.tasks.prompts import choose
from harness.tasks.rendering import load_tasks, render_document
from harness.training.check import compile_and_check
from harness.training.data import Examples
from harness.training.examples import Encoding, Example, make_examples
from harness.training.frozen import FrozenLayers, FrozenStates
from harness.training.loss import batch_targets, question_losses
from harness.training.model import build_model, make_inputs
from harness.training.recipe import Recipe, TaskRecipe
from harness.training.schedule import one_epoch
from harness.training.trainer import Trainer

TASKS = {"terra": 200, "danetqa": 80, "muserc": 16}  # documents


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--frozen", type=int, default=12)
    args = parser.parse_args()
    recipe = Recipe(
        model="embedded",
        frozen_layers=args.frozen,
        tasks={task: TaskRecipe() for task in TASKS},
        steps=1,
        learning_rate=3e-4,
        heads_learning_rate=3e-4,
    )
    setup = Setup(recipe, args.data)
    setup.compare_epochs()
    setup.compare_packing()


class Setup:
    """Model, examples and processes of one comparison."""

    def __init__(self, recipe: Recipe, data: str) -> None:
        self.recipe = recipe
        base = provide(find_model("embedded"))
        self.dtype = pick_dtype("auto", "cpu")
        self.accelerator = Accelerator(mixed_precision="bf16" if self.dtype is torch.bfloat16 else "no")
        self.layout = make_layout(recipe.kinds())
        self.path = base.path
        tokenizer = load_tokenizer(base.path)
        template = Template(tokenizer, applied=False)
        self.encoding = Encoding(TextEncoder(tokenizer), template, self.layout, recipe.max_tokens)
        self.tasks = load_tasks(choose(list(TASKS)), data=data, split="validation")
        self.examples: dict[str, list[Example]] = {}
        for task, limit in TASKS.items():
            rows = [document.row() for document in cached_split(task, "train", data).documents]
            chosen = sample_documents(rows, limit, 0)
            self.examples[task] = make_examples(get_task(task), self.tasks[f"rsg_{task}"], chosen, self.encoding)

    def trainer(self, cache: Path | None = None, compiled: bool = False) -> Trainer:
        model, _ = build_model(self.recipe, self.path, self.layout, self.accelerator.device, self.dtype)
        if compiled:
            compile_and_check(model, self.encoding.encoder, self.dtype)
        examples = Examples(self.examples, {})
        states = None
        if cache is not None:
            packed = [example.packed for example in examples.all()]
            width = model.head_weight.shape[1]
            name = str(self.dtype).removeprefix("torch.")
            states = FrozenStates(cache, ["speed"], packed, width, name, 1 << 40)
        frozen = FrozenLayers(model, states, examples.all())
        return Trainer(self.recipe, model, examples, frozen, self.accelerator, Path("/nonexistent"))

    def batches(self) -> list[tuple[str, list[int]]]:
        budget = self.recipe.batch_tokens
        return [(task, batch) for task, examples in self.examples.items() for batch in one_epoch(examples, budget)]

    def compare_epochs(self) -> None:
        """Two epochs each way, epochs in turn, so that a slow spell of the machine hits all.

        What rounding alone does to the losses shows in a second trainer without the cache.
        """
        with tempfile.TemporaryDirectory() as scratch:
            trainers = {
                "with": self.trainer(Path(scratch)),
                "without": self.trainer(),
                "again": self.trainer(),
                "compiled": self.trainer(compiled=True),
            }
            losses: dict[str, list[float]] = {name: [] for name in trainers}
            seconds: dict[str, list[float]] = {name: [] for name in trainers}
            for _ in range(2):
                for name, trainer in trainers.items():
                    started = time.monotonic()
                    for batch in self.batches():
                        losses[name].append(trainer._step([batch])["loss"])
                    seconds[name].append(time.monotonic() - started)
        named = {"with": "with the cache", "without": "without the cache", "compiled": "compiled, without the cache"}
        for name, what in named.items():
            print(f"{what}, seconds an epoch: {', '.join(f'{value:.1f}' for value in seconds[name])}")
        print(f"second epoch: {seconds['without'][1] / seconds['with'][1]:.2f} times faster with the cache")
        print(f"second epoch: {seconds['without'][1] / seconds['compiled'][1]:.2f} times faster compiled")
        for name, what in (("with", "with and without"), ("again", "twice without"), ("compiled", "compiled and not")):
            gaps = [abs(a - b) for a, b in zip(losses[name], losses["without"], strict=True)]
            print(
                f"losses {what}: {gaps[0]:.6f} apart at the first step, at most {max(gaps):.4f}, "
                f"on average {sum(gaps) / len(gaps):.4f}")  # fmt: skip

    def compare_packing(self) -> None:
        """One pass, forward and backward, over MuSeRC's paragraphs: packed, and an answer a sequence."""
        model, _ = build_model(self.recipe, self.path, self.layout, self.accelerator.device, self.dtype)
        examples = self.examples["muserc"]
        alone = [
            pack(head_sequences(self.encoding.encoder, self.layout, "muserc", [one.args for one in rendered], 1 << 30))
            for example in examples
            for rendered in self._requests(example)
        ]
        packed_tokens = sum(len(example.packed) for example in examples)
        alone_tokens = sum(map(len, alone))
        started = time.monotonic()
        for example in examples:
            scores = self._scores(model, [example.packed])
            questions, right, count = batch_targets([example], scores.device)
            question_losses(scores, questions, right, count).mean().backward()
        packed_seconds = time.monotonic() - started
        started = time.monotonic()
        rows = max(1, self.recipe.batch_tokens // max(map(len, alone)))
        for start in range(0, len(alone), rows):
            self._scores(model, alone[start : start + rows]).mean().backward()
        alone_seconds = time.monotonic() - started
        print(
            f"MuSeRC, {len(examples)} paragraphs: {packed_tokens} tokens packed, {alone_tokens} alone: "
              f"{alone_tokens / packed_tokens:.1f} times fewer; {packed_seconds:.1f} and {alone_seconds:.1f} s: "
              f"{alone_seconds / packed_seconds:.1f} times faster")  # fmt: skip

    def _requests(self, example: Example) -> list[Any]:
        return [render_document(self.tasks["rsg_muserc"], doc, self.encoding.template) for doc in example.docs]

    def _scores(self, model: Any, packed: list[Any]) -> torch.Tensor:
        inputs = make_inputs(packed, model.windows, self.accelerator.device)
        with self.accelerator.autocast():
            return model(inputs, model.lower(inputs), "muserc")


if __name__ == "__main__":
    main()
