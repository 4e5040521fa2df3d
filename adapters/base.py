"""The interface between the planner and the libraries that compute.

numpy arrays, plain numbers and dataclasses cross it, never tensors. Adapters import nothing from `harness`.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy as np


class UserError(Exception):
    """Something that the user can fix. `hint` says how; the command prints both in one line and exits with 2."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


def is_installed(module: str) -> bool:
    """Return whether a module can be found, without importing it."""
    return importlib.util.find_spec(module) is not None


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type where it has none."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


class OutOfMemory(Exception):
    """A batch did not fit. The scorer halves it and tries again."""


@contextlib.contextmanager
def library_errors(message: str, hint: str = "") -> Iterator[None]:
    """Turn whatever a library raises in the block, for input that it cannot use, into an error of one line.

    The block holds one call of a library and none of our own code, whose faults keep their traceback. A full disk is
    left to whoever writes.

    Args:
        message: What could not be done; the first line of the library's message follows.
        hint: What the user can do.
    """
    try:
        yield
    except (UserError, OutOfMemory):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"{message}: {first_line(error)}", hint) from error


@dataclass(frozen=True)
class BackendInfo:
    """What was loaded and what computes. All sizes in bytes."""

    name: str  # as given to --backend, resolved: "torch-cpu", "mlx-q4"
    execution: str  # "torch", "mlx" or "llama.cpp": the library that computes
    device: str  # "cpu", "mps", "cuda", "metal"
    dtype: str  # of the computation: "float32", "bfloat16", "float16"; "int8": activations rounded to 8 bits
    weights: str  # how the weights are stored: "bfloat16", "4-bit, group size 64"
    weights_bytes: int  # size of the weights as stored, quantisation scales included
    parameters: int
    context_length: int  # tokens
    hidden_size: int
    vocabulary_size: int  # rows of the vocabulary matrix
    batch_tokens: int  # a good token budget for one batch on this device
    options: dict[str, Any] = field(default_factory=dict)


class Prefix(ABC):
    """The key-value cache of a token sequence that others share as their beginning. It never changes."""

    length: int  # tokens


OwnPrefix = TypeVar("OwnPrefix", bound=Prefix)


def own_prefix(
    prefix: Prefix | None, kind: type[OwnPrefix], rows: Sequence[Sequence[int]], keep: bool
) -> OwnPrefix | None:
    """Return the prefix that `Backend.hidden_states` is given, once its arguments are checked.

    Args:
        prefix: As given.
        kind: The backend's own kind of prefix.
        rows, keep: As given.

    Raises:
        TypeError: The prefix was made by another backend.
        ValueError: `keep` with several rows.
    """
    if keep and len(rows) != 1:
        raise ValueError("only a single row can be kept as a prefix")
    if prefix is not None and not isinstance(prefix, kind):
        raise TypeError("the prefix was made by another backend")
    return prefix


def check_tokens(tokens: np.ndarray, vocabulary: int) -> None:
    """Refuse what `Backend.project` does not take.

    Raises:
        ValueError: A token outside the vocabulary.
    """
    if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocabulary:
        raise ValueError(f"token ids must lie in 0 to {vocabulary - 1}")


@dataclass(frozen=True)
class Sampling:
    """How to generate. `temperature` 0 is greedy."""

    max_new_tokens: int
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


