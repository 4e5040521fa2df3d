"""The output of the frozen layers for every training text, computed once and kept on disk.

Two memory-mapped files in the user's cache, named by a fingerprint of the model, the number of frozen layers, the
computation and every token, hold the hidden states of all packed sequences in a row, and for each sequence the checksum
of its part. A checksum is written after its states, so a part that a kill left half written is computed again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from harness.errors import UserError
from harness.files import GIB
from harness.scoring.packing import PackedSequence
from harness.training.examples import Example
from harness.training.model import Inputs, MultitaskModel

log = logging.getLogger(__name__)


class FrozenLayers:
    """The frozen layers of a model; their output comes from the disk where it is kept.

    Args:
        model: Whose lower layers are frozen.
        states: Keeps their output; None: it is computed every time.
        examples: All that may be asked for, in the order of the sequences in `states`.
    """

    def __init__(self, model: MultitaskModel, states: FrozenStates | None, examples: Sequence[Example]) -> None:
        self._model = model
        self._states = states
        self._numbers: Mapping[int, int] = {id(example): number for number, example in enumerate(examples)}

    def __call__(self, inputs: Inputs, examples: Sequence[Example]) -> torch.Tensor | None:
        """Return the hidden states of a batch after the frozen layers, [rows, longest, hidden size].

        Where those of any example are missing, the whole batch is computed, so the numbers do not depend on what a
        killed run has kept.
        """
        if self._states is None:
            return self._model.lower(inputs)
        numbers = [self._numbers[id(example)] for example in examples]
        kept = [self._states.get(number) for number in numbers]
        if all(states is not None for states in kept):
            tokens = inputs.decoder["input_ids"]
            width = tokens.shape[1]
            padded = np.zeros((len(kept), width, kept[0].shape[1]), dtype=kept[0].dtype)  # type: ignore[union-attr]
            for row, states in enumerate(kept):
                padded[row, : len(states)] = states  # type: ignore[arg-type]
            return _from_stored(padded).to(tokens.device)
        lower = self._model.lower(inputs)
        assert lower is not None  # states are kept only where layers are frozen
        stored = _to_stored(lower)
        for row, (number, example, states) in enumerate(zip(numbers, examples, kept, strict=True)):
            if states is None:
                self._states.put(number, stored[row, : len(example.packed)])
            else:
                lower[row, : len(states)] = _from_stored(np.array(states)).to(lower.device)
        return lower


def _to_stored(states: torch.Tensor) -> np.ndarray:
    states = states.detach().cpu()
    return states.view(torch.uint16).numpy() if states.dtype == torch.bfloat16 else states.float().numpy()


def _from_stored(states: np.ndarray) -> torch.Tensor:
    tensor = torch.from_numpy(states)
    return tensor.view(torch.bfloat16) if states.dtype == np.uint16 else tensor


class FrozenStates:
    """Kept hidden states of `packed`, by number.

    Args:
        directory: The cache's directory for all such files.
        identity: What decides the values besides the tokens: model, frozen layers, type of the computation.
        packed: Every sequence that may be asked for.
        hidden_size: Values per token.
        dtype: Type of the values: "bfloat16" or "float32".
        limit_bytes: Sequences beyond this size are not kept.

    Raises:
        UserError: The disk does not have this much room.
    """

    def __init__(
        self,
        directory: Path,
        identity: Sequence[object],
        packed: Sequence[PackedSequence],
        hidden_size: int,
        dtype: str,
        limit_bytes: int,
    ) -> None:
        # numpy has no bfloat16: its bits are stored as 16-bit integers.
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
        self._open(len(packed))

    def _open(self, total: int) -> None:
        try:
            self._states_file.parent.mkdir(parents=True, exist_ok=True)
            # The file is sparse: what is not written yet takes no room.
            taken = self._states_file.stat().st_blocks * 512 if self._states_file.exists() else 0
            free = shutil.disk_usage(self._states_file.parent).free
            part = "" if self._kept == total else f" (of {self._kept} of {total} texts: frozen_cache_gb)"
            size = f"{self.size_bytes / GIB:.2f} GiB"
            log.info("output of the frozen layers: %s in %s%s", size, self._states_file.parent, part)
            if free < self.size_bytes - taken:
                raise UserError(
                    f"{self._states_file.parent} has {free / GIB:.1f} GiB free, the output of the frozen layers takes "
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
        """Return the states of a sequence as stored, [tokens, hidden size]; None where they are not kept (yet)."""
        if number >= self._kept or not self._sums[number]:
            return None
        states = self._slice(number)
        if number not in self._verified:
            if _checksum(states) != self._sums[number]:
                return None
            self._verified.add(number)
        return states

    def put(self, number: int, states: np.ndarray) -> None:
        """Keep the states of a sequence, unless the limit leaves no room for it."""
        if number < self._kept:
            self._slice(number)[:] = states
            self._sums[number] = _checksum(states)
            self._verified.add(number)

    def _slice(self, number: int) -> np.ndarray:
        start = int(self._starts[number]) * self._width
        length = int(self._lengths[number])
        return self._states[start : start + length * self._width].reshape(length, self._width)


def _mapped(path: Path, dtype: np.dtype, count: int) -> np.ndarray:
    """Map the file as an array; a new file is all zeros, which the file system need not store."""
    if not path.exists():
        with path.open("wb") as file:
            file.truncate(count * dtype.itemsize)
    return np.memmap(path, dtype=dtype, mode="r+", shape=(count,))


def _checksum(states: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(states).data) + 1  # 0 means: not there


def _fingerprint(identity: Sequence[object], packed: Sequence[PackedSequence]) -> str:
    digest = hashlib.sha256(json.dumps([str(part) for part in identity]).encode())
    for one in packed:
        for array in (one.tokens, one.positions, one.subtree_end):
            digest.update(array.tobytes() + b"|")
    return digest.hexdigest()[:24]
