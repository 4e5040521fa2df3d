"""The product of hidden states and the vocabulary matrix of a GGUF file, by ggml, on the weights as they are stored."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from adapters.base import UserError
from adapters.gguf_file import Header
from adapters.llama_library import SUCCESS, GgmlInitParams, load_library

_F32 = 0  # enum ggml_type
# Addresses that ggml takes for tensors.
_ALIGNMENT = 64
_HEADS = ("output.weight", "token_embd.weight")  # the second where the head is tied


class VocabularyProduct:
    """The vocabulary matrix of a GGUF model, mapped into memory.

    Args:
        parts: The model's files, one or more, and their headers.
        threads: Of the processor.

    Raises:
        UserError: There is no such matrix, or it is cut off.
    """

    def __init__(self, parts: Mapping[Path, Header], threads: int) -> None:
        places = [(file, name) for name in _HEADS for file, header in parts.items() if name in header.tensors]
        if not places:
            raise UserError(f"{next(iter(parts))} holds no output matrix", "name the file of a language model")
        file, name = places[0]
        header = parts[file]
        stored = header.tensors[name]
        self.rows, self.columns = stored.shape
        self._library = load_library()
        self._kind = stored.kind
        size = self.rows * self._library.ggml_row_size(stored.kind, self.columns)
        start = header.data_start + stored.offset
        if file.stat().st_size < start + size:
            raise UserError(f"{file} is incomplete", "copy the file again")
        self._content = np.memmap(file, mode="r", dtype=np.uint8, offset=start, shape=(size,))
        self._threads = threads

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """Return `hidden` · weightᵀ, float32 [n, vocabulary].

        Args:
            hidden: float32 [n, hidden size].

        Raises:
            MemoryError: The result does not fit.
            RuntimeError: ggml gives up.
        """
        ggml = self._library
        states = _aligned((len(hidden), self.columns))
        states[:] = hidden
        result = _aligned((len(hidden), self.rows))
        if not len(hidden):
            return result
        context = ggml.ggml_init(
            GgmlInitParams(4 * ggml.ggml_tensor_overhead() + ggml.ggml_graph_overhead(), None, True)
        )
        backend = ggml.ggml_backend_cpu_init()
        buffers = []
        try:
            weight = ggml.ggml_new_tensor_2d(context, self._kind, self.columns, self.rows)
            states_tensor = ggml.ggml_new_tensor_2d(context, _F32, self.columns, len(hidden))
            product = ggml.ggml_mul_mat(context, weight, states_tensor)
            for tensor, array in ((weight, self._content), (states_tensor, states), (product, result)):
                buffers.append(ggml.ggml_backend_cpu_buffer_from_ptr(array.ctypes.data, array.nbytes))
                ggml.ggml_backend_tensor_alloc(buffers[-1], tensor, array.ctypes.data)
            graph = ggml.ggml_new_graph(context)
            ggml.ggml_build_forward_expand(graph, product)
            ggml.ggml_backend_cpu_set_n_threads(backend, self._threads)
            if ggml.ggml_backend_graph_compute(backend, graph) != SUCCESS:
                raise RuntimeError("ggml failed to compute the projection")
        finally:
            for buffer in buffers:
                ggml.ggml_backend_buffer_free(buffer)
            ggml.ggml_backend_free(backend)
            ggml.ggml_free(context)
        return result


def _aligned(shape: tuple[int, int]) -> np.ndarray:
    """Return an uninitialised float32 array that begins at an address that ggml takes."""
    memory = np.empty(4 * math.prod(shape) + _ALIGNMENT, dtype=np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + 4 * math.prod(shape)].view(np.float32).reshape(shape)
