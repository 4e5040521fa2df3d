"""Generate continuations for many prompts, in batches of like beginning and length, each batch stored when done."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from adapters.base import Backend, OutOfMemory, Sampling
from adapters.text import common_length
from harness.processes import ALONE, Processes
from harness.scoring.plan import PREFIX_TOKENS_PER_BATCH_TOKEN
from harness.scoring.store import ProgressStore

# Tokens whose keys and values a batch keeps: 10 GB of a model of 4 billion weights.
MOST_KEPT_TOKENS = 65_536


@dataclass(frozen=True)
class GenerationJob:
    """A prompt as token ids, and how to continue it."""

    prompt: tuple[int, ...]
    sampling: Sampling


def generate_all(
    backend: Backend,
    jobs: Sequence[GenerationJob],
    batch_tokens: int,
    store: ProgressStore | None = None,
    on_progress: Callable[[int], object] | None = None,
    processes: Processes = ALONE,
) -> list[str]:
    """Return the continuation of every job, in order.

    Args:
        batch_tokens: At most this many tokens in a batch, new ones and padding included; those with which all its
            prompts begin do not count.
        store: Keeps finished texts; a resumed run finds them there.
        on_progress: Called with the number of jobs just finished.
        processes: Those that share the jobs; all must have the same ones.

    Raises:
        OutOfMemory: Not even one prompt fits.
    """
    key = _fingerprint(jobs)
    texts = _together(store.texts(key) if store else {}, processes)
    report = on_progress or (lambda done: None)
    report(len(texts))
    started = time.monotonic()
    # A batch as planned is done or not done as a whole, so a resumed run computes the same batches.
    waiting = [batch for batch in _batches(jobs, batch_tokens) if any(index not in texts for index in batch)]
    for batch in waiting[processes.rank :: processes.size]:  # of like length side by side, so turns are fair
        done = dict(zip(batch, _generate_halving(backend, [jobs[index] for index in batch]), strict=True))
        texts.update(done)
        if store:
            store.put_texts(key, done)
            store.add_seconds(time.monotonic() - started)
            started = time.monotonic()
        report(len(batch))
    texts = _together(texts, processes)
    return [texts[index] for index in range(len(jobs))]


def _together(texts: dict[int, str], processes: Processes) -> dict[int, str]:
    """Return what all processes hold together."""
    if processes.size == 1:
        return texts
    return {int(index): text for found in processes.gather(texts) for index, text in found.items()}


def _generate_halving(backend: Backend, jobs: Sequence[GenerationJob]) -> list[str]:
    try:
        return backend.generate([job.prompt for job in jobs], jobs[0].sampling)
    except OutOfMemory:
        if len(jobs) == 1:
            raise
    middle = len(jobs) // 2
    return _generate_halving(backend, jobs[:middle]) + _generate_halving(backend, jobs[middle:])


def _batches(jobs: Sequence[GenerationJob], batch_tokens: int) -> Iterator[list[int]]:
    """Yield indices of jobs with the same settings, of like beginning and length, the longest first."""
    settings = {job.sampling: repr(job.sampling) for job in jobs}
    for sampling in sorted(settings, key=settings.__getitem__):
        same = [index for index, job in enumerate(jobs) if job.sampling == sampling]
        for shared, family in _families(jobs, same):
            batch: list[int] = []
            for index in sorted(family, key=lambda index: -len(jobs[index].prompt)):
                if batch:
                    rows, longest = len(batch) + 1, len(jobs[batch[0]].prompt)
                    tokens = rows * (longest - shared + sampling.max_new_tokens)
                    kept = min(PREFIX_TOKENS_PER_BATCH_TOKEN * batch_tokens, MOST_KEPT_TOKENS)
                    if tokens > batch_tokens or rows * (longest + sampling.max_new_tokens) > kept:
                        yield batch
                        batch = []
                batch.append(index)
            yield batch


def _families(jobs: Sequence[GenerationJob], indices: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """Yield jobs whose prompts share half of their tokens, as few-shot prompts do, and how many tokens they share.

    Jobs without such relatives come together at the end, and share nothing.
    """
    alone: list[int] = []
    family: list[int] = []
    shared = longest = 0
    for index in sorted(indices, key=lambda index: (jobs[index].prompt, index)):
        prompt = jobs[index].prompt
        if family:
            common = common_length(jobs[family[0]].prompt, prompt, shared)
            if 2 * common >= max(len(prompt), longest):
                family.append(index)
                shared, longest = common, max(longest, len(prompt))
                continue
            if len(family) > 1:
                yield shared, family
            else:
                alone += family
        family, shared, longest = [index], len(prompt), len(prompt)
    if len(family) > 1:
        yield shared, family
    else:
        alone += family
    if alone:
        yield 0, sorted(alone)


def _fingerprint(jobs: Sequence[GenerationJob]) -> str:
    digest = hashlib.sha256()
    for job in jobs:
        digest.update(repr(job).encode())
    return digest.hexdigest()
