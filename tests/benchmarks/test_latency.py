"""Latency of a model on each backend: `pytest --benchmark`. Writes a record to results/latency for each.

A backend runs in a process of its own, so that its time to load and its memory are its own. What is asked: the mini
set, at batch size 1 a short task (TERRa) and a long one (MuSeRC: a paragraph, a question, one answer).
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapters.base import Sampling
from adapters.registry import BACKENDS, pick_execution
from harness.data import cached_split
from harness.errors import UserError
from harness.evaluation.account import model_record
from harness.evaluation.predict import Predictor
from harness.models.open import open_model
from harness.models.options import ModelOptions
from harness.records import provenance
from harness.records.latency import Generation, LatencyRecord, QuestionLatency, Throughput, write_latency
from harness.tasks import get_task

pytestmark = pytest.mark.latency

QUESTIONS = 24
BATCH_TOKENS = (512, 1024, 2048, 4096, 8192)
NEW_TOKENS = 48
PROMPT = (
    "Летом мы всей семьёй уезжали на дачу под Тверью. Утром дедушка будил меня ещё до рассвета, мы брали удочки и шли "
    "к реке по мокрой траве. Однажды, когда туман ещё не рассеялся, мы услышали"
)


def questions(task: str, split: str = "validation") -> list[tuple[str, dict[str, Any]]]:
    rows = [document.row() for document in cached_split(task, split, "mini").documents]
    return [(task, {field.name: row[field.name] for field in get_task(task).fields}) for row in rows]


# What the backend's own process does.

_predictor: Predictor


def load(model: str | None, backend: str) -> float:
    global _predictor
    started = time.monotonic()
    _predictor = Predictor(open_model(ModelOptions(model=model, backend=backend)))
    return time.monotonic() - started


def ask(asked: list[tuple[str, dict[str, Any]]]) -> None:
    _predictor.answer(asked)


def set_batch_tokens(tokens: int) -> None:
    _predictor.language_model.batch_tokens = tokens


def generate(new_tokens: int) -> int:
    """Continue the prompt and return the number of tokens made: fewer than asked for where the text ended."""
    tokenizer = _predictor.opened.tokenizer
    [text] = _predictor.opened.backend.generate([tokenizer(PROMPT).input_ids], Sampling(new_tokens))
    return min(new_tokens, len(tokenizer(text, add_special_tokens=False).input_ids))


def prompt_tokens(texts: list[str]) -> list[int]:
    return [len(_predictor.opened.tokenizer(text).input_ids) for text in texts]


def describe() -> dict[str, Any]:
    info, model = _predictor.opened.backend.info, _predictor.opened.local
    return {
        "model": model_record(model, info),
        "backend": info.name,
        "execution": info.execution,
        "device": info.device,
        "dtype": info.dtype,
    }


def peak_bytes() -> tuple[int, str]:
    return provenance.peak_memory(_predictor.opened.backend)


# What times it.


@dataclass
class Served:
    """A backend in its process, and what was measured of it so far."""

    worker: ProcessPoolExecutor
    load_seconds: float
    latency: dict[str, QuestionLatency] = field(default_factory=dict)
    throughputs: list[Throughput] = field(default_factory=list)
    seconds_to_generate: dict[int, tuple[float, int]] = field(default_factory=dict)  # asked for -> seconds, tokens
    single_bytes: int = 0

    def call(self, function: Any, *arguments: Any) -> Any:
        return self.worker.submit(function, *arguments).result()

    def record(self) -> LatencyRecord:
        peak, memory_of = self.call(peak_bytes)
        [read] = self.call(prompt_tokens, [PROMPT])
        first, _ = self.seconds_to_generate[1]
        whole, made = self.seconds_to_generate[NEW_TOKENS]
        return LatencyRecord(
            **self.call(describe),
            load_seconds=self.load_seconds,
            latency=self.latency,
            throughput=max(self.throughputs, key=lambda found: found.questions_per_second),
            generation=Generation(
                prompt_tokens=read,
                new_tokens=made,
                first_token_seconds=first,
                tokens_per_second=(made - 1) / (whole - first),
            ),
            single_bytes=self.single_bytes,
            peak_bytes=peak,
            memory_of=memory_of,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=provenance.versions(),
            machine=provenance.machine(),
            git_commit=provenance.git_commit(),
        )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "served" in metafunc.fixturenames:
        names = metafunc.config.getoption("--benchmark-backends").split(",")
        metafunc.parametrize("served", names, indirect=True, scope="module")


@pytest.fixture(scope="module")
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    option = request.config.getoption
    name = request.param
    kind = BACKENDS[name]
    if kind.family == "mlx" and pick_execution(kind, "auto") == "torch":
        pytest.skip(f"{name}: MLX has no GPU here, and PyTorch's time instead would say nothing")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as worker:
        try:
            seconds = worker.submit(load, option("--benchmark-model"), name).result()
        except UserError as error:
            pytest.skip(f"{name}: {error}")
        served = Served(worker, seconds)
        failed = request.session.testsfailed
        yield served
        if request.session.testsfailed == failed and NEW_TOKENS in served.seconds_to_generate:
            print(f"\n{write_latency(Path(option('--benchmark-results')) / 'latency', served.record())}")


@pytest.mark.parametrize("task", ["terra", "muserc"])
def test_one_question_at_a_time(benchmark: Any, served: Served, task: str) -> None:
    asked = questions(task)[:QUESTIONS]
    served.call(ask, asked[-1:])
    turn = cycle(asked)
    benchmark.pedantic(
        lambda question: served.call(ask, [question]), setup=lambda: ((next(turn),), {}), rounds=len(asked)
    )
    seconds = benchmark.stats.stats.data
    tokens = served.call(prompt_tokens, [" ".join(fields.values()) for _, fields in asked])
    p50, p95 = np.percentile(seconds, [50, 95]).tolist()
    served.latency[task] = QuestionLatency(p50=p50, p95=p95, questions=len(asked), tokens=float(np.mean(tokens)))
    served.single_bytes, _ = served.call(peak_bytes)
    benchmark.extra_info |= {"p50": p50, "p95": p95}


@pytest.mark.parametrize("batch_tokens", BATCH_TOKENS)
def test_many_questions_at_once(benchmark: Any, served: Served, batch_tokens: int) -> None:
    asked = questions("terra", "train") + questions("terra")
    served.call(set_batch_tokens, batch_tokens)
    benchmark.pedantic(partial(served.call, ask, asked), rounds=3)
    per_second = len(asked) / float(np.median(benchmark.stats.stats.data))
    served.throughputs.append(
        Throughput(task="terra", questions=len(asked), questions_per_second=per_second, batch_tokens=batch_tokens)
    )
    benchmark.extra_info["questions_per_second"] = per_second


@pytest.mark.parametrize("new_tokens", [1, NEW_TOKENS])
def test_generating(benchmark: Any, served: Served, new_tokens: int) -> None:
    made = benchmark.pedantic(partial(served.call, generate, new_tokens), rounds=5, warmup_rounds=1)
    assert made > 0
    served.seconds_to_generate[new_tokens] = float(np.median(benchmark.stats.stats.data)), made
