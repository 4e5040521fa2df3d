"""Hold every backend, device and type of this machine against float32 on the CPU.

Each computes small random models (and the user's own, if named): log-probabilities of a text longer than the sliding
window, after a shared prefix, in batches of unequal rows; generated tokens; one training step. MLX's quantised weights
are held against PyTorch on the same weights dequantised, so that only the arithmetic is compared.
"""

from __future__ import annotations

import dataclasses
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adapters.architecture import read_architecture
from adapters.base import Backend, BackendKind, CachedDirectory, LoadRequest, OutOfMemory, Sampling
from adapters.registry import AS_IT_STANDS, BACKENDS
from harness.device_check.random_models import ARCHITECTURES, make_random_model
from harness.errors import UserError
from harness.files import cached_directory, write_atomically
from harness.models.check import TOLERANCES
from harness.models.resolve import find_model, provide
from harness.progress import Bar
from harness.quiet import quiet_libraries
from harness.records import provenance

# Gradients may differ by this share of their length.
_GRADIENT_TOLERANCES = {"float32": 1e-2, "bfloat16": 0.25, "float16": 0.25}
# In 16 bits a near tie may fall the other way, after which the texts differ.
_LEAST_SAME_TEXT = {"float32": 1.0, "bfloat16": 0.25, "float16": 0.25, "int8": 0.0}
# llama.cpp reads GELU off a table of 16-bit numbers, on a processor even in float32.
_LLAMA_TOLERANCE = 1e-2
_NEW_TOKENS = 8
_BEYOND_WINDOW = 48  # tokens; models of the size that people use have windows of 512 and more
_LONGEST = 640
_SPEED_ROWS, _SPEED_TOKENS = 4, 128
_PROMPT = "Река замёрзла"


@dataclass(frozen=True)
class CheckedBackend:
    """What came of one backend in one type on one model.

    Attributes:
        model: The random model's architecture, or the name of the user's model.
        backend: A key of `BACKENDS`.
        execution, device, dtype: What computed.
        logprobs, prefix, batch: Largest differences of a token's log-probability, in nats.
        same_text: Share of a greedily generated text up to where it differs.
        gradient: Distance of one step's gradients, as a share of their length; None where nothing is trained.
        tokens_per_second: Of prompt.
        problem: What is wrong; "" where all is right.
        not_run: Why this model is not for this backend; the numbers are None then.
    """

    model: str
    backend: str
    execution: str
    device: str
    dtype: str
    logprobs: float | None = None
    prefix: float | None = None
    batch: float | None = None
    same_text: float | None = None
    gradient: float | None = None
    tokens_per_second: float | None = None
    problem: str = ""
    not_run: str = ""


def check_devices(model: str | None = None) -> list[CheckedBackend]:
    """Check all backends of this machine, on random models and on the user's.

    Args:
        model: A model to check besides, as `--model` takes it.

    Raises:
        UserError: This model cannot be found.
    """
    own = provide(find_model(model)) if model is not None else None
    kinds = [kind for kind in BACKENDS.values() if kind.name != "torch" and not kind.family.problem(kind)]
    found: list[CheckedBackend] = []
    with tempfile.TemporaryDirectory() as scratch, quiet_libraries():
        models: list[tuple[str, Path, str, CachedDirectory, Path | None]] = [
            (name, make_random_model(name, Path(scratch) / name), name, uncached(Path(scratch) / "made"), None)
            for name in ARCHITECTURES
        ]
        if own is not None:
            models.append((own.name, own.path, own.fingerprint, cached_directory, own.gguf))
        with Bar("checking", len(models) * len(kinds), "backend") as bar:
            for name, path, fingerprint, cached, gguf in models:
                for kind in kinds:
                    request = LoadRequest(path, fingerprint, cached, kind.family.executions[0], "auto", {}, gguf=gguf)
                    if gguf is not None or kind.name != AS_IT_STANDS:
                        found.extend(_check_kind(name, kind, request))
                    bar.advance(1, f"{name} {kind.name}")
    return found


def uncached(directory: Path) -> CachedDirectory:
    """Return a maker of directories that are kept below `directory`, not in the user's cache."""

    def make_directory(name: str, make: Callable[[Path], None], announcement: str) -> Path:
        target = directory / name
        if not target.exists():
            target.mkdir(parents=True)
            make(target)
        return target

    return make_directory


def _check_kind(model: str, kind: BackendKind, request: LoadRequest) -> Iterator[CheckedBackend]:
    """Yield a result for each type that the backend offers."""
    reference: Backend | None = None
    overflows = read_architecture(request.model_dir).overflows_float16
    for dtype in kind.family.dtypes(kind):
        if dtype == "float16" and overflows and kind.family.name != "gguf":
            continue
        unchecked = CheckedBackend(model, kind.name, request.execution, "", dtype)
        try:
            backend = kind.family.load(kind, dataclasses.replace(request, dtype=dtype))
            reference = reference or kind.family.reference(kind, request)
        except UserError as error:  # such as weights of other bits
            if model in ARCHITECTURES:
                yield dataclasses.replace(unchecked, problem=error.message)
            else:
                yield dataclasses.replace(unchecked, not_run=error.message)
            continue
        try:
            yield _check(model, backend, reference, request.model_dir)
        except (UserError, OutOfMemory) as error:
            yield dataclasses.replace(unchecked, device=backend.info.device, problem=str(error) or "out of memory")


