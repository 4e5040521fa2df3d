"""What the frozen layers give for every training text, computed once and kept on disk.

Two memory-mapped files in the user's cache, named by a fingerprint of the model, the number of frozen layers, the
computation and every token: the hidden states of all packed sequences in a row, and for each sequence the checksum of
its part. A checksum is written after its states, so a part that a kill left half written is computed again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from harness.errors import UserError
from harness.files import GIB
from harness.scoring.packing import PackedSequence


class FrozenStates:
    """Kept hidden states of `packed`, by number.

    Args:
        directory: the cache's directory for all such files.
        identity: what decides the numbers beside the tokens: model, frozen layers, type of the computation.
        packed: every sequence that may be asked for.
        hidden_size: values a token.
        dtype: "bfloat16" or "float32", of the values.
        limit_bytes: sequences beyond this size are not kept.
        say: told the size before anything is written.

    Raises:
        UserError: the disk has not this much room.
    """

    def __init__(
        self,
        directory: Path,
        identity: Sequence[object],
        packed: Sequence[PackedSequence],
        hidden_size: int,
        dtype: str,
        limit_bytes: int,
        say: Callable[[str], None],
    ) -> None:
        # numpy has no bfloat16: its bits travel as 16-bit integers.
        self._type = np.dtype(np.uint16 if dtype == "bfloat16" else np.float32)
        self._width = hidden_size
        lengths = np.array([len(one) for one in packed], dtype=np.int64)
        ends = np.cumsum(lengths)
        self._kept = int(np.searchsorted(ends * hidden_size * self._type.itemsize, limit_bytes, side="right"))
        self._starts = ends - lengths
        self._lengths = lengths
        self.size_bytes = int(ends[self._kept - 1]) * hidden_size * self._type.itemsize if self._kept else 0
        self._verified: set[int] = set()
        if not self._kept:
            return
        self._states_file = directory / f"{_fingerprint(identity, packed)}.states"
        self._sums_file = self._states_file.with_suffix(".sums")
        self._open(len(packed), say)

    def _open(self, total: int, say: Callable[[str], None]) -> None:
        try:
            self._states_file.parent.mkdir(parents=True, exist_ok=True)
            # The file is sparse: what is not written yet takes no room yet.
            taken = self._states_file.stat().st_blocks * 512 if self._states_file.exists() else 0
            free = shutil.disk_usage(self._states_file.parent).free
            part = "" if self._kept == total else f" (of {self._kept} of {total} texts: frozen_cache_gb)"
            say(f"frozen layers' output: {self.size_bytes / GIB:.2f} GiB in {self._states_file.parent}{part}")
            if free < self.size_bytes - taken:
                raise UserError(
                    f"{self._states_file.parent} has {free / GIB:.1f} GiB free, the frozen layers' output takes "
                    f"{(self.size_bytes - taken) / GIB:.1f} more",
                    "free some space, set RSG_HARNESS_CACHE, or lower frozen_cache_gb in the recipe (0: none)",
                )
            self._states = _mapped(self._states_file, self._type, self.size_bytes // self._type.itemsize)
            self._sums = _mapped(self._sums_file, np.dtype(np.uint64), self._kept)
        except OSError as error:
            raise UserError(
                f"cannot write {self._states_file}: {error.strerror}",
                "free some space, set RSG_HARNESS_CACHE, or lower frozen_cache_gb in the recipe (0: none)",
            ) from error

    def get(self, number: int) -> np.ndarray | None:
        """The states of a sequence, [tokens, hidden size], bits as stored; None where they are not kept (yet)."""
        if number >= self._kept or not self._sums[number]:
            return None
        states = self._slice(number)
        if number not in self._verified:
            if _checksum(states) != self._sums[number]:
                return None
            self._verified.add(number)
        return states

    def put(self, number: int, states: np.ndarray) -> None:
        """Keeps the states of a sequence, unless the limit leaves no room for it."""
        if number < self._kept:
            self._slice(number)[:] = states
            self._sums[number] = _checksum(states)
            self._verified.add(number)

    def _slice(self, number: int) -> np.ndarray:
        start = int(self._starts[number]) * self._width
        length = int(self._lengths[number])
        return self._states[start : start + length * self._width].reshape(length, self._width)


def _mapped(path: Path, dtype: np.dtype, count: int) -> np.ndarray:
    """The file as an array; a new one is full of zeros, which the file system need not store."""
    if not path.exists():
        with path.open("wb") as file:
            file.truncate(count * dtype.itemsize)
    return np.memmap(path, dtype=dtype, mode="r+", shape=(count,))


def _checksum(states: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(states).data) + 1  # 0 means: not there


def _fingerprint(identity: Sequence[object], packed: Sequence[PackedSequence]) -> str:
    digest = hashlib.sha256(json.dumps([str(part) for part in identity]).encode())
    for one in packed:
        for array in (one.tokens, one.positions, one.until):
            digest.update(array.tobytes() + b"|")
    return digest.hexdigest()[:24]
