"""What each step of training does: its batches, fixed by the seed before training starts, and its learning rate.

A resumed run and a run on several processes therefore go through the very same batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from harness.training.examples import Example
from harness.training.recipe import Recipe

# Examples of a batch have similar lengths: this many batches' worth of shuffled examples are sorted at a time.
_SORTED_BATCHES = 16


def make_schedule(
    examples: Mapping[str, Sequence[Example]],
    *,
    steps: int,
    batches_per_step: int,
    batch_tokens: int,
    temperature: float,
    seed: int,
) -> list[list[tuple[str, list[int]]]]:
    """Return the batches of every step: (task, numbers of its examples).

    Args:
        examples: By task.
        steps: Number of steps.
        batches_per_step: Number of batches in each of them.
        batch_tokens: Most tokens in a batch, padding included (a longer example stands alone).
        temperature: A task's share of the batches is proportional to its tokens ** (1 / temperature): 1 is by size, and
            the higher the temperature, the more equal the shares.
        seed: Of the order.
    """
    tasks = list(examples)
    sizes = np.array([sum(len(example.packed) for example in examples[task]) for task in tasks], dtype=float)
    shares = sizes ** (1 / temperature)
    shares /= shares.sum()
    rng = np.random.default_rng(seed)
    streams = {
        task: _endless_batches(examples[task], batch_tokens, np.random.default_rng([seed, number]))
        for number, task in enumerate(tasks)
    }
    # Not drawn at random: the task that is furthest behind its share goes next, so that all are spread evenly.
    drawn = np.zeros(len(tasks))
    order = []
    for number in range(1, steps * batches_per_step + 1):
        chosen = int(np.argmax(number * shares - drawn + rng.uniform(0, 0.5, len(tasks))))
        drawn[chosen] += 1
        order.append((tasks[chosen], next(streams[tasks[chosen]])))
    return [order[start : start + batches_per_step] for start in range(0, len(order), batches_per_step)]


def _endless_batches(examples: Sequence[Example], batch_tokens: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """Yield batches of examples of similar lengths, epoch after epoch, each in a new order."""
    while True:
        yield from one_epoch(examples, batch_tokens, rng)


def one_epoch(
    examples: Sequence[Example], batch_tokens: int, rng: np.random.Generator | None = None
) -> list[list[int]]:
    """Return every example once, in batches; shuffled where a generator is given."""
    lengths = np.array([len(example.packed) for example in examples])
    order = np.arange(len(examples)) if rng is None else rng.permutation(len(examples))
    per_chunk = max(1, int(_SORTED_BATCHES * batch_tokens / lengths.mean()))
    batches: list[list[int]] = []
    for start in range(0, len(order), per_chunk):
        chunk = order[start : start + per_chunk]
        batches.extend(_batches(chunk[np.argsort(-lengths[chunk], kind="stable")], lengths, batch_tokens))
    if rng is not None:
        batches = [batches[place] for place in rng.permutation(len(batches))]
    return batches


def _batches(chunk: np.ndarray, lengths: np.ndarray, batch_tokens: int) -> list[list[int]]:
    """Return batches of examples that are sorted by length, the longest first."""
    batches: list[list[int]] = []
    for number in chunk:
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > batch_tokens:
            batches.append([])
        batches[-1].append(int(number))
    if len(batches) > 1 and 2 * len(batches[-1]) < len(batches[-2]):
        # A remainder of a few examples would weigh as much as a full batch: split the last two evenly.
        both = batches[-2] + batches[-1]
        batches[-2:] = [both[: len(both) // 2], both[len(both) // 2 :]]
    return batches


def learning_rate_share(recipe: Recipe, step: int) -> float:
    """Return the share of the learning rate in the step after `step` steps: linear warm-up, then decay to 0."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[recipe.schedule]
