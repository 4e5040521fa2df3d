"""The C library of llama.cpp, from the wheel of xllamacpp, by ctypes.

That wheel is prebuilt for Linux, macOS (with Metal) and Windows, follows llama.cpp week by week, and exports the C API
(include/llama.h, ggml/include/*.h) from its extension module; its Python classes are not used. The layout of the two
structures of parameters changes between builds of llama.cpp, so it is checked against the defaults that the library
fills in.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from collections import deque
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int, c_int8, c_int32, c_int64, c_size_t, c_uint32, c_void_p
from importlib import metadata
from pathlib import Path

from adapters.base import UserError, first_line

PACKAGE = "xllamacpp"
# The build whose structures are laid out below.
VERSION = "2026.10.11549"
INSTALL = "pip install 'rsg-harness[gguf]'"
# enum llama_flash_attn_type, ggml_log_level, ggml_status
FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}
_LOG_ERROR = 4
SUCCESS = 0
# Ends of messages that only repeat that something failed.
_NO_REASON = ("failed to load model", "failed to initialize the context")
# The last messages by which the library explains a failure.
_MESSAGES: deque[str] = deque(maxlen=20)


class ModelParams(ctypes.Structure):
    """struct llama_model_params."""

    _fields_ = (
        ("devices", c_void_p),
        ("tensor_buft_overrides", c_void_p),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int),
        ("load_mode", c_int),
        ("lazy_mode", c_int),
        ("main_gpu", c_int32),
        ("tensor_split", c_void_p),
        ("progress_callback", c_void_p),
        ("progress_callback_user_data", c_void_p),
        ("kv_overrides", c_void_p),
        ("vocab_only", c_bool),
        ("check_tensors", c_bool),
        ("use_extra_bufts", c_bool),
        ("no_host", c_bool),
        ("no_alloc", c_bool),
        ("load_mtp", c_bool),
    )


# bool (*)(struct ggml_tensor * tensor, bool ask, void * user_data)
EvalCallback = ctypes.CFUNCTYPE(c_bool, c_void_p, c_bool, c_void_p)
_LogCallback = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)


class ContextParams(ctypes.Structure):
    """struct llama_context_params."""

    _fields_ = (
        ("n_ctx", c_uint32),
        ("n_batch", c_uint32),
        ("n_ubatch", c_uint32),
        ("n_seq_max", c_uint32),
        ("n_rs_seq", c_uint32),
        ("n_outputs_max", c_uint32),
        ("n_outputs_max_per_seq", c_uint32),
        ("n_threads", c_int32),
        ("n_threads_batch", c_int32),
        ("ctx_type", c_int),
        ("rope_scaling_type", c_int),
        ("pooling_type", c_int),
        ("attention_type", c_int),
        ("flash_attn_type", c_int),
        ("rope_freq_base", c_float),
        ("rope_freq_scale", c_float),
        ("yarn_ext_factor", c_float),
        ("yarn_attn_factor", c_float),
        ("yarn_beta_fast", c_float),
        ("yarn_beta_slow", c_float),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        ("cb_eval", EvalCallback),
        ("cb_eval_user_data", c_void_p),
        ("type_k", c_int),
        ("type_v", c_int),
        ("moe_cache_size", c_size_t),
        ("abort_callback", c_void_p),
        ("abort_callback_data", c_void_p),
        ("embeddings", c_bool),
        ("offload_kqv", c_bool),
        ("no_perf", c_bool),
        ("op_offload", c_bool),
        ("swa_full", c_bool),
        ("kv_unified", c_bool),
        ("samplers", c_void_p),
        ("n_samplers", c_size_t),
        ("ctx_other", c_void_p),
    )


class Batch(ctypes.Structure):
    """struct llama_batch."""

    _fields_ = (
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", POINTER(c_float)),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    )


class GgmlInitParams(ctypes.Structure):
    """struct ggml_init_params."""

    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


# Function -> (type of the result, types of the arguments).
_FUNCTIONS: dict[str, tuple[type | None, list[type]]] = {
    "llama_backend_init": (None, []),
    "llama_log_set": (None, [_LogCallback, c_void_p]),
    "llama_model_default_params": (ModelParams, []),
    "llama_context_default_params": (ContextParams, []),
    "llama_model_load_from_file": (c_void_p, [c_char_p, ModelParams]),
    "llama_model_free": (None, [c_void_p]),
    "llama_init_from_model": (c_void_p, [c_void_p, ContextParams]),
    "llama_free": (None, [c_void_p]),
    "llama_n_ctx": (c_uint32, [c_void_p]),
    "llama_get_memory": (c_void_p, [c_void_p]),
    "llama_model_get_vocab": (c_void_p, [c_void_p]),
    "llama_model_n_ctx_train": (c_int32, [c_void_p]),
    "llama_model_n_embd": (c_int32, [c_void_p]),
    "llama_model_n_params": (ctypes.c_uint64, [c_void_p]),
    "llama_model_size": (ctypes.c_uint64, [c_void_p]),
    "llama_model_is_recurrent": (c_bool, [c_void_p]),
    "llama_model_is_hybrid": (c_bool, [c_void_p]),
    "llama_vocab_n_tokens": (c_int32, [c_void_p]),
    "llama_vocab_is_eog": (c_bool, [c_void_p, c_int32]),
    "llama_tokenize": (
        c_int32,
        [c_void_p, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool],
    ),
    "llama_memory_seq_rm": (c_bool, [c_void_p, c_int32, c_int32, c_int32]),
    "llama_memory_seq_cp": (None, [c_void_p, c_int32, c_int32, c_int32, c_int32]),
    "llama_decode": (c_int32, [c_void_p, Batch]),
    "llama_get_logits_ith": (POINTER(c_float), [c_void_p, c_int32]),
    "llama_supports_gpu_offload": (c_bool, []),
    "llama_print_system_info": (c_char_p, []),
    "ggml_get_name": (c_char_p, [c_void_p]),
    "ggml_nbytes": (c_size_t, [c_void_p]),
    "ggml_init": (c_void_p, [GgmlInitParams]),
    "ggml_free": (None, [c_void_p]),
    "ggml_tensor_overhead": (c_size_t, []),
    "ggml_graph_overhead": (c_size_t, []),
    "ggml_new_tensor_2d": (c_void_p, [c_void_p, c_int, c_int64, c_int64]),
    "ggml_mul_mat": (c_void_p, [c_void_p, c_void_p, c_void_p]),
    "ggml_new_graph": (c_void_p, [c_void_p]),
    "ggml_build_forward_expand": (None, [c_void_p, c_void_p]),
    "ggml_backend_cpu_init": (c_void_p, []),
    "ggml_backend_cpu_set_n_threads": (None, [c_void_p, c_int]),
    "ggml_backend_cpu_buffer_from_ptr": (c_void_p, [c_void_p, c_size_t]),
    "ggml_backend_buffer_free": (None, [c_void_p]),
    "ggml_backend_free": (None, [c_void_p]),
    "ggml_backend_tensor_alloc": (c_int, [c_void_p, c_void_p, c_void_p]),
    "ggml_backend_tensor_get": (None, [c_void_p, c_void_p, c_size_t, c_size_t]),
    "ggml_backend_graph_compute": (c_int, [c_void_p, c_void_p]),
    "ggml_quantize_chunk": (
        c_size_t,
        [c_int, POINTER(c_float), c_void_p, c_int64, c_int64, c_int64, POINTER(c_float)],
    ),
    "ggml_row_size": (c_size_t, [c_int, c_int64]),
}


@functools.cache
def load_library() -> ctypes.CDLL:
    """Return the library, its functions declared.

    Raises:
        UserError: The package is not installed, cannot be loaded, or is of another build.
    """
    file = library_file()
    if file is None:
        raise UserError("llama.cpp is not installed", INSTALL)
    try:
        library = ctypes.CDLL(str(file))
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise UserError(f"llama.cpp cannot be loaded: {first_line(error)}", INSTALL) from error
    if not _layout_fits(library):
        raise UserError(
            f"{PACKAGE} {installed_version()} is another build of llama.cpp than the one that this program knows",
            f"pip install {PACKAGE}=={VERSION}",
        )
    library.llama_log_set(_keep_message, None)
    library.llama_backend_init()
    return library


def library_file() -> Path | None:
    """Return the library's file; None if the package is not installed."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        return None
    directory = Path(found.submodule_search_locations[0])
    return next((file for file in sorted(directory.iterdir()) if file.suffix in (".so", ".pyd")), None)


