"""Generating for many prompts: in order, in batches, resumed and halved without a difference."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from adapters.base import Backend, OutOfMemory, Prefix, Sampling
from adapters.torch_backend import TorchBackend, load_torch
from harness.scoring.generation import GenerationJob, generate_all
from harness.scoring.store import ProgressStore
from tests.tiny_gemma import VOCABULARY_SIZE, make_tiny_gemma

SHORT = Sampling(max_new_tokens=6)
STOPPED = Sampling(max_new_tokens=10, stop=("\n", "K"))
LENGTHS = (5, 5, 12, 5, 12, 12, 5, 12)


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> TorchBackend:
    directory = make_tiny_gemma(tmp_path_factory.mktemp("gemma"), num_hidden_layers=4)
    return load_torch("torch-cpu", directory, device="cpu", dtype="float32")


def prompts(lengths: Sequence[int], seed: int = 3) -> list[tuple[int, ...]]:
    generator = np.random.default_rng(seed)
    return [(2, *generator.integers(6, VOCABULARY_SIZE, length - 1).tolist()) for length in lengths]


@pytest.fixture(scope="module")
def jobs() -> list[GenerationJob]:
    return [
        GenerationJob(prompt, STOPPED if number % 3 == 2 else SHORT) for number, prompt in enumerate(prompts(LENGTHS))
    ]


@pytest.fixture(scope="module")
def expected(backend: TorchBackend, jobs: list[GenerationJob]) -> list[str]:
    texts = [backend.generate([job.prompt], job.sampling)[0] for job in jobs]
    assert len(set(texts)) == len(texts)
    return texts


class Interrupted(Exception):
    """Stands for whatever ends a process."""


class WatchedBackend(Backend):
    """The tiny model, with the batches that it was given and, if asked for, a limit that it fails at."""

    def __init__(self, inner: TorchBackend, *, most_rows: int | None = None, batches: int | None = None) -> None:
        self.inner = inner
        self.info, self.tokenizer = inner.info, inner.tokenizer
        self.most_rows, self.limit = most_rows, batches
        self.batches: list[tuple[list[int], Sampling]] = []

    def hidden_states(
        self,
        rows: Sequence[Sequence[int]],
        positions: Sequence[Sequence[int]],
        prefix: Prefix | None = None,
        keep: bool = False,
    ) -> tuple[np.ndarray, Prefix | None]:
        raise NotImplementedError

    def project(self, hidden: np.ndarray, sources: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        raise NotImplementedError

    def vocabulary_logits(self, hidden):
        raise NotImplementedError

    def library_logprobs(self, tokens: Sequence[int]) -> np.ndarray:
        raise NotImplementedError

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        on_text: Callable[[int, str], None] | None = None,
        remember: bool = False,
    ) -> list[str]:
        if self.limit is not None and len(self.batches) >= self.limit:
            raise Interrupted
        self.batches.append(([len(prompt) for prompt in prompts], sampling))
        if self.most_rows is not None and len(prompts) > self.most_rows:
            raise OutOfMemory(f"{len(prompts)} prompts")
        return self.inner.generate(prompts, sampling, on_text, remember)

    def peak_memory(self) -> int | None:
        return None


@pytest.mark.parametrize("batch_tokens", [1, 40, 60, 10_000])
def test_texts_come_back_in_the_order_of_the_jobs(backend, jobs, expected, batch_tokens):
    assert generate_all(backend, jobs, batch_tokens) == expected


@pytest.mark.parametrize("batch_tokens", [1, 40, 60, 10_000])
def test_batches_hold_like_settings_and_keep_to_the_budget(backend, jobs, batch_tokens):
    watched = WatchedBackend(backend)
    generate_all(watched, jobs, batch_tokens)
    assert sum(len(lengths) for lengths, _ in watched.batches) == len(jobs)
    for lengths, sampling in watched.batches:
        width = max(lengths) + sampling.max_new_tokens
        assert len(lengths) == 1 or len(lengths) * width <= batch_tokens
        assert lengths == sorted(lengths, reverse=True)


def test_a_large_budget_needs_one_batch_for_each_kind_of_sampling(backend, jobs):
    watched = WatchedBackend(backend)
    generate_all(watched, jobs, 10_000)
    assert len(watched.batches) == 2


def test_progress_adds_up_to_the_number_of_jobs(backend, jobs):
    seen: list[int] = []
    generate_all(backend, jobs, 40, on_progress=seen.append)
    assert sum(seen) == len(jobs)


def test_no_jobs_give_no_texts(backend):
    assert generate_all(backend, [], 100) == []


@pytest.mark.parametrize("batches", [0, 1, 3])
def test_an_interrupted_run_goes_on_where_it_was(backend, jobs, expected, tmp_path, batches):
    everything = WatchedBackend(backend)
    generate_all(everything, jobs, 40)
    with ProgressStore(tmp_path / "store") as store, pytest.raises(Interrupted):
        generate_all(WatchedBackend(backend, batches=batches), jobs, 40, store)
    with ProgressStore(tmp_path / "store") as store:
        second = WatchedBackend(backend)
        seen: list[int] = []
        assert generate_all(second, jobs, 40, store, seen.append) == expected
        assert second.batches == everything.batches[batches:]
        assert sum(seen) == len(jobs)
        assert store.seconds() > 0


def test_a_finished_store_needs_no_model(backend, jobs, expected, tmp_path):
    with ProgressStore(tmp_path / "store") as store:
        generate_all(backend, jobs, 40, store)
        assert generate_all(WatchedBackend(backend, batches=0), jobs, 40, store) == expected


def test_other_prompts_or_settings_find_nothing_in_the_store(backend, jobs, tmp_path):
    with ProgressStore(tmp_path / "store") as store:
        generate_all(backend, jobs, 40, store)
        for others in (
            jobs[1:],
            [GenerationJob(job.prompt, Sampling(max_new_tokens=5)) for job in jobs],
            [GenerationJob(prompt, SHORT) for prompt in prompts(LENGTHS, seed=4)],
        ):
            with pytest.raises(Interrupted):
                generate_all(WatchedBackend(backend, batches=0), others, 40, store)


@pytest.mark.parametrize("most_rows", [1, 2, 3])
def test_batches_that_do_not_fit_are_halved_and_give_the_same_texts(backend, jobs, expected, tmp_path, most_rows):
    watched = WatchedBackend(backend, most_rows=most_rows)
    with ProgressStore(tmp_path / "store") as store:
        assert generate_all(watched, jobs, 10_000, store) == expected
        assert generate_all(WatchedBackend(backend, batches=0), jobs, 10_000, store) == expected
    assert any(len(lengths) > most_rows for lengths, _ in watched.batches)


def test_a_single_prompt_that_does_not_fit_ends_the_run(backend, jobs):
    with pytest.raises(OutOfMemory):
        generate_all(WatchedBackend(backend, most_rows=0), jobs, 10_000)


def test_prompts_of_all_lengths_in_one_batch_give_the_texts_of_single_ones(backend):
    mixed = [GenerationJob(prompt, SHORT) for prompt in prompts((3, 30, 1, 17, 16))]
    expected = [backend.generate([job.prompt], SHORT)[0] for job in mixed]
    assert generate_all(backend, mixed, 10_000) == expected


def few_shot_jobs() -> list[GenerationJob]:
    """Two sets of examples with questions of different lengths after each, mixed, and a question without examples."""
    examples = prompts((60, 60), seed=5)
    questions = prompts((3, 9, 5, 7, 6, 4), seed=6)
    return [GenerationJob((*examples[n % 2], *questions[n]), SHORT) for n in range(6)] + [GenerationJob((2, 9), SHORT)]


def test_prompts_with_the_same_examples_form_batches_that_count_the_examples_once(backend):
    jobs = few_shot_jobs()
    expected = [backend.generate([job.prompt], job.sampling)[0] for job in jobs]
    watched = WatchedBackend(backend)
    assert generate_all(watched, jobs, 60 + 3 * (9 + 6)) == expected
    assert sorted(lengths for lengths, _ in watched.batches) == [[2], [66, 65, 63], [69, 67, 64]]


def test_a_run_over_examples_that_was_interrupted_computes_the_same_batches(backend, tmp_path):
    jobs = few_shot_jobs()
    everything = WatchedBackend(backend)
    expected = generate_all(everything, jobs, 105)
    with ProgressStore(tmp_path / "store") as store, pytest.raises(Interrupted):
        generate_all(WatchedBackend(backend, batches=1), jobs, 105, store)
    with ProgressStore(tmp_path / "store") as store:
        second = WatchedBackend(backend)
        assert generate_all(second, jobs, 105, store) == expected
    assert second.batches == everything.batches[1:]
