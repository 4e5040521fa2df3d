"""`rsg-harness divergence`: what other backends do to a model's whole next-token distribution.

Tasks of some hundred documents hide small damage. Here every token of a corpus is a measurement: all backends are
loaded side by side, and the reference's distribution over the whole vocabulary is held against each other one's,
position by position, so nothing is approximated and no logits are kept. What some texts gave is kept on disk, so that a
kill loses little.

The figures are those of llama.cpp's `llama-perplexity --kl-divergence` ("Mean KLD", "99.9% KLD", "Same top p", "RMS
Δp"; tools/perplexity/README.md), over all positions; llama.cpp leaves out the first half of each of its windows.
"""

from __future__ import annotations

import dataclasses
import io
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from adapters.base import OutOfMemory
from harness.data.corpus import Corpus, read_corpus
from harness.data.sampling import evenly_spread
from harness.errors import UserError
from harness.evaluation.account import model_record
from harness.evaluation.divergence_options import DivergenceOptions, check_divergence_options, model_options
from harness.files import write_atomically
from harness.models.open import OpenModel, open_model
from harness.models.resolve import LocalModel, find_model, provide
from harness.progress import Bar
from harness.records import provenance
from harness.records.divergence import (
    DIVERGENCE,
    DIVERGENCE_DIR,
    BackendDivergence,
    CorpusRecord,
    DivergenceRecord,
    Estimated,
    write_divergence,
)
from harness.scoring.encoding import TextEncoder
from harness.scoring.scorer import ScoringStatistics, hidden_states_halving
from harness.settings import SETTINGS, agree_on_settings
from harness.tasks.metrics import resampled_sums

# Positions whose logits over the whole vocabulary are held at once: 64 rows of 262,144 are 67 MB a backend.
POSITION_CHUNK = 64
# Blocks that are measured and kept together.
BLOCKS_PER_PART = 32
_PART = "part-{number:06d}.npz"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Positions:
    """What one backend gave at every position, arrays [positions].

    Attributes:
        kl: KL(reference ‖ backend), nats, float64.
        logprob: Of the right token, float64.
        same_best: Whether the likeliest token is the reference's.
        right: Whether the likeliest token is the right one.
    """

    kl: np.ndarray
    logprob: np.ndarray
    same_best: np.ndarray
    right: np.ndarray


_KEPT = tuple(field.name for field in dataclasses.fields(Positions))


def divergence(options: DivergenceOptions) -> tuple[DivergenceRecord, Path]:
    """Measure every backend beside the first one.

    Returns:
        The record, and the directory that holds it.

    Raises:
        UserError: Anything that the user can fix. What was measured stays in the directory for --resume.
    """
    check_divergence_options(options)
    corpus = chosen_corpus(options)
    blocks = corpus.texts
    local = provide(find_model(options.model))
    directory = options.output or Path("results") / DIVERGENCE_DIR / local.name
    if (directory / DIVERGENCE).exists():
        raise UserError(f"{directory} already holds a finished measurement", "name another --output")
    corpus_hash = corpus.fingerprint()
    settings = {
        "model": local.fingerprint,
        "backends": list(options.backends),
        "corpus": corpus_hash,
        "execution": options.execution,
        "dtype": options.dtype,
        "versions": provenance.versions(),
    }
    agree_on_settings(directory, settings, resume=options.resume, what="measurement")
    opened = [_open(options, backend, local) for backend in options.backends]
    _refuse_other_vocabularies(options.backends, opened)
    try:
        _measure(opened, blocks, directory)
    except OutOfMemory as error:
        raise UserError(
            f"not enough memory for {len(opened)} backends side by side: {error}",
            "name fewer --backends, and the same reference, in each of several measurements",
        ) from error
    record = _record(options, corpus.name, corpus_hash, blocks, opened, directory)
    write_divergence(directory / DIVERGENCE, record)
    for leftover in [*directory.glob("part-*.npz"), directory / SETTINGS]:
        leftover.unlink()
    return record, directory


def chosen_corpus(options: DivergenceOptions) -> Corpus:
    """Return the texts that are measured on."""
    corpus = read_corpus(options.corpus, options.data)
    blocks = evenly_spread([*corpus.texts, *corpus.held_out], options.limit, options.seed)
    return Corpus(corpus.name, tuple(blocks), ())