def _check(model: str, backend: Backend, reference: Backend, model_dir: Path) -> CheckedBackend:
    info = backend.info
    window = read_architecture(model_dir).window or 0
    length = min(info.context_length, max(_BEYOND_WINDOW, min(window + _BEYOND_WINDOW, _LONGEST)))
    tokens = random.Random(0).choices(range(info.vocabulary_size // 8, info.vocabulary_size * 3 // 4), k=length)
    expected = reference.library_logprobs(tokens)
    trains = info.execution == "torch" and info.dtype != "float16"
    result = CheckedBackend(
        model=model,
        backend=info.name,
        execution=info.execution,
        device=info.device,
        dtype=info.dtype,
        logprobs=_difference(backend, [tokens], [expected]),
        prefix=_prefix_difference(backend, tokens, expected) if backend.shares_prefixes else None,
        batch=_difference(backend, [tokens, tokens[: length // 3], tokens[: length // 2]], [expected] * 3),
        same_text=_same_text(backend, reference),
        gradient=_gradient(model_dir, info.device, info.dtype) if trains else None,
        tokens_per_second=_speed(backend),
    )
    return dataclasses.replace(result, problem=_problem(result))


def _difference(backend: Backend, rows: list[list[int]], expected: list[np.ndarray]) -> float:
    """Return the largest difference of any token's log-probability in a batch."""
    hidden, _ = backend.hidden_states(rows, [range(len(row) - 1) for row in rows])
    wanted = np.array([token for row in rows for token in row[1:]])
    found, _ = backend.project(hidden, np.arange(len(wanted)), wanted)
    right = np.concatenate([values[: len(row) - 1] for row, values in zip(rows, expected, strict=True)])
    return float(np.abs(found - right).max())


def _prefix_difference(backend: Backend, tokens: list[int], expected: np.ndarray) -> float:
    """Return the same for two rows of unequal length after a shared prefix."""
    start = len(tokens) * 2 // 3
    _, prefix = backend.hidden_states([tokens[:start]], [[]], keep=True)
    rows = [tokens[start:-1], tokens[start : start + 2]]
    hidden, _ = backend.hidden_states(rows, [range(len(row)) for row in rows], prefix)
    places = np.array([start + place for row in rows for place in range(len(row))])
    found, _ = backend.project(hidden, np.arange(len(places)), np.array(tokens)[places + 1])
    return float(np.abs(found - expected[places]).max())


def _same_text(backend: Backend, reference: Backend) -> float:
    """Return how much of the generated text is what the reference generates: the common beginning, as a share."""
    prompt = backend.tokenizer(_PROMPT).input_ids
    found, expected = (one.generate([prompt], Sampling(max_new_tokens=_NEW_TOKENS))[0] for one in (backend, reference))
    if found == expected:
        return 1.0
    differing = (place for place, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1])
    longest, shortest = max(len(found), len(expected)), min(len(found), len(expected))
    return next(differing, shortest) / longest


def _gradient(model_dir: Path, device: str, dtype: str) -> float:
    from harness.device_check.training_step import gradient_difference

    return gradient_difference(model_dir, device, dtype)


def _speed(backend: Backend) -> float:
    """Return tokens of prompt a second, the best of three batches."""
    rows = [[7] * _SPEED_TOKENS for _ in range(_SPEED_ROWS)]
    times = []
    for _ in range(3):
        started = time.perf_counter()
        backend.hidden_states(rows, [[_SPEED_TOKENS - 1] for _ in rows])
        times.append(time.perf_counter() - started)
    return _SPEED_ROWS * _SPEED_TOKENS / min(times)


def _problem(result: CheckedBackend) -> str:
    """Say what differs by more than rounding explains."""
    tolerance = TOLERANCES[result.dtype]
    if result.execution == "llama.cpp":
        tolerance = max(tolerance, _LLAMA_TOLERANCE)
    for name in ("logprobs", "prefix", "batch"):
        value = getattr(result, name)
        if value is not None and not value <= tolerance:  # NaN is wrong too
            return f"{name} off by {value:.3g} nats"
    if result.same_text is not None and result.same_text < _LEAST_SAME_TEXT[result.dtype]:
        return f"only the first {result.same_text:.0%} of a generated text are right"
    if result.gradient is not None and not result.gradient <= _GRADIENT_TOLERANCES[result.dtype]:
        return f"gradients off by {result.gradient:.1%}"
    return ""


def checks_table(results: list[CheckedBackend]) -> str:
    """Return the results as a table for people."""
    from tabulate import tabulate

    rows = [
        [
            result.model,
            result.backend,
            result.device,
            result.dtype,
            *(_shown(value, ".1e") for value in (result.logprobs, result.prefix, result.batch)),
            _shown(result.same_text, ".0%"),
            _shown(result.gradient, ".1%"),
            _shown(result.tokens_per_second, ",.0f"),
            result.problem or (f"not run: {result.not_run}" if result.not_run else "right"),
        ]
        for result in results
    ]
    headers = ["model", "backend", "device", "type", "log-probs", "prefix", "batch", "text", "gradient", "tok/s", ""]
    aligned = ("left",) * 4 + ("right",) * 6 + ("left",)
    return tabulate(rows, headers=headers, disable_numparse=True, colalign=aligned)


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def write_checks(path: Path, results: list[CheckedBackend]) -> None:
    """Write the results, the machine and the versions as JSON, whole or not at all.

    Raises:
        UserError: The file cannot be written.
    """
    found: dict[str, Any] = {
        "machine": provenance.machine(),
        "versions": provenance.versions(),
        "git_commit": provenance.git_commit(),
        "checks": [dataclasses.asdict(result) for result in results],
    }
    write_atomically(path, json.dumps(found, ensure_ascii=False, indent=2) + "\n")
