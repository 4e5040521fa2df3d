"""A GGUF model loaded by llama.cpp, and contexts over it: a key-value cache whose cells several sequences share."""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adapters.base import OutOfMemory, UserError
from adapters.llama_library import (
    SUCCESS,
    Batch,
    EvalCallback,
    forget_messages,
    installed_version,
    last_message,
    load_library,
)

# Sequences that a context tells apart; llama.cpp allows 256 at most.
SEQUENCES = 64
# llama.cpp makes caches of a multiple of this many cells.
_CELLS = 256
# Positions of one call whose logits have room: each takes 1 MiB for a vocabulary of 262,144, twice.
OUTPUTS = 64
# Tokens that llama.cpp computes together; its own default.
PHYSICAL_BATCH = 512
# The tensor after the final norm, for the positions that are asked for, in every architecture of llama.cpp.
LAST_STATES = b"result_norm"
# What llama_decode returns.
_NO_ROOM, _NO_MEMORY = 1, -2
# Parts of the messages with which ggml refuses an allocation.
_MEMORY_MESSAGES = ("failed to allocate", "out of memory", "insufficient memory", "bad_alloc")


@dataclass(frozen=True)
class ContextSettings:
    """How a context computes.

    Attributes:
        threads: Of the processor.
        flash_attention: enum llama_flash_attn_type.
        cache_type: enum ggml_type of keys and values.
    """

    threads: int
    flash_attention: int
    cache_type: int


class LlamaModel:
    """The weights of a GGUF file.

    Args:
        file: The file; the first one of a split model.
        gpu_layers: Layers that a GPU computes; -1: all.

    Raises:
        UserError: llama.cpp cannot read the file.
    """

    def __init__(self, file: Path, gpu_layers: int = -1) -> None:
        self.library = load_library()
        forget_messages()
        params = self.library.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        self.pointer = self.library.llama_model_load_from_file(os.fsencode(file), params)
        if not self.pointer:
            raise _refused(file)
        self.vocabulary = self.library.llama_model_get_vocab(self.pointer)
        self.vocabulary_size: int = self.library.llama_vocab_n_tokens(self.vocabulary)
        self.hidden_size: int = self.library.llama_model_n_embd(self.pointer)
        self.context_length: int = self.library.llama_model_n_ctx_train(self.pointer)
        self.parameters: int = self.library.llama_model_n_params(self.pointer)
        self.bytes: int = self.library.llama_model_size(self.pointer)
        self.has_plain_cache: bool = not (
            self.library.llama_model_is_recurrent(self.pointer) or self.library.llama_model_is_hybrid(self.pointer)
        )

    def __del__(self) -> None:
        if getattr(self, "pointer", None):
            self.library.llama_model_free(self.pointer)

    def ends_text(self, token: int) -> bool:
        """Return whether the file names a token as the end of a text or of a turn."""
        return self.library.llama_vocab_is_eog(self.vocabulary, token)


def _is_lack_of_memory(message: str) -> bool:
    return any(words in message.lower() for words in _MEMORY_MESSAGES)


def _refused(file: Path) -> UserError:
    message = last_message()
    if _is_lack_of_memory(message):
        return UserError(
            f"{file} does not fit into memory", "use a smaller quantisation, or --backend-arg gpu_layers=N"
        )
    return UserError(
        f"llama.cpp cannot load {file}: {message or 'it gives no reason'}",
        f"copy the file again; a newer kind of model needs a newer build than xllamacpp {installed_version()}",
    )


