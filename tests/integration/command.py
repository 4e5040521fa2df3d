"""The command as the tests call it: in this process, or installed in a process of its own."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

Command = Callable[..., "subprocess.CompletedProcess[str]"]
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


def call_here(
    arguments: tuple[str | Path, ...] | list[str | Path], cwd: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run the command in this process, which has paid for the imports already.

    Args:
        arguments: After `rsg-harness`.
        cwd: The working directory meanwhile.
        environment: The whole environment meanwhile.
    """
    from harness.cli import main
    from harness.data import cached_split

    cached_split.cache_clear()  # a process of its own would read the files again
    output, errors = io.StringIO(), io.StringIO()
    words = [str(argument) for argument in arguments]
    with _surroundings(cwd, environment), contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            code = main(words)
        except SystemExit as leaving:  # argparse
            code = leaving.code if isinstance(leaving.code, int) else 1
    return subprocess.CompletedProcess(words, code, output.getvalue(), errors.getvalue())


@contextlib.contextmanager
def _surroundings(cwd: Path, environment: Mapping[str, str]) -> Iterator[None]:
    before, directory = dict(os.environ), Path.cwd()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    try:
        yield
    finally:
        os.chdir(directory)
        os.environ.clear()
        os.environ.update(before)


def call_process(
    arguments: tuple[str | Path, ...] | list[str | Path], cwd: Path, environment: Mapping[str, str], **options: object
) -> subprocess.CompletedProcess[str]:
    """Run the installed command in a process of its own."""
    return subprocess.run(
        [RSG_HARNESS, *map(str, arguments)],
        cwd=cwd,
        env=dict(environment),
        capture_output=True,
        text=True,
        timeout=240,
        **options,  # type: ignore[call-overload]
    )
