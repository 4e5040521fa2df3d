"""`pytest --benchmark` as a user calls it, on a small model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.records.latency import read_latencies

ROOT = Path(__file__).parent.parent.parent


def run_pytest(environment: dict[str, str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-rs",
        "-p",
        "no:cacheprovider",
        "tests/benchmarks",
        *map(str, arguments),
    ]
    # pytest-benchmark switches itself off where it takes itself for a worker of xdist.
    alone = {name: value for name, value in environment.items() if not name.startswith("PYTEST_XDIST")}
    return subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, timeout=240)


def measure(environment: dict[str, str], model: Path, backends: str, results: Path) -> subprocess.CompletedProcess[str]:
    options = ("--benchmark-model", model, "--benchmark-backends", backends, "--benchmark-results", results)
    return run_pytest(environment, "--benchmark", *options)


def test_a_plain_pytest_leaves_the_benchmarks_out(environment: dict[str, str]) -> None:
    done = run_pytest(environment)
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED, done.stdout
    assert "deselected" in done.stdout


@pytest.mark.slow
def test_the_flag_measures_a_backend_and_keeps_the_record(
    environment: dict[str, str], tiny_model: Path, tmp_path: Path
) -> None:
    done = measure(environment, tiny_model, "torch", tmp_path)
    assert done.returncode == 0, done.stdout
    [record] = read_latencies(tmp_path).values()
    assert record.execution == "torch"
    assert record.model.name == tiny_model.name
    for task in ("terra", "muserc"):
        assert 0 < record.latency[task].p50 <= record.latency[task].p95
    assert record.latency["muserc"].tokens > record.latency["terra"].tokens
    assert record.throughput.questions == 48
    assert record.throughput.questions_per_second > 0
    assert record.generation.first_token_seconds > 0
    assert record.model.weights_bytes < record.single_bytes <= record.peak_bytes


@pytest.mark.slow
def test_a_backend_that_cannot_run_is_skipped_with_the_reason(
    environment: dict[str, str], tiny_model: Path, tmp_path: Path
) -> None:
    done = measure(environment, tiny_model, "torch-cuda,torch-mps", tmp_path)
    assert done.returncode == 0, done.stdout
    assert "PyTorch finds no" in done.stdout  # no machine has both
