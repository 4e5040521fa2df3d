"""Bits a character: how well a model foretells a text, comparable across vocabularies."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.evaluation.options import Progress
from harness.scoring.encoding import TextEncoder, encode_pairs
from harness.scoring.plan import make_plan
from harness.scoring.scorer import Scorer


@dataclass(frozen=True)
class TextFigures:
    """Of a model on some texts.

    Attributes:
        bits_per_character: −log2 of the texts' probability over their characters.
        tokens_per_word: words are what white space separates.
        characters_per_second: scored, on this machine.
    """

    bits_per_character: float
    tokens_per_word: float
    characters_per_second: float


def text_figures(model_dir: Path, texts: Sequence[str], progress: Progress, dtype: str = "auto") -> TextFigures:
    """Scores every text alone, after a BOS. A text longer than the model's context counts from where it fits.

    Args:
        model_dir: a model directory.
        texts: not empty.
        progress: as for `run`.
        dtype: as --dtype takes it.
    """
    from adapters.registry import load_backend

    backend = load_backend(
        "torch", model_dir, fingerprint="", cache_dir=model_dir, execution="auto", dtype=dtype, args={}
    )
    sequences = encode_pairs(
        TextEncoder(backend.tokenizer), [("", text) for text in texts], backend.info.context_length
    )
    plan = make_plan(sequences, backend.info.batch_tokens)
    report = progress("scoring", plan.tokens_computed)
    started = time.monotonic()
    scores = Scorer(backend, None).score(plan, sequences, report)
    seconds = time.monotonic() - started
    characters = sum(map(len, texts))
    return TextFigures(
        bits_per_character=-sum(score.logprob for score in scores) / math.log(2) / characters,
        tokens_per_word=sum(len(sequence.tokens) - 1 for sequence in sequences) / count_words(texts),
        characters_per_second=characters / seconds,
    )


def count_words(texts: Sequence[str]) -> int:
    return sum(len(text.split()) for text in texts)
