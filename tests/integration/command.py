"""The installed command, as the tests call it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

Command = Callable[..., subprocess.CompletedProcess[str]]
# Matrices as small as the tiny model's only wait for a second thread. Runs that are compared bit by bit need the same.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
RSG_HARNESS = str(Path(sys.executable).with_name("rsg-harness"))
# Two processes on CPUs: `--cpu` would start one.
IN_TWO_PROCESSES = (
    str(Path(sys.executable).with_name("accelerate")), "launch", "--multi_gpu", "--num_processes", "2",
    "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
    "-m", "harness.cli",
)  # fmt: skip


def heed_interrupts() -> None:
    """Popen's preexec_fn: a test run in the background ignores Ctrl-C, and so would what it starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