def installed_version() -> str:
    """Return the version of the installed package; its last part is the number of llama.cpp's build."""
    return metadata.version(PACKAGE)


def last_message() -> str:
    """Return the library's last complaint that gives a reason, for an error of one line; "" where there was none."""
    reasons = [message for message in _MESSAGES if not message.endswith(_NO_REASON)] or list(_MESSAGES)
    return reasons[-1] if reasons else ""


def forget_messages() -> None:
    """Forget earlier complaints."""
    _MESSAGES.clear()


@_LogCallback
def _keep_message(level: int, text: bytes, _: object) -> None:
    if level == _LOG_ERROR and text.strip():
        _MESSAGES.append(text.decode(errors="replace").strip())


def _layout_fits(library: ctypes.CDLL) -> bool:
    """Return whether the library's default parameters are where the structures above have them."""
    model, context = library.llama_model_default_params(), library.llama_context_default_params()
    return (
        (context.n_ctx, context.n_batch, context.n_ubatch, context.n_seq_max) == (512, 2048, 512, 1)
        and (context.type_k, context.type_v) == (1, 1)
        and (context.embeddings, context.offload_kqv, context.no_perf) == (False, True, True)
        and (context.op_offload, context.swa_full, context.kv_unified) == (True, True, False)
        and (context.samplers, context.n_samplers, context.ctx_other) == (None, 0, None)
        and (model.n_gpu_layers, model.vocab_only, model.use_extra_bufts) == (-1, False, True)
    )
