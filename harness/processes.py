"""Several processes that share one run: who this one is, and what all of them found; and work done in one of its own.

`accelerate launch` and `torchrun` start processes that talk through torch.distributed, `mlx.launch` ones that talk
through mx.distributed. What crosses is JSON in arrays of bytes: floats keep every bit, and nothing is unpickled.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from harness.errors import UserError

Result = TypeVar("Result")


@dataclass(frozen=True)
class Processes:
    """This process among `size`. `by`: "torch", "mlx", or None where it is alone."""

    rank: int = 0
    size: int = 1
    by: str | None = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, which JSON can hold, in the order of the processes. All must call it."""
        if self.size == 1:
            return [value]
        content = np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)
        sizes = self._gather_array(np.array([len(content)], dtype=np.int32)).tolist()
        padded = np.zeros(max(sizes), dtype=np.uint8)
        padded[: len(content)] = content
        rows = self._gather_array(padded).reshape(self.size, -1)
        return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]

    def from_first(self, make: Callable[[], Any]) -> Any:
        """What the first process makes, which JSON can hold; the others wait for it. All must call it."""
        return self.gather(make() if self.is_first else None)[0]

    def wait(self) -> None:
        """Until all processes are here."""
        self.gather(None)

    def _gather_array(self, array: np.ndarray) -> np.ndarray:
        """The processes' arrays of one shape, one after the other."""
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
    """The processes that a launcher started this one among; alone where none did."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        import torch
        from torch import distributed

        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        # Only results cross, so gloo does on every device.
        distributed.init_process_group("gloo")
        return Processes(distributed.get_rank(), distributed.get_world_size(), "torch")
    if "MLX_RANK" in os.environ:
        import mlx.core as mx

        world = mx.distributed.init()
        return Processes(world.rank(), world.size(), "mlx" if world.size() > 1 else None)
    return ALONE


def run_apart(work: Callable[..., Result], *arguments: Any) -> Result:
    """What the work gives, done in a process of its own, whose memory does not count as this one's.

    Raises:
        UserError: the process was killed, which out of memory is the usual reason for.
        Exception: what the work raises.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        try:
            return process.submit(work, *arguments).result()
        except BrokenProcessPool as error:
            raise UserError("a process was killed, perhaps for want of memory", "free some and try again") from error
