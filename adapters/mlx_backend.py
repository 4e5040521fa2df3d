"""Causal language models computed by MLX: on Metal on a Mac, elsewhere on the CPU (correct, but slow).

The model and its caches are mlx-lm's. Sharing prefixes, projecting to the vocabulary and stopping text are done here.
MLX is imported on first use, so this module can be imported anywhere. Only one thread at a time may use a backend.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adapters.architecture import Architecture, Logits, read_architecture
from adapters.base import (
    Backend,
    BackendInfo,
    OutOfMemory,
    Prefix,
    Sampling,
    UserError,
    check_tokens,
    library_errors,
    own_prefix,
)
from adapters.low_rank import LowRank
from adapters.mlx_weights import (
    describe_weights,
    mlx_config,
    parameter_count,
    quantization_of,
    read_config,
    stored_bytes,
)
from adapters.text import GrowingTokens, end_tokens, growing_answers, load_tokenizer
from adapters.weight_files import check_tied_head

BATCH_TOKENS = {"metal": 4096, "cpu": 512}
# Longer rows are computed in pieces: attention masks and scores grow with the square of a piece's length.
PREFILL_TOKENS = 2048
# Limit for one block of logits, and for the float32 copy of the rows of the vocabulary matrix that it needs.
PROJECTION_BYTES = 128 * 1024 * 1024
# Parts of the messages with which MLX refuses an allocation: "[malloc] Unable to allocate 1024 bytes.",
# "[metal::malloc] Attempting to allocate ... greater than the maximum allowed buffer size ...",
# "[metal::malloc] Resource limit (499000) exceeded.",
# "[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)".
MEMORY_MESSAGES = ("malloc]", "insufficient memory", "outofmemory", "out of memory")


def import_mlx() -> Any:
    """Return the module mlx.core.

    Raises:
        UserError: MLX or mlx-lm is not installed, or cannot be loaded.
    """
    # On the newest Macs MLX multiplies float32 matrices with a 10-bit mantissa, unless this is set before first use.
    os.environ.setdefault("MLX_ENABLE_TF32", "0")
    try:
        import mlx.core as mx
        import mlx_lm  # noqa: F401
    except ImportError as error:
        raise UserError(f"MLX cannot be loaded: {error}", "pip install mlx-lm, and mlx[cpu] on Linux") from error
    return mx


def metal_available() -> bool:
    """Return whether MLX is installed and computes on an Apple GPU."""
    try:
        mx = import_mlx()
    except UserError:
        return False
    return mx.metal.is_available() and mx.default_device() == mx.gpu


@dataclass(frozen=True)
class MlxPrefix(Prefix):
    """Keys and values of every layer, arrays [1, key-value heads, tokens kept, head width], oldest token first.

    Global layers keep all tokens, sliding ones the last `window` of them.
    """

    length: int
    layers: tuple[tuple[Any, Any], ...]


def load_mlx(
    name: str,
    model_dir: Path,
    *,
    dtype: str = "auto",
    stored: str | None = None,
    adapter: Mapping[str, LowRank] | None = None,
    options: dict[str, Any] | None = None,
) -> MlxBackend:
    """Load a checkpoint for MLX.

    Args:
        name: The backend's name, for the record.
        model_dir: An MLX checkpoint, or an unquantised transformers one.
        dtype: Type of the computation: "float32", "bfloat16", "float16" or "auto". "auto" is float32 on a CPU, where
            MLX's 16-bit kernels accumulate in 16 bits; on a GPU it is `stored`, or bfloat16.
        stored: "float16" or "bfloat16": the type to which an unquantised checkpoint's weights are rounded first.
        adapter: LoRA that is computed beside the weights, from `read_low_rank`; None: there is none.
        options: Values of --backend-arg, for the record.

    Raises:
        UserError: MLX is missing, cannot compute this model, or should compute in 16 bits on a CPU.
    """
    mx = import_mlx()
    from mlx_lm.utils import load_config, load_model

    architecture = read_architecture(model_dir)
    check_tied_head(model_dir, architecture.config.tie_word_embeddings)
    config = mlx_config(read_config(model_dir))
    device = "metal" if metal_available() else "cpu"
    if device == "cpu" and dtype not in ("auto", "float32"):
        raise UserError(f"MLX on a CPU computes in float32 only, not {dtype}", "leave the dtype out")
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else stored or "bfloat16"
    with memory_errors():
        with library_errors(f"mlx-lm cannot load {model_dir}", "use --execution torch or --backend torch"):
            model, _ = load_model(model_dir, lazy=True, model_config=config, trust_remote_code=False)
        if stored and quantization_of(config) is None:
            model.set_dtype(getattr(mx, stored))
        if adapter:
            _put_beside(model, adapter)
        model.set_dtype(getattr(mx, dtype))
        mx.eval(model.parameters())
    if architecture.is_part:
        model = model.language_model
    info = BackendInfo(
        name=name,
        execution="mlx",
        device=device,
        dtype=dtype,
        weights=describe_weights(model_dir, stored or dtype, adapter),
        weights_bytes=stored_bytes(model_dir, stored or dtype, adapter),
        parameters=parameter_count(model_dir),
        context_length=_context_length(model, architecture),
        hidden_size=architecture.config.hidden_size,
        vocabulary_size=_output_head(model).weight.shape[0],
        batch_tokens=BATCH_TOKENS[device],
        options=dict(options or {}),
    )
    tokenizer = load_tokenizer(model_dir)
    eos = load_config(model_dir).get("eos_token_id")  # that of generation_config.json, if there is one
    return MlxBackend(model, tokenizer, info, end_tokens(tokenizer, eos), architecture)


def _put_beside(model: Any, adapter: Mapping[str, LowRank]) -> None:
    """Wrap linear layers in mlx-lm's LoRA layers, with an adapter's matrices."""
    import mlx.core as mx
    from mlx.utils import tree_unflatten
    from mlx_lm.tuner.lora import LoRALinear

    linear = dict(model.named_modules())
    wrapped = []
    for name, part in adapter.items():
        layer = LoRALinear.from_base(linear[name], r=len(part.down), scale=part.scale)
        layer.lora_a = mx.array(part.down.float().numpy().T)
        layer.lora_b = mx.array(part.up.float().numpy().T)
        wrapped.append((name, layer))
    model.update_modules(tree_unflatten(wrapped))
    model.eval()


def _context_length(model: Any, architecture: Architecture) -> int:
    """Return how many tokens mlx-lm computes rightly: only a window of them where it leaves out the windows."""
    from mlx_lm.models.cache import RotatingKVCache, make_prompt_cache

    has_windows = any(isinstance(cache, RotatingKVCache) for cache in make_prompt_cache(model))
    if architecture.window is None or has_windows:
        return architecture.context_length
    return min(architecture.window, architecture.context_length)


class MlxBackend(Backend):
    """A causal language model of mlx-lm."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        info: BackendInfo,
        stop_tokens: frozenset[int],
        architecture: Architecture,
    ) -> None:
        from mlx_lm.models.cache import make_prompt_cache

        self.model = model
        self.shares_prefixes = all(_is_shareable(cache) for cache in make_prompt_cache(self.model))
        self._logits = architecture.logits
        self._vocabulary_matrix = _output_head(self.model)
        self.tokenizer = tokenizer
        self.info = info
        self._stop_tokens = stop_tokens
        self._mx = import_mlx()

    def hidden_states(
        self,
        rows: Sequence[Sequence[int]],
        positions: Sequence[Sequence[int]],
        prefix: Prefix | None = None,
        keep: bool = False,
    ) -> tuple[np.ndarray, Prefix | None]:
        mx = self._mx
        before = own_prefix(prefix, MlxPrefix, rows, keep)
        width = max(len(row) for row in rows)
        tokens = np.zeros((len(rows), width), dtype=np.int32)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = row
        wanted = [(i, p) for i, places in enumerate(positions) for p in places]
        result = np.zeros((len(wanted), self.info.hidden_size), dtype=np.float32)
        with memory_errors():
            caches = self._caches(before, len(rows))
            for start in range(0, width, PREFILL_TOKENS):
                piece = tokens[:, start : start + PREFILL_TOKENS]
                hidden = self.model.model(mx.array(piece), cache=caches)
                here = [n for n, (_, p) in enumerate(wanted) if start <= p < start + piece.shape[1]]
                if here:
                    flat = [wanted[n][0] * piece.shape[1] + wanted[n][1] - start for n in here]
                    read = hidden.reshape(-1, hidden.shape[-1])[mx.array(flat)].astype(mx.float32)
                    result[here] = np.array(read)
                mx.eval([cache.state for cache in caches])
            kept = _snapshot(caches, (before.length if before else 0) + width) if keep else None
            del caches
            mx.clear_cache()
        return result, kept

    def _caches(self, prefix: MlxPrefix | None, batch: int) -> list[Any]:
        """Return mlx-lm's caches with the prefix in every row. They share no array with the prefix."""
        from mlx_lm.models.cache import make_prompt_cache

        caches = make_prompt_cache(self.model)
        if prefix is None:
            return caches
        for cache, (keys, values) in zip(caches, prefix.layers, strict=True):
            # Caches write into their arrays, and every reference to an MLX array sees such writes. broadcast_to makes
            # a new array, even for a batch of one.
            cache.keys = self._mx.broadcast_to(keys, (batch, *keys.shape[1:]))
            cache.values = self._mx.broadcast_to(values, (batch, *values.shape[1:]))
            cache.offset = prefix.length
            if hasattr(cache, "max_size"):  # a RotatingKVCache: its last written place
                cache._idx = keys.shape[2]
        return caches

    def project(self, hidden: np.ndarray, sources: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mx = self._mx
        logprobs, best = np.zeros(len(sources)), np.zeros(len(sources), dtype=bool)
        check_tokens(tokens, self._vocabulary_matrix.weight.shape[0])
        rows, row_of = np.unique(np.asarray(sources), return_inverse=True)
        height = max(1, PROJECTION_BYTES // (4 * self._block))
        with memory_errors():
            for start in range(0, len(rows), height):
                asked = np.flatnonzero((row_of >= start) & (row_of < start + height))
                x = mx.array(np.ascontiguousarray(hidden[rows[start : start + height]], dtype=np.float32))
                found = self._project_rows(x, row_of[asked] - start, np.asarray(tokens)[asked])
                logprobs[asked], best[asked] = found
            mx.clear_cache()
        return logprobs, best

    @property
    def _block(self) -> int:
        """The number of tokens of the vocabulary that are projected to at a time."""
        return min(self._vocabulary_matrix.weight.shape[0], max(1, PROJECTION_BYTES // (4 * self.info.hidden_size)))

    def _logit_blocks(self, x: Any) -> Iterator[tuple[slice, Any]]:
        """Yield the logits of float32 states [n, hidden size] a block of the vocabulary at a time."""
        vocabulary, block = self._vocabulary_matrix.weight.shape[0], self._block
        for start in range(0, vocabulary, block):
            part = slice(start, min(start + block, vocabulary))
            yield part, _block_logits(self._mx, self._vocabulary_matrix, x, part, self._logits)

    def _project_rows(self, x: Any, rows: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Do `project` for a few rows: go through the vocabulary in blocks and keep the maximum and the sum.

        Args:
            x: float32 array [n, hidden size].
            rows: [m], the row of `x` that predicts each token.
            tokens: [m], the token ids asked for.
        """
        mx = self._mx
        row, token = mx.array(rows.astype(np.int32)), mx.array(tokens.astype(np.int32))
        peak = mx.full((x.shape[0],), -mx.inf)
        total = mx.zeros((x.shape[0],))
        logit = mx.zeros((len(rows),))
        for part, logits in self._logit_blocks(x):
            new_peak = mx.maximum(peak, logits.max(axis=-1))
            total = total * mx.exp(peak - new_peak) + mx.exp(logits - new_peak[:, None]).sum(axis=-1)
            peak = new_peak
            inside = (token >= part.start) & (token < part.stop)
            logit = mx.where(inside, logits[row, mx.clip(token - part.start, 0, logits.shape[1] - 1)], logit)
            mx.eval(peak, total, logit)
        found = np.array(logit - (peak + mx.log(total))[row]).astype(np.float64)
        return found, np.array(logit >= peak[row]) & np.isfinite(found)

    def vocabulary_logits(self, hidden: np.ndarray) -> np.ndarray:
        x = self._mx.array(np.ascontiguousarray(hidden, dtype=np.float32))
        logits = np.empty((len(hidden), self._vocabulary_matrix.weight.shape[0]), dtype=np.float32)
        with memory_errors():
            for part, found in self._logit_blocks(x):
                logits[:, part] = np.array(found)
            self._mx.clear_cache()
        return logits

    def library_logprobs(self, tokens: Sequence[int]) -> np.ndarray:
        mx = self._mx
        with memory_errors():
            logits = self.model(mx.array([list(tokens)]))[0, :-1].astype(mx.float32)
            wanted = mx.array(list(tokens[1:]))[:, None]
            found = mx.take_along_axis(logits, wanted, axis=-1)[:, 0] - mx.logsumexp(logits, axis=-1)
            return np.array(found).astype(np.float64)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        on_text: Callable[[int, str], None] | None = None,
        remember: bool = False,
    ) -> list[str]:
        mx = self._mx
        from mlx_lm.generate import BatchGenerator

        tokens = [GrowingTokens(self.tokenizer) for _ in prompts]
        answers = growing_answers(len(prompts), sampling.stop, on_text)
        if not prompts or sampling.max_new_tokens < 1:
            return [""] * len(prompts)
        with memory_errors():
            generator = BatchGenerator(
                self.model,
                max_tokens=sampling.max_new_tokens,
                stop_tokens=[[token] for token in sorted(self._stop_tokens)],
                sampler=_sampler(mx, sampling),
                completion_batch_size=len(prompts),
                prefill_batch_size=len(prompts),
                prefill_step_size=PREFILL_TOKENS,
                stream=mx.default_stream(mx.default_device()),  # mlx-lm's own belongs to the thread that imported it
            )
            try:
                index_of = {uid: i for i, uid in enumerate(generator.insert([list(prompt) for prompt in prompts]))}
                while responses := generator.next_generated():
                    for response in responses:
                        i = index_of[response.uid]
                        if response.finish_reason != "stop":
                            tokens[i].ids.append(response.token)
                        stopped = answers[i].update(tokens[i].text())
                        if stopped and response.finish_reason is None:
                            generator.remove([response.uid])
            finally:
                generator.close()
            mx.clear_cache()
        return [answer.finish() for answer in answers]

    def peak_memory(self) -> int | None:
        return self._mx.get_peak_memory() if self.info.device == "metal" else None


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Turn MLX's errors for lack of memory into OutOfMemory, and free the memory that MLX keeps for reuse."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = str(error).lower()
        if isinstance(error, RuntimeError) and not any(part in text for part in MEMORY_MESSAGES):
            raise
        import_mlx().clear_cache()
        raise OutOfMemory(str(error)) from error


def _snapshot(caches: list[Any], length: int) -> MlxPrefix:
    """Copy mlx-lm's caches of a single row into a prefix of `length` tokens."""
    mx = import_mlx()
    layers = []
    for cache in caches:
        if hasattr(cache, "max_size"):  # RotatingKVCache
            kept = min(length, cache.max_size)
            pair = [cache._temporal_order(x)[..., -kept:, :] for x in (cache.keys, cache.values)]
        else:
            pair = [x[..., :length, :] for x in (cache.keys, cache.values)]
        layers.append((mx.contiguous(pair[0]), mx.contiguous(pair[1])))
    mx.eval(layers)
    return MlxPrefix(length=length, layers=tuple(layers))


def _is_shareable(cache: Any) -> bool:
    """Return whether continuations can follow a copy of this cache: it holds nothing but keys and values."""
    from mlx_lm.models.cache import KVCache, RotatingKVCache

    return type(cache) is KVCache or (type(cache) is RotatingKVCache and cache.keep == 0)


def _output_head(model: Any) -> Any:
    """Return the module with the vocabulary matrix: an output head of its own, else the embeddings.

    Raises:
        UserError: mlx-lm keeps it in another place.
    """
    for name in ("lm_head", "embed_out"):
        if name in model:
            return model[name]
    decoder = model.get("model", {})
    for name in ("embed_tokens", "wte", "embed_in"):
        if name in decoder:
            return decoder[name]
    raise UserError(
        f"the output head of mlx-lm's {type(model).__module__.rpartition('.')[2]} is in no known place",
        "use --execution torch",
    )


def _block_logits(mx: Any, head: Any, x: Any, block: slice, rule: Logits) -> Any:
    """Return the logits of one block of the vocabulary, float32 [n, block]; `head` may be quantised."""
    logits = _block_products(mx, head, x, block)
    if "bias" in head:
        logits = logits + head.bias[block].astype(mx.float32)
    logits = logits * rule.scale
    return logits if rule.cap is None else mx.tanh(logits / rule.cap) * rule.cap


def _block_products(mx: Any, head: Any, x: Any, block: slice) -> Any:
    if "scales" not in head:
        return x @ head.weight[block].astype(mx.float32).T
    biases = head.get("biases")
    biases = biases if biases is None else biases[block]
    settings = {"group_size": head.group_size, "bits": head.bits, "mode": head.mode}
    return mx.quantized_matmul(x, head.weight[block], head.scales[block], biases, transpose=True, **settings)


def _sampler(mx: Any, sampling: Sampling) -> Callable[[Any], Any]:
    """Return a function that picks a token for each row of log-probabilities [batch, vocabulary].

    Temperature is applied before top-p. mlx-lm's samplers draw from the process's random state through mx.compile,
    which some releases of MLX have broken.
    """
    if sampling.temperature == 0:
        return lambda logprobs: mx.argmax(logprobs, axis=-1)
    key = mx.random.key(sampling.seed)

    def draw(logprobs: Any) -> Any:
        nonlocal key
        key, now = mx.random.split(key)
        scaled = logprobs.astype(mx.float32) / sampling.temperature
        if sampling.top_p < 1:
            ordered = mx.sort(scaled, axis=-1)
            likelier = mx.cumsum(mx.softmax(ordered, axis=-1), axis=-1, reverse=True, inclusive=False)
            least = mx.where(likelier < sampling.top_p, ordered, mx.inf).min(axis=-1, keepdims=True)
            scaled = mx.where(scaled < least, -mx.inf, scaled)
        return mx.random.categorical(scaled, key=now)

    return draw