def _open(options: DivergenceOptions, spec: str, local: LocalModel) -> OpenModel:
    log.info("loading %s for %s", local.name, spec)
    return open_model(model_options(options, spec), local)


def _refuse_other_vocabularies(backends: Sequence[str], opened: Sequence[OpenModel]) -> None:
    sizes = [one.backend.info.vocabulary_size for one in opened]
    for backend, size in zip(backends, sizes, strict=True):
        if size != sizes[0]:
            raise UserError(
                f"{backend} has {size} tokens and {backends[0]} {sizes[0]}: their distributions do not compare",
                "name backends of one vocabulary",
            )


def _measure(opened: Sequence[OpenModel], blocks: Sequence[str], directory: Path) -> None:
    """Measure all blocks and keep them part by part; parts that are there already are passed over."""
    encoder, context = opened[0].encoder, min(one.backend.info.context_length for one in opened)
    encoder.prepare(blocks)
    with Bar("measuring", len(blocks), "text") as bar:
        for number, start in enumerate(range(0, len(blocks), BLOCKS_PER_PART)):
            part = blocks[start : start + BLOCKS_PER_PART]
            path = directory / _PART.format(number=number)
            if not path.exists():
                rows = [row for block, text in enumerate(part) for row in _rows(encoder, text, start + block, context)]
                content = io.BytesIO()
                np.savez(content, **_part(opened, rows))  # type: ignore[arg-type]
                write_atomically(path, content.getvalue())
            bar.advance(len(part))


def _rows(encoder: TextEncoder, text: str, block: int, context: int) -> Iterator[tuple[int, list[int]]]:
    """Yield (block, tokens) of a text; one longer than the context comes in pieces, each after a start token."""
    tokens = encoder.encode(text)
    start = [] if encoder.start_id is None or tokens[:1] == [encoder.start_id] else [encoder.start_id]
    tokens = start + tokens
    yield block, tokens[: context + 1]
    for place in range(context + 1, len(tokens), context):
        yield block, [tokens[0], *tokens[place : place + context]]


def _part(opened: Sequence[OpenModel], rows: Sequence[tuple[int, list[int]]]) -> dict[str, np.ndarray]:
    """Return what is kept of some rows: block [positions], seconds [backends], and `_KEPT` [backends, positions]."""
    seconds = np.zeros(len(opened))
    parts: dict[str, list[list[np.ndarray]]] = {name: [[] for _ in opened] for name in _KEPT}
    blocks: list[np.ndarray] = []
    for batch in _batches(rows, min(one.backend.info.batch_tokens for one in opened)):
        targets = np.concatenate([np.array(tokens[1:]) for _, tokens in batch])
        blocks.append(np.concatenate([np.full(len(tokens) - 1, block) for block, tokens in batch]))
        inputs = [tokens[:-1] for _, tokens in batch]
        positions = [list(range(len(row))) for row in inputs]
        hidden = []
        for number, one in enumerate(opened):
            started = time.monotonic()
            hidden.append(hidden_states_halving(one.backend, inputs, positions, ScoringStatistics())[0])
            seconds[number] += time.monotonic() - started
        for start in range(0, len(targets), POSITION_CHUNK):
            chunk = slice(start, start + POSITION_CHUNK)
            reference: Any = None
            for number, one in enumerate(opened):
                started = time.monotonic()
                logits = one.backend.vocabulary_logits(hidden[number][chunk])
                seconds[number] += time.monotonic() - started
                compared, reference = compare_distributions(reference, logits, targets[chunk])
                for name, values in compared.items():
                    parts[name][number].append(values)
    return {
        "block": np.concatenate(blocks),
        "seconds": seconds,
        **{name: np.stack([np.concatenate(found) for found in by_backend]) for name, by_backend in parts.items()},
    }


