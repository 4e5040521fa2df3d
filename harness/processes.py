"""Processes that share one run, and work that is done in a process of its own.

Processes of `accelerate launch` and `torchrun` talk through torch.distributed, those of `mlx.launch` through
mx.distributed. They exchange JSON in arrays of bytes: floats keep every bit, and nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import os
import sys
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from harness.errors import UserError
from harness.progress import output_is_shown, show_output

Result = TypeVar("Result")


@dataclass(frozen=True)
class Processes:
    """The rank of this process among `size` processes. `by`: "torch", "mlx", or None where it is alone."""

    rank: int = 0
    size: int = 1
    by: str | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process has rank 0, which writes what all of them share."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Return every process's value, in the order of their ranks. All processes must call it.

        Args:
            value: Anything that JSON can hold.
        """
        if self.size == 1:
            return [value]
        content = np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)
        sizes = self._gather_array(np.array([len(content)], dtype=np.int32)).tolist()
        padded = np.zeros(max(sizes), dtype=np.uint8)
        padded[: len(content)] = content
        rows = self._gather_array(padded).reshape(self.size, -1)
        return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]

    def broadcast(self, make: Callable[[], Any]) -> Any:
        """Return what the first process makes; the others wait for it. All processes must call it.

        Args:
            make: Called in the first process only; returns anything that JSON can hold.
        """
        return self.gather(make() if self.is_first else None)[0]

    def barrier(self) -> None:
        """Wait until all processes have called it."""
        self.gather(None)

    def _gather_array(self, array: np.ndarray) -> np.ndarray:
        """Return the processes' arrays, which have one shape, concatenated."""
        if self.by == "mlx":
            import mlx.core as mx

            return np.array(mx.distributed.all_gather(mx.array(array), stream=mx.cpu))
        import torch
        from torch import distributed

        parts = [torch.empty(array.shape, dtype=torch.from_numpy(array[:0]).dtype) for _ in range(self.size)]
        distributed.all_gather(parts, torch.from_numpy(array.copy()))
        return torch.cat(parts).numpy()


ALONE = Processes()


@functools.cache
def started_processes() -> Processes:
    """Return the processes that a launcher started together with this one; `ALONE` where none did."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        import torch
        from torch import distributed

        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        # Only results are exchanged, so gloo is enough on every device.
        distributed.init_process_group("gloo")
        return Processes(distributed.get_rank(), distributed.get_world_size(), "torch")
    if "MLX_RANK" in os.environ:
        import mlx.core as mx

        world = mx.distributed.init()
        return Processes(world.rank(), world.size(), "mlx" if world.size() > 1 else None)
    return ALONE


def run_in_subprocess(work: Callable[..., Result], *arguments: Any) -> Result:
    """Return `work(*arguments)`, called in a new process, whose memory does not count as this one's.

    Args:
        work: A function of a module. One that the running script defines would not be found.
        arguments: Of the function.

    Raises:
        UserError: The process was killed, usually because memory ran out.
        Exception: What `work` raises.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=show_output, initargs=(output_is_shown(),)) as process:
        try:
            with _script_hidden():
                future = process.submit(work, *arguments)
            return future.result()
        except BrokenProcessPool as error:
            raise UserError("a process was killed, perhaps for want of memory", "free some and try again") from error


@contextlib.contextmanager
def _script_hidden() -> Iterator[None]:
    """Keep a process that starts meanwhile from running the user's script again, which may have no `__main__` guard."""
    script = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script