class Backend(ABC):
    """A loaded language model."""

    info: BackendInfo
    tokenizer: Any  # a transformers tokenizer (PreTrainedTokenizerFast)
    # Whether `hidden_states` can keep a prefix. Recurrent models cannot: a continuation overwrites their state.
    shares_prefixes: bool = True

    @abstractmethod
    def hidden_states(
        self,
        rows: Sequence[Sequence[int]],
        positions: Sequence[Sequence[int]],
        prefix: Prefix | None = None,
        keep: bool = False,
    ) -> tuple[np.ndarray, Prefix | None]:
        """Compute the rows, each after the same `prefix`, and return last hidden states at some positions.

        Args:
            rows: Token ids; no row is empty. Shorter rows are padded on the right.
            positions: For each row, the positions to return; 0 is the first token after the prefix.
            prefix: The tokens before every row, from an earlier call, or None.
            keep: Return the cache of prefix and row for reuse; allowed for a single row only.

        Returns:
            float32 array [number of positions, hidden size], after the final norm, in the order of rows and positions;
            and the new prefix if `keep`, else None.

        Raises:
            OutOfMemory: The batch does not fit.
            TypeError: The prefix was made by another backend.
            ValueError: `keep` with several rows.
        """

    @abstractmethod
    def project(self, hidden: np.ndarray, sources: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the log-probabilities of chosen tokens, computed in float32 over the whole vocabulary.

        Args:
            hidden: float32 [n, hidden size], from `hidden_states`.
            sources: int64 [m], the row of `hidden` that predicts each token.
            tokens: int64 [m], token ids.

        Returns:
            float64 [m] log-probabilities (natural logarithm), and bool [m]: whether the token is the most probable one.

        Raises:
            OutOfMemory: The projection does not fit.
            ValueError: A token outside the vocabulary.
        """

    @abstractmethod
    def vocabulary_logits(self, hidden: np.ndarray) -> np.ndarray:
        """Return the logits of the whole vocabulary, float32 [n, vocabulary].

        Args:
            hidden: float32 [n, hidden size], from `hidden_states`.

        Raises:
            OutOfMemory: They do not fit.
        """

    @abstractmethod
    def library_logprobs(self, tokens: Sequence[int]) -> np.ndarray:
        """Return log-probabilities by the library's own forward pass of the whole model, to check the others against.

        Args:
            tokens: Token ids of one text, two or more.

        Returns:
            float64 [len(tokens) - 1], of each token but the first, given all tokens before it.
        """

    @abstractmethod
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        on_text: Callable[[int, str], None] | None = None,
        remember: bool = False,
    ) -> list[str]:
        """Continue every prompt, as one batch.

        Args:
            prompts: Token ids; no prompt is empty.
            sampling: Length limit, stop strings, temperature.
            on_text: Called with the index of a prompt and its whole text so far, whenever the text has grown.
            remember: Keep what was computed, for a later call with `remember` whose prompts begin like these texts, as
                the next turn of a dialogue does. Without it, a call depends on nothing that went before. A backend may
                have no such memory.

        Returns:
            The continuations, cut before the first stop string, without special tokens.

        Raises:
            OutOfMemory: The batch does not fit.
        """

    def forget(self) -> None:
        """Forget what `generate` remembered, at the latest when it is called next; another thread may call this."""
        return

    @abstractmethod
    def peak_memory(self) -> int | None:
        """Return the most bytes that the device's allocator held; None if the process's memory is the measure."""


# (name below the cache, what fills an empty directory, what to tell the user) -> the directory, made once.
CachedDirectory = Callable[[str, Callable[[Path], None], str], Path]


@dataclass(frozen=True)
class BackendKind:
    """A name for --backend.

    Attributes:
        name: Such as "mlx-q4".
        family: The library behind it.
        summary: A line for the list of backends.
        settings: How it differs from the family's other backends: a device, a number of bits.
    """

    name: str
    family: Family
    summary: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadRequest:
    """A model to load, and how to load it.

    Attributes:
        model_dir: Holds config.json, tokenizer.json and safetensors.
        fingerprint: SHA-256 of the model, which names conversions of it in the cache.
        cached: Makes directories of the cache, whole or not at all.
        execution: The library that computes.
        dtype: "auto", "float32", "bfloat16" or "float16": the type of the computation.
        args: Values of --backend-arg, of the family's types.
        adapter: Directory of a LoRA adapter that is computed beside the quantised weights; None: there is none.
        gguf: The GGUF file that the model is; None: it is a directory.
    """

    model_dir: Path
    fingerprint: str
    cached: CachedDirectory
    execution: str
    dtype: str
    args: Mapping[str, Any]
    adapter: Path | None = None
    gguf: Path | None = None


@dataclass(frozen=True)
class Finding:
    """A line of `rsg-harness doctor`. `advice` says what to do; it is empty if nothing is wrong."""

    name: str
    value: str
    advice: str = ""


class Family(ABC):
    """A library that computes: its backends, and how one is loaded. Importing it loads no tensor library."""

    name: str
    # The libraries that can compute its backends; the first is the usual one.
    executions: tuple[str, ...]
    # --backend-arg NAME=VALUE: name -> type.
    arguments: Mapping[str, type]

    @abstractmethod
    def kinds(self) -> tuple[BackendKind, ...]:
        """Return its backends."""

    @abstractmethod
    def problem(self, kind: BackendKind) -> str:
        """Say why a backend cannot run on this machine; "" if it can."""

    def default_execution(self) -> str:
        """Return the library that computes on this machine."""
        return self.executions[0]

    @abstractmethod
    def load(self, kind: BackendKind, request: LoadRequest) -> Backend:
        """Load a model.

        Raises:
            UserError: The backend or the model cannot be used on this machine.
        """

    @abstractmethod
    def dtypes(self, kind: BackendKind) -> tuple[str, ...]:
        """Return the types in which a backend computes on this machine."""

    @abstractmethod
    def reference(self, kind: BackendKind, request: LoadRequest) -> Backend:
        """Load the same weights to compute in float32 on the CPU by PyTorch, as a measure of the backend's numbers.

        Raises:
            UserError: As `load`.
        """

    @abstractmethod
    def findings(self) -> list[Finding]:
        """Return the doctor's lines about the library on this machine."""
