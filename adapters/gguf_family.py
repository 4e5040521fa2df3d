"""The llama.cpp backends. Importing this loads no tensor library."""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters.architecture import read_architecture
from adapters.base import Backend, BackendInfo, BackendKind, Family, Finding, LoadRequest, UserError
from adapters.llama_library import FLASH_ATTENTION, INSTALL, installed_version, library_file, load_library
from adapters.text import configured_ends, end_tokens, load_tokenizer

if TYPE_CHECKING:
    from adapters.gguf_file import Header

# On two CPU cores throughput no longer grows beyond this; a GPU needs more to be busy (not measured here).
BATCH_TOKENS = {"cpu": 1_024, "metal": 4_096, "cuda": 4_096}
# Those of `gguf_types.KINDS` that people use most.
_KINDS = ("f32", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "q3_k_m", "q2_k")
_MOST_THREADS = 512  # GGML_MAX_N_THREADS
_CACHE_TYPES = {"f32": 0, "f16": 1, "bf16": 30, "q8_0": 8}  # enum ggml_type
# ggml rounds the activations to the type of the weights before a product; with quantised ones, to blocks of 8 bits.
QUANTISED_DTYPE = "int8"
# llama.cpp's name for a file of weights that are not quantised -> ours.
_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
_WHOLE = {"ALL_F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class GgufFamily(Family):
    """Models in llama.cpp's own format, computed by llama.cpp."""

    name = "gguf"
    executions = ("llama.cpp",)
    arguments: Mapping[str, type] = {
        "threads": int,
        "gpu_layers": int,
        "context": int,
        "flash_attention": str,
        "cache_type": str,
    }

    def kinds(self) -> tuple[BackendKind, ...]:
        own = BackendKind("gguf", self, "llama.cpp, a .gguf file as it stands", {"kind": None})
        made = [BackendKind(f"gguf-{kind}", self, f"llama.cpp, {kind} weights", {"kind": kind}) for kind in _KINDS]
        return (own, *made)

    def problem(self, kind: BackendKind) -> str:
        return llama_problem()

    def load(self, kind: BackendKind, request: LoadRequest) -> Backend:
        return _load(kind, request)

    def dtypes(self, kind: BackendKind) -> tuple[str, ...]:
        made = kind.settings["kind"]
        return (_DTYPES.get(made, QUANTISED_DTYPE) if made else "auto",)

    def reference(self, kind: BackendKind, request: LoadRequest) -> Backend:
        from adapters.torch_backend import load_torch

        state = None
        if (made := kind.settings["kind"]) is not None:
            import torch

            from adapters.gguf_writer import read_back

            file = _gguf_file(kind, request)
            state = {name: torch.from_numpy(values) for name, values in read_back(request.model_dir, file, made)}
        return load_torch(kind.name, request.model_dir, device="cpu", dtype="float32", state=state)

    def findings(self) -> list[Finding]:
        if library_file() is None:  # which is no problem: not everyone needs this extra
            return [Finding("gguf backends", f"llama.cpp is not installed ({INSTALL})")]
        if problem := llama_problem():
            return [Finding("gguf backends", problem, INSTALL)]
        return [Finding("gguf backends", f"computed by llama.cpp, build {installed_version()}, on {_device({})}")]


@functools.cache
def llama_problem() -> str:
    """Say why llama.cpp cannot be used here; "" where it can."""
    if library_file() is None:
        return "llama.cpp is not installed"
    try:
        load_library()
    except UserError as error:
        return error.message
    return ""


def _gguf_file(kind: BackendKind, request: LoadRequest) -> Path:
    """Return the model's file as it stands, or one made in the cache for a backend that names a kind of weights.

    Raises:
        UserError: There is no file, or it cannot be made.
    """
    from adapters.gguf_file import quantised_tensor, read_header

    wanted = kind.settings["kind"]
    if wanted is None:
        if request.gguf is None:
            raise UserError(
                "--backend gguf runs a .gguf file as it stands, and this model is none",
                "use --backend gguf-q8_0 or another one that makes the file",
            )
        return request.gguf
    if request.gguf is not None and quantised_tensor(read_header(request.gguf)):
        raise UserError(
            f"{request.gguf.name} is quantised, and --backend {kind.name} would quantise it again",
            "use --backend gguf, which runs the file as it stands, or name the whole model",
        )
    from adapters.gguf_writer import write_gguf

    def make(directory: Path) -> None:
        write_gguf(request.model_dir, directory / "model.gguf", wanted, tokenizer=False)

    made = request.cached(
        f"gguf/{wanted}-{request.fingerprint[:16]}",
        make,
        f"writing the weights as {wanted} for llama.cpp, once",
    )
    return made / "model.gguf"


def _stored_as(header: Header) -> str:
    """Return how a file stores its weights: "Q4_K_M", "bfloat16"."""
    from gguf import LlamaFileType

    try:
        name = LlamaFileType(header.values.get("general.file_type", -1)).name.removeprefix("MOSTLY_")
    except ValueError:
        return "mixed"
    return _WHOLE.get(name, name)


def _load(kind: BackendKind, request: LoadRequest) -> Backend:
    if problem := llama_problem():
        raise UserError(f"--backend {kind.name}: {problem}", INSTALL)
    from adapters.ggml_product import VocabularyProduct
    from adapters.gguf_backend import GgufBackend
    from adapters.gguf_file import part_files, read_header
    from adapters.llama_context import ContextSettings, LlamaModel

    args = dict(request.args)
    for name, least in (("threads", 1), ("gpu_layers", -1), ("context", 1)):
        if args.get(name, least) < least:
            raise UserError(f"--backend-arg {name}={args[name]} makes no sense", f"give {least} or more")
    if args.get("threads", 1) > _MOST_THREADS:
        raise UserError(f"--backend-arg threads={args['threads']} is too many", f"give at most {_MOST_THREADS}")
    flash_attention = _choice("flash_attention", args.get("flash_attention"), FLASH_ATTENTION)
    cache_type = _choice("cache_type", args.get("cache_type"), _CACHE_TYPES)
    file = _gguf_file(kind, request)
    parts = {part: read_header(part) for part in part_files(file)}
    stored = _stored_as(parts[file])
    dtype = stored if stored in _WHOLE.values() else QUANTISED_DTYPE
    if request.dtype not in ("auto", dtype):
        raise UserError(f"llama.cpp computes {stored} weights in {dtype}, not in {request.dtype}", "leave out --dtype")
    # llama.cpp's flash attention and its usual cache round to 16 bits, which would be the coarsest step of float32.
    exact = dtype == "float32"
    settings = ContextSettings(
        threads=args.get("threads", _threads()),
        flash_attention=FLASH_ATTENTION["off" if exact else "auto"] if flash_attention is None else flash_attention,
        cache_type=_CACHE_TYPES["f32" if exact else "f16"] if cache_type is None else cache_type,
    )
    model = LlamaModel(file, args.get("gpu_layers", -1))
    context = args.get("context", model.context_length)
    if context > model.context_length:
        raise UserError(
            f"--backend-arg context={context}: {file.name} was trained on {model.context_length} tokens",
            f"give at most {model.context_length}",
        )
    product = VocabularyProduct(parts, settings.threads)
    tokenizer = load_tokenizer(request.model_dir)
    architecture = read_architecture(request.model_dir)
    device = _device(args)
    info = BackendInfo(
        name=kind.name,
        execution="llama.cpp",
        device=device,
        dtype=dtype,
        weights=stored,
        weights_bytes=model.bytes,
        parameters=model.parameters,
        context_length=context,
        hidden_size=model.hidden_size,
        vocabulary_size=product.rows,
        batch_tokens=BATCH_TOKENS[device],
        options={**args, "threads": settings.threads, "build": installed_version()},
    )
    ends = end_tokens(tokenizer, configured_ends(request.model_dir))
    return GgufBackend(model, product, settings, tokenizer, info, ends, architecture.logits)


def _choice(name: str, value: str | None, known: Mapping[str, int]) -> int | None:
    if value is None:
        return None
    if value not in known:
        raise UserError(f"--backend-arg {name}={value} is unknown", f"it takes {', '.join(known)}")
    return known[value]


def _threads() -> int:
    """Return the number that OMP_NUM_THREADS names, else of processors that this process may use."""
    if (named := os.environ.get("OMP_NUM_THREADS", "")).isdecimal() and int(named):
        return int(named)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _device(args: Mapping[str, Any]) -> str:
    """Return what computes the layers."""
    library = load_library()
    if not library.llama_supports_gpu_offload() or args.get("gpu_layers") == 0:
        return "cpu"
    return "metal" if platform.system() == "Darwin" else "cuda"
