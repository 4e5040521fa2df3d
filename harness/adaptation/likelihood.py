"""Bits a character: how well a model predicts a text, comparable across vocabularies."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

from adapters.registry import load_backend
from harness.files import cached_directory
from harness.progress import Bar
from harness.records.adaptation import TextMetrics
from harness.scoring.encoding import TextEncoder, encode_pairs
from harness.scoring.plan import make_plan
from harness.scoring.scorer import Scorer


def measure_texts(model_dir: Path, texts: Sequence[str], what: str, dtype: str = "auto") -> TextMetrics:
    """Score every text alone, after a BOS. Of a text longer than the model's context only the end counts.

    Args:
        model_dir: A model directory.
        texts: At least one.
        what: The model in words, for the progress bar.
        dtype: As `run` takes it.
    """
    backend = load_backend(
        "torch", model_dir, fingerprint="", cached=cached_directory, execution="auto", dtype=dtype, args={}
    )
    sequences = encode_pairs(
        TextEncoder(backend.tokenizer, backend.info.vocabulary_size),
        [("", text) for text in texts],
        backend.info.context_length,
    )
    plan = make_plan(sequences, backend.info.batch_tokens, backend.shares_prefixes)
    started = time.monotonic()
    with Bar(f"scoring {what}", plan.tokens_computed, "tok") as bar:
        scores = Scorer(backend, None).score(plan, sequences, bar.advance)
    seconds = time.monotonic() - started
    characters = sum(map(len, texts))
    return TextMetrics(
        bits_per_character=-sum(score.logprob for score in scores) / math.log(2) / characters,
        tokens_per_word=sum(len(sequence.tokens) - 1 for sequence in sequences) / count_words(texts),
        characters_per_second=characters / seconds,
    )


def count_words(texts: Sequence[str]) -> int:
    """Return the number of words, which are what white space separates."""
    return sum(len(text.split()) for text in texts)
