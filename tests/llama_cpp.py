"""llama.cpp's own answers about a GGUF file: its tokens, and its log-probabilities in float32."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from adapters.llama_library import Batch, load_library

_F32 = 0  # GGML_TYPE_F32


class LlamaFile:
    """A GGUF file that llama.cpp has loaded.

    Args:
        file: The file.
        vocabulary_only: Load no weights.
    """

    def __init__(self, file: Path, vocabulary_only: bool = False) -> None:
        self._library = load_library()
        params = self._library.llama_model_default_params()
        params.vocab_only = vocabulary_only
        self._model = self._library.llama_model_load_from_file(str(file).encode(), params)
        assert self._model, file
        self._vocabulary = self._library.llama_model_get_vocab(self._model)

    def __del__(self) -> None:
        if getattr(self, "_model", None):
            self._library.llama_model_free(self._model)

    def tokens(self, text: str) -> list[int]:
        """Return the ids of a text, with what the file puts around it."""
        data = text.encode()
        ids = (ctypes.c_int32 * (len(data) + 8))()
        count = self._library.llama_tokenize(self._vocabulary, data, len(data), ids, len(ids), True, True)
        assert count >= 0
        return list(ids[:count])

    def logprobs(self, tokens: Sequence[int]) -> np.ndarray:
        """Return the log-probabilities after each token, float64 [tokens, vocabulary]."""
        count = len(tokens)
        params = self._library.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = params.n_outputs_max = max(count, 32)
        params.n_threads = params.n_threads_batch = 1
        params.flash_attn_type = 0
        params.type_k = params.type_v = _F32
        context = self._library.llama_init_from_model(self._model, params)
        assert context
        try:
            zeros = (ctypes.c_int32 * count)()
            rows = (ctypes.POINTER(ctypes.c_int32) * count)(*[zeros] * count)
            ids, places, ones = ((ctypes.c_int32 * count)(*values) for values in (tokens, range(count), [1] * count))
            batch = Batch(count, ids, None, places, ones, rows, (ctypes.c_int8 * count)(*[1] * count))
            assert self._library.llama_decode(context, batch) == 0
            size = self._library.llama_vocab_n_tokens(self._vocabulary)
            found = self._library.llama_get_logits_ith(context, 0)
            logits = np.ctypeslib.as_array(found, shape=(count, size)).astype(np.float64)
        finally:
            self._library.llama_free(context)
        return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
