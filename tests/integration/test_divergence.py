"""`rsg-harness divergence` beside plain transformers, its resumption, and bad input."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from harness.data.corpus import read_corpus
from harness.evaluation import divergence as module
from harness.quantization.rounding import matrix_sizes, rounded
from harness.records.divergence import DIVERGENCE, read_divergence
from tests.integration.command import Command

TEXTS = [f"Пример {number}. Снег тает на крыше, и с неё капает вода.\nСлово {number * 7}." for number in range(40)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in TEXTS), encoding="utf-8")
    return path


def measured(rsg_harness: Command, model: Path, corpus: Path, *more: object) -> str:
    done = rsg_harness(
        "divergence", "--model", model, "--backends", "torch,mlx-q8,mlx-q4", "--dtype", "float32", "--execution",
        "torch", "--corpus", corpus, *more,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def plain_figures(model_dir: Path, corpus: Path) -> dict[str, tuple[float, float, float]]:
    """(bits a character, mean KL, share of the same likeliest token) by transformers, for each number of bits."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_dir)
    model = transformers.AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    found = read_corpus(str(corpus))
    texts = [*found.texts, *found.held_out]

    @torch.no_grad()
    def logprobs() -> list[torch.Tensor]:
        return [
            model(torch.tensor([tokenizer(text).input_ids])).logits[0, :-1].double().log_softmax(-1) for text in texts
        ]

    def figures(other: list[torch.Tensor]) -> tuple[float, float, float]:
        bits = kl = same = positions = 0.0
        for text, p, q in zip(texts, reference, other, strict=True):
            targets = torch.tensor(tokenizer(text).input_ids[1:])
            bits -= float(q.gather(1, targets[:, None]).sum()) / math.log(2)
            kl += float((p.exp() * (p - q)).sum())
            same += float((p.argmax(-1) == q.argmax(-1)).sum())
            positions += len(targets)
        return bits / sum(map(len, texts)), kl / positions, same / positions

    reference = logprobs()
    found_figures = {"torch": figures(reference)}
    for bits in (8, 4):
        with rounded(model, matrix_sizes(model), bits, 64):
            found_figures[f"mlx-q{bits}"] = figures(logprobs())
    return found_figures


def test_figures_are_those_of_plain_transformers(
    rsg_harness: Command, tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    table = measured(rsg_harness, tiny_model, corpus, "--output", output)
    record = read_divergence(output / DIVERGENCE)
    for one in record.backends:
        bits, kl, same = plain_figures(tiny_model, corpus)[one.backend]
        assert one.bits_per_character.value == pytest.approx(bits, abs=1e-4)
        assert one.kl.value == pytest.approx(kl, abs=1e-4)
        assert one.same_best.value == pytest.approx(same, abs=1e-3)
        assert one.kl.interval[0] <= one.kl.value <= one.kl.interval[1]
        assert one.backend in table
    reference, q8, q4 = record.backends
    assert reference.kl.value == reference.lost == reference.gained == 0
    assert 0 < q8.kl.value < q4.kl.value <= q4.kl_percentile_99_9 <= q4.kl_largest
    assert {path.name for path in output.iterdir()} == {DIVERGENCE}


def test_an_interrupted_measurement_goes_on_to_the_same_record(
    rsg_harness: Command, tiny_model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(rsg_harness, tiny_model, corpus, "--output", tmp_path / "whole")
    part, calls = module._part, []

    def interrupted(*arguments: object) -> dict[str, np.ndarray]:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return part(*arguments)

    arguments = (
        "--model",
        tiny_model,
        "--backends",
        "torch,mlx-q8,mlx-q4",
        "--dtype",
        "float32",
        "--execution",
        "torch",
    )
    monkeypatch.setattr(module, "_part", interrupted)
    stopped = rsg_harness("divergence", *arguments, "--corpus", corpus, "--output", tmp_path / "out")
    assert stopped.returncode == 130
    assert "--resume" in stopped.stderr
    again = rsg_harness("divergence", *arguments, "--corpus", corpus, "--output", tmp_path / "out")
    assert again.returncode == 2
    assert "holds an unfinished measurement" in again.stderr
    measured(rsg_harness, tiny_model, corpus, "--output", tmp_path / "out", "--resume")
    whole, resumed = (read_divergence(tmp_path / name / DIVERGENCE) for name in ("whole", "out"))
    for one, other in zip(whole.backends, resumed.backends, strict=True):
        assert one.model_copy(update={"seconds": 0.0}) == other.model_copy(update={"seconds": 0.0})
    assert len(calls) == 3


def test_a_corpus_that_is_not_there_is_refused_before_anything_is_loaded(
    rsg_harness: Command, tiny_model: Path, tmp_path: Path
) -> None:
    done = rsg_harness("divergence", "--model", tiny_model, "--corpus", tmp_path / "none.txt")
    assert done.returncode == 2
    assert "no corpus" in done.stderr
