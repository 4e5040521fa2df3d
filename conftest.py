"""`pytest --benchmark`: the latency benchmarks, which a plain `pytest` leaves out.

Everything else computes with one thread: the tests' models are too small for more, and runs that are compared bit by
bit need the same number.
"""

from __future__ import annotations

import os
import sys

import pytest

if "--benchmark" not in sys.argv:
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

_OPTION = "--benchmark"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("rsg-harness", "rsg-harness")
    group.addoption(_OPTION, action="store_true", help="run the latency benchmarks, and nothing else")
    group.addoption("--benchmark-model", metavar="NAME", help="as --model of `rsg-harness run`")
    group.addoption(
        "--benchmark-backends",
        default="torch,torch-mps,torch-cuda,mlx-fp16,mlx-q8,mlx-q6,mlx-q4,mlx-q3",
        metavar="NAMES",
        help="comma-separated (default: %(default)s)",
    )
    group.addoption("--benchmark-results", default="results", metavar="DIR", help="records go to DIR/latency")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "latency: measures latency; runs with --benchmark only")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    measures = config.getoption(_OPTION)
    left_out = [item for item in items if (item.get_closest_marker("latency") is not None) != measures]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]