class LlamaContext:
    """A cache of keys and values, and what computes with it.

    Args:
        model: The weights.
        cells: Tokens that the cache holds at least.
        settings: How it computes.
        reads_states: Whether `decode` returns the last hidden states, and computes no logits.
        sequences: How many the cache tells apart.

    Raises:
        OutOfMemory: The cache does not fit.
        UserError: The settings do not go together, or with this model.
    """

    def __init__(
        self,
        model: LlamaModel,
        cells: int,
        settings: ContextSettings,
        reads_states: bool,
        sequences: int = SEQUENCES,
    ) -> None:
        self._library = model.library
        self._model = model  # which must live longer than this
        forget_messages()
        params = self._library.llama_context_default_params()
        cells = -(-cells // _CELLS) * _CELLS
        params.n_ctx = cells
        params.n_batch = params.n_ubatch = min(PHYSICAL_BATCH, cells)
        params.n_seq_max = sequences
        params.n_outputs_max = OUTPUTS
        params.n_threads = params.n_threads_batch = settings.threads
        params.flash_attn_type = settings.flash_attention
        params.type_k = params.type_v = settings.cache_type
        params.kv_unified = True  # a cell can belong to several sequences
        params.swa_full = True  # a prefix longer than the sliding window can be continued
        self._states: list[np.ndarray] = []
        self._failure: BaseException | None = None
        self._reads_states = reads_states
        if reads_states:
            read = weakref.WeakMethod(self._copy_states)  # or the context would keep itself alive
            # Called by `llama_decode` alone, so while `self` is alive. It must live as long as the context.
            self._callback = EvalCallback(lambda tensor, ask, data: read()(tensor, ask, data))  # type: ignore[misc]
            params.cb_eval = self._callback
        self._pointer = self._library.llama_init_from_model(model.pointer, params)
        if not self._pointer:
            message = last_message() or f"no cache of {cells} tokens"
            if _is_lack_of_memory(message):
                raise OutOfMemory(message)
            raise UserError(f"llama.cpp refuses the settings: {message}", "leave out --backend-arg")
        self._memory = self._library.llama_get_memory(self._pointer)
        self.cells: int = self._library.llama_n_ctx(self._pointer)
        # Recurrent memories compute the rows of a batch in another order, and states come in the order of computation.
        self.keeps_order = model.has_plain_cache

    def __del__(self) -> None:
        if getattr(self, "_pointer", None):
            self._library.llama_free(self._pointer)

    def copy(self, source: int, target: int, length: int = -1) -> None:
        """Let the cells of one sequence, all of them or the first ones, belong to another one too."""
        self._library.llama_memory_seq_cp(self._memory, source, target, -1 if length < 0 else 0, length)

    def remove(self, sequence: int) -> None:
        """Take a sequence's cells; those of other sequences stay."""
        self._library.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def decode(
        self, tokens: Sequence[int], places: Sequence[int], sequences: Sequence[int], wanted: Sequence[int]
    ) -> np.ndarray:
        """Compute tokens and store their keys and values.

        Args:
            tokens: Ids, at most `PHYSICAL_BATCH`.
            places: The position of each in its sequence.
            sequences: The sequence of each.
            wanted: Ascending indices of tokens, at most `OUTPUTS`, whose results are returned.

        Returns:
            float32 [wanted, hidden size] if the context reads states, else logits [wanted, vocabulary], which the next
            call overwrites.

        Raises:
            OutOfMemory: The cache is full, or a buffer does not fit.
            RuntimeError: llama.cpp gives up.
        """
        count = len(tokens)
        flags = np.zeros(count, dtype=np.int8)
        flags[list(wanted)] = 1
        ids, positions, of = (np.asarray(values, dtype=np.int32) for values in (tokens, places, sequences))
        ones = np.ones(count, dtype=np.int32)
        # Each token has a list of sequences, here of one: addresses in `of`.
        lists = (of.ctypes.data + of.itemsize * np.arange(count)).astype(np.uintp)
        integers = ctypes.POINTER(ctypes.c_int32)
        batch = Batch(
            count,
            ids.ctypes.data_as(integers),
            None,
            positions.ctypes.data_as(integers),
            ones.ctypes.data_as(integers),
            lists.ctypes.data_as(ctypes.POINTER(integers)),
            flags.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )
        forget_messages()
        self._states, self._failure = [], None
        code = self._library.llama_decode(self._pointer, batch)
        if self._failure is not None:
            raise self._failure
        if code == _NO_ROOM:
            raise OutOfMemory(f"llama.cpp's cache of {self.cells} tokens is full")
        message = last_message()
        if code == _NO_MEMORY or _is_lack_of_memory(message):
            raise OutOfMemory(message or "llama.cpp found no memory for a batch")
        if code != SUCCESS:
            raise RuntimeError(f"llama.cpp failed to compute: {message or code}")
        if self._reads_states:
            return self._taken_states(len(wanted))
        size = self._model.vocabulary_size
        if not len(wanted):
            return np.empty((0, size), dtype=np.float32)
        # The logits of all wanted positions stand in one array, in their order.
        found = self._library.llama_get_logits_ith(self._pointer, int(wanted[0]))
        return np.ctypeslib.as_array(found, shape=(len(wanted), size))

    def _taken_states(self, count: int) -> np.ndarray:
        states = self._states or [np.empty(0, dtype=np.float32)]
        self._states = []
        found = np.concatenate(states).reshape(-1, self._model.hidden_size)
        if len(found) != count:
            raise RuntimeError(f"llama.cpp computed {len(found)} states in place of {count}")
        return found

    def _copy_states(self, tensor: Any, ask: bool, _: Any) -> bool:
        """Copy the last hidden states; what follows them, the projection to the vocabulary, is not computed."""
        try:
            if self._library.ggml_get_name(tensor) != LAST_STATES:
                return not ask
            if not ask:
                states = np.empty(self._library.ggml_nbytes(tensor) // 4, dtype=np.float32)
                self._library.ggml_backend_tensor_get(tensor, states.ctypes.data, 0, states.nbytes)
                self._states.append(states)
            return ask
        except BaseException as error:  # such as Ctrl-C, which ctypes would print and forget
            self._failure = error
            return ask


def decode_rows(
    context: LlamaContext,
    rows: Sequence[Sequence[int]],
    positions: Sequence[Sequence[int]],
    starts: Sequence[int],
    sequences: Sequence[int],
    width: int,
) -> np.ndarray:
    """Decode rows in calls that llama.cpp takes, without padding.

    Args:
        context: Holds the sequences up to where the rows begin.
        rows: Token ids.
        positions: For each row, the places in it whose results are returned.
        starts: For each row, its first token's position in its sequence.
        sequences: Of each row.
        width: Of a result: hidden size or vocabulary.

    Returns:
        float32 [number of positions, width].
    """
    numbers: dict[tuple[int, int], int] = {}
    for row, places in enumerate(positions):
        for place in sorted(set(places)):
            numbers[row, place] = len(numbers)
    found = np.empty((len(numbers), width), dtype=np.float32)
    tokens: list[int] = []
    places_of: list[int] = []
    sequence_of: list[int] = []
    wanted: list[int] = []
    done = 0

    def flush() -> None:
        nonlocal done
        if tokens:
            result = context.decode(tokens, places_of, sequence_of, wanted)
            if wanted:
                found[done : done + len(wanted)] = result
                done += len(wanted)
            for part in (tokens, places_of, sequence_of, wanted):
                part.clear()

    for row, (ids, start, sequence) in enumerate(zip(rows, starts, sequences, strict=True)):
        if not context.keeps_order:
            flush()
        for place, token in enumerate(ids):
            if len(tokens) == PHYSICAL_BATCH or len(wanted) == OUTPUTS:
                flush()
            if (row, place) in numbers:
                wanted.append(len(tokens))
            tokens.append(token)
            places_of.append(start + place)
            sequence_of.append(sequence)
    flush()
    if done != len(found):
        raise ValueError("a position lies outside its row")
    return found[[numbers[row, place] for row, places in enumerate(positions) for place in places]]