def _batches(rows: Sequence[tuple[int, list[int]]], batch_tokens: int) -> Iterator[list[tuple[int, list[int]]]]:
    """Yield rows of similar lengths together, padding included within the budget."""
    batch: list[tuple[int, list[int]]] = []
    for row in sorted(rows, key=lambda row: -len(row[1])):
        if batch and (len(batch) + 1) * len(batch[0][1]) > batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def compare_distributions(reference: Any, logits: np.ndarray, targets: np.ndarray) -> tuple[dict[str, np.ndarray], Any]:
    """Compare next-token distributions, in float32 with sums in float64.

    Args:
        reference: What an earlier call returned for the reference's logits; None: these logits are the reference's.
        logits: float32 [n, vocabulary].
        targets: The right tokens, int64 [n].

    Returns:
        `_KEPT` -> array [n]; and the reference's (log-probabilities, likeliest tokens).
    """
    import torch

    logprobs = torch.log_softmax(torch.from_numpy(logits), dim=-1)
    best = logprobs.argmax(-1)
    reference = (logprobs, best) if reference is None else reference
    wanted = torch.from_numpy(np.asarray(targets, dtype=np.int64))
    # What the reference takes for impossible adds nothing, even where the other gives −∞.
    terms = torch.where(reference[0].isneginf(), 0.0, reference[0].exp() * (reference[0] - logprobs))
    found = {
        "kl": terms.sum(-1, dtype=torch.float64).clamp_min(0.0),
        "logprob": logprobs.gather(1, wanted[:, None])[:, 0].double(),
        "same_best": best == reference[1],
        "right": best == wanted,
    }
    return {name: values.numpy() for name, values in found.items()}, reference


def _record(
    options: DivergenceOptions,
    corpus: str,
    corpus_hash: str,
    blocks: Sequence[str],
    opened: Sequence[OpenModel],
    directory: Path,
) -> DivergenceRecord:
    parts = [dict(np.load(path)) for path in sorted(directory.glob("part-*.npz"))]
    block = np.concatenate([part["block"] for part in parts])
    seconds = np.sum([part["seconds"] for part in parts], axis=0)
    kept = [
        Positions(**{name: np.concatenate([part[name][number] for part in parts]) for name in _KEPT})
        for number in range(len(opened))
    ]
    characters = np.array([len(text) for text in blocks])
    return DivergenceRecord(
        corpus=CorpusRecord(
            name=corpus,
            sha256=corpus_hash,
            blocks=len(blocks),
            characters=int(characters.sum()),
            positions=len(block),
        ),
        backends=tuple(
            _of_backend(one, spec, kept[0], found, block, characters, float(spent), options.seed)
            for one, spec, found, spent in zip(opened, options.backends, kept, seconds, strict=True)
        ),
        seed=options.seed,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=provenance.versions(),
        machine=provenance.machine(),
        git_commit=provenance.git_commit(),
        command=options.command,
    )


def _of_backend(
    one: OpenModel,
    spec: str,
    reference: Positions,
    found: Positions,
    block: np.ndarray,
    characters: np.ndarray,
    seconds: float,
    seed: int,
) -> BackendDivergence:
    info = one.backend.info

    def per_block(values: np.ndarray) -> np.ndarray:
        return np.bincount(block, weights=values, minlength=len(characters))

    positions = per_block(np.ones(len(block)))
    change = np.exp(found.logprob) - np.exp(reference.logprob)
    return BackendDivergence(
        model=model_record(one.local, info),
        backend=spec,
        execution=info.execution,
        device=info.device,
        dtype=info.dtype,
        bits_per_character=ratio_estimate(per_block(-found.logprob / math.log(2)), characters, seed),
        kl=ratio_estimate(per_block(found.kl), positions, seed),
        kl_percentile_99_9=float(np.percentile(found.kl, 99.9)),
        kl_largest=float(found.kl.max()),
        same_best=ratio_estimate(per_block(found.same_best), positions, seed),
        probability_rms=float(np.sqrt(np.mean(change**2))),
        lost=int((reference.right & ~found.right).sum()),
        gained=int((found.right & ~reference.right).sum()),
        seconds=seconds,
    )


def ratio_estimate(numerators: np.ndarray, denominators: np.ndarray, seed: int) -> Estimated:
    """Return the ratio of two sums over blocks, with the percentile interval of a bootstrap of the blocks.

    Args:
        numerators: float [blocks].
        denominators: float [blocks].
        seed: Of the bootstrap.
    """
    sums = resampled_sums(np.stack([numerators, denominators], axis=1), seed)
    low, high = np.percentile(sums[:, 0] / sums[:, 1], [2.5, 97.5])
    return Estimated(value=float(numerators.sum() / denominators.sum()), interval=(float(low), float(high)))
