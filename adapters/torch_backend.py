"""Causal language models through transformers and PyTorch: MPS, CUDA, CPU.

The MPS and CUDA paths follow the documented API and were not run where this was written (no such device there).
"""

from __future__ import annotations

import copy
import functools
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from adapters.architecture import Architecture, Logits, model_class, read_architecture
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
from adapters.mlx_weights import stored_bytes
from adapters.text import end_tokens, load_tokenizer
from adapters.torch_attention import CPU_ATTENTION, library_attention, share_keys
from adapters.torch_generation import Generation, library_generate
from adapters.torch_linear import library_linear, use_onednn
from adapters.torch_vocabulary import apply_rule, exact_bfloat16_products, head_outputs, vocabulary_pass
from adapters.weight_files import TEXT_PREFIXES, check_tied_head, text_headers, weight_files

# Positions projected at a time, so that a chunk of logits stays at 64 MB.
POSITION_CHUNK = 1_024
# Token budgets: on 2 CPU cores throughput peaks near 1,024 tokens (the batch's activations fit the caches); a GPU needs
# more to be busy (not measured here).
BATCH_TOKENS = {"cpu": 1_024, "mps": 4_096, "cuda": 16_384}


# Layers of a cache that several continuations can follow: they hold nothing but keys and values.
_BRANCHING = (DynamicLayer, DynamicSlidingWindowLayer)


class TorchPrefix(Prefix):
    """Keys and values of a prefix, one entry a layer, batch size 1."""

    def __init__(self, cache: DynamicCache, length: int) -> None:
        self._cache = cache
        self.length = length

    def repeated(self, rows: int, keep: bool, apart: bool) -> DynamicCache:
        """Return a cache for `rows` rows after this prefix. It shares the memory: updates concatenate into new tensors.

        Args:
            rows: The batch size.
            keep: Whether the cache will be read again. If not, it forgets what is appended; otherwise a batch would
                hold the repeated prefix of all layers at once.
            apart: Whether the attention takes the prefix's keys and values apart from those of the rows.
        """
        branch = copy.copy(self._cache)
        layers: list[Any] = [copy.copy(layer) for layer in self._cache.layers]
        branch.layers = layers
        if apart and not keep and all(layer.keys is not None for layer in layers):
            for layer in layers:
                layer.update = _apart(layer)
            return branch
        for layer in layers:
            if layer.keys is None:  # it reads another layer's (Gemma 3n)
                continue
            layer.keys = layer.keys.expand(rows, -1, -1, -1)
            layer.values = layer.values.expand(rows, -1, -1, -1)
            if not keep:
                layer.update = _forgetting(layer)
        return branch


def _new_cache(model: Any) -> DynamicCache:
    return DynamicCache(config=model.config)


def shares_prefixes(model: Any) -> bool:
    """Return whether several continuations can follow one prefix's cache; not so where layers are recurrent."""
    return all(type(layer) in _BRANCHING for layer in _new_cache(model).layers)


def _apart(layer: Any) -> Callable[..., Any]:
    """Return an `update` that hands new keys and values on with the layer's own, once for all rows, beside them."""
    before = (layer.keys, layer.values)

    def update(keys: torch.Tensor, values: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        share_keys(keys, before)
        return keys, values

    return update


def _forgetting(layer: Any) -> Callable[..., Any]:
    """Return the layer's `update` with one change: the layer itself keeps its old keys and values."""
    update, keys, values = layer.update, layer.keys, layer.values

    def update_and_forget(*args: Any, **kwargs: Any) -> Any:
        appended = update(*args, **kwargs)
        layer.keys, layer.values = keys, values
        return appended

    return update_and_forget


class TorchBackend(Backend):
    """A causal language model in PyTorch."""

    def __init__(self, model: Any, tokenizer: Any, info: BackendInfo, logits: Logits) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.info = info
        self.shares_prefixes = shares_prefixes(model)
        self._logits = logits
        self._peak = 0

    @torch.inference_mode()
    def hidden_states(
        self,
        rows: Sequence[Sequence[int]],
        positions: Sequence[Sequence[int]],
        prefix: Prefix | None = None,
        keep: bool = False,
    ) -> tuple[np.ndarray, Prefix | None]:
        before = own_prefix(prefix, TorchPrefix, rows, keep)
        # Padding stands on the right, where the causal mask hides it from every real token.
        longest = max(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=self.model.device)
        cache: DynamicCache | None = None
        if before is not None:
            # In 16 bits the sum of two rounded parts would be one rounding more.
            apart = self.model.config._attn_implementation == CPU_ATTENTION and self.model.dtype == torch.float32
            cache = before.repeated(len(rows), keep, apart)
        elif keep:
            cache = _new_cache(self.model)
        try:
            output = self.model.get_decoder()(input_ids=ids, past_key_values=cache, use_cache=cache is not None)
            flat = [number * longest + position for number, row in enumerate(positions) for position in row]
            states = output.last_hidden_state.flatten(0, 1)
            hidden = states[torch.tensor(flat, dtype=torch.long, device=states.device)].float().cpu().numpy()
        except RuntimeError as error:
            raise_if_out_of_memory(error)
            raise
        self._note_memory()
        length = longest + (before.length if before else 0)
        return hidden, TorchPrefix(cache, length) if keep and cache is not None else None

    @torch.inference_mode()
    def project(self, hidden: np.ndarray, sources: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        head = self.model.get_output_embeddings()
        weight = head.weight
        check_tokens(tokens, len(weight))
        logprobs = np.empty(len(tokens))
        greedy = np.empty(len(tokens), dtype=bool)
        for start in range(0, len(hidden), POSITION_CHUNK):
            chunk = torch.from_numpy(hidden[start : start + POSITION_CHUNK]).to(weight.device)
            chosen = np.flatnonzero((sources >= start) & (sources < start + len(chunk)))
            rows = torch.from_numpy(sources[chosen] - start).to(weight.device)
            wanted = torch.from_numpy(tokens[chosen]).to(weight.device)
            try:
                with exact_bfloat16_products(weight.dtype):
                    normaliser, best, logits = vocabulary_pass(chunk, head, rows, wanted, self._logits)
            except RuntimeError as error:
                raise_if_out_of_memory(error)
                raise
            logprobs[chosen] = (logits - normaliser[rows]).cpu().double().numpy()
            greedy[chosen] = (logits >= best[rows]).cpu().numpy()
        return logprobs, greedy

    @torch.inference_mode()
    def vocabulary_logits(self, hidden: np.ndarray) -> np.ndarray:
        head = self.model.get_output_embeddings()
        states = torch.from_numpy(hidden).to(head.weight.device)
        try:
            with exact_bfloat16_products(head.weight.dtype):
                return apply_rule(torch.cat(list(head_outputs(states, head)), dim=1), self._logits).cpu().numpy()
        except RuntimeError as error:
            raise_if_out_of_memory(error)
            raise

    @torch.inference_mode()
    def library_logprobs(self, tokens: Sequence[int]) -> np.ndarray:
        return plain_logprobs(self.model, tokens).double().cpu().numpy()

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        on_text: Callable[[int, str], None] | None = None,
        remember: bool = False,
    ) -> list[str]:
        if not prompts or sampling.max_new_tokens < 1:
            return [""] * len(prompts)
        try:
            if self.shares_prefixes:
                texts = self._generation.generate(prompts, sampling, on_text, remember)
            else:
                texts = library_generate(self.model, self.tokenizer, self._end_tokens, prompts, sampling, on_text)
        except RuntimeError as error:
            self.forget()
            raise_if_out_of_memory(error)
            raise
        self._note_memory()
        return texts

    def forget(self) -> None:
        if "_generation" in vars(self):
            self._generation.forget()

    @functools.cached_property
    def _generation(self) -> Generation:
        """What generates, made on first use: it copies weights for about a second, and scoring needs none of it."""
        return Generation(self.model, self.tokenizer, self._logits, self._end_tokens)

    @property
    def _end_tokens(self) -> frozenset[int]:
        return end_tokens(self.tokenizer, self.model.generation_config.eos_token_id)

    def peak_memory(self) -> int | None:
        if self.info.device == "cuda":
            return torch.cuda.max_memory_allocated()
        return self._peak if self.info.device == "mps" else None

    def _note_memory(self) -> None:
        if self.info.device == "mps":  # MPS keeps no peak of its own
            self._peak = max(self._peak, torch.mps.driver_allocated_memory())


def plain_logprobs(model: Any, tokens: Sequence[int]) -> torch.Tensor:
    """Return the log-probabilities of all tokens but the first by transformers' own pass, float32 [tokens - 1]."""
    ids = torch.tensor([list(tokens)], device=model.device)
    with library_attention(model.config), library_linear(model):
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    return torch.log_softmax(logits, dim=-1).gather(1, ids[0, 1:, None])[:, 0]


def raise_if_out_of_memory(error: RuntimeError) -> None:
    """Raise OutOfMemory if PyTorch ran out of memory. Each device words this error in its own way."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or any(
        words in text
        for words in ("out of memory", "can't allocate memory", "not enough memory", "Invalid buffer size")
    ):
        raise OutOfMemory(text.splitlines()[0]) from error


def pick_device(wanted: str) -> str:
    """Return the wanted device; "auto" picks cuda, mps or cpu, in this order.

    Raises:
        UserError: The machine has no such device.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return next(device for device, available in there.items() if available)
    if not there[wanted]:
        raise UserError(f"PyTorch finds no {wanted} device", "use --backend torch, which picks an available device")
    return wanted


def pick_dtype(wanted: str, device: str) -> torch.dtype:
    """Return the type of the computation; "auto" is bfloat16 if the device has units for it, else float32."""
    if wanted != "auto":
        return getattr(torch, wanted)
    if device == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device == "cpu":
        return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32
    return torch.bfloat16


def load_torch(
    name: str,
    model_dir: Path,
    *,
    device: str,
    dtype: str,
    state: dict[str, torch.Tensor] | None = None,
    weights: str | None = None,
    weights_bytes: int | None = None,
) -> TorchBackend:
    """Load a transformers model, from its directory or from given weights.

    Args:
        name: The backend's name, for the record.
        model_dir: Holds config.json, tokenizer.json and, without `state`, safetensors.
        device: "auto", "cpu", "mps" or "cuda".
        dtype: "auto", "float32" or "bfloat16".
        state: Weights to use in place of the directory's, such as dequantised MLX weights.
        weights, weights_bytes: How those weights are stored, for the record.

    Raises:
        UserError: The device is missing, the type cannot be used, or files are damaged or missing.
    """
    device = pick_device(device)
    architecture = read_architecture(model_dir)
    torch_dtype = pick_dtype(dtype, device)
    if torch_dtype is torch.float16 and architecture.overflows_float16:
        raise UserError(
            f"{architecture.model_type} overflows in float16 under PyTorch",
            "use --dtype bfloat16 or float32, or --backend mlx-fp16",
        )
    config = architecture.config
    if state is not None:
        # mlx-lm writes this key for its own use; transformers would read it as one of its own methods.
        vars(config).pop("quantization_config", None)
    config._attn_implementation = _attention(architecture, device)
    model = load_weights(model_dir, architecture, torch_dtype, state)
    model = model.to(device).eval()
    model.requires_grad_(False)
    use_onednn(model.get_decoder())
    stored = _stored_type(model_dir) if state is None else weights or ""
    info = BackendInfo(
        name=name,
        execution="torch",
        device=device,
        dtype=str(torch_dtype).removeprefix("torch."),
        weights=stored,
        weights_bytes=_stored_bytes(model_dir, architecture) if weights_bytes is None else weights_bytes,
        parameters=model.num_parameters(),
        context_length=architecture.context_length,
        hidden_size=config.hidden_size,
        vocabulary_size=len(model.get_output_embeddings().weight),
        batch_tokens=BATCH_TOKENS[device],
        options={"threads": torch.get_num_threads()} if device == "cpu" else {},
    )
    return TorchBackend(model, load_tokenizer(model_dir), info, architecture.logits)


def _attention(architecture: Architecture, device: str) -> str:
    """Return the name of the attention that computes a model: the fastest one that it takes."""
    kind = model_class(architecture)
    if device == "cpu" and kind._supports_attention_backend:
        return CPU_ATTENTION
    return "sdpa" if kind._supports_sdpa else "eager"


def load_weights(
    model_dir: Path,
    architecture: Architecture,
    dtype: torch.dtype | str,
    state: dict[str, torch.Tensor] | None = None,
) -> Any:
    """Return the model with all its weights, from the directory or from `state`.

    Raises:
        UserError: Files are damaged, or weights are missing (transformers would fill these with random numbers).
    """
    if state is None:
        check_tied_head(model_dir, architecture.config.tie_word_embeddings)
    # With given weights there is no directory to read: transformers documents None for this.
    source: Any = model_dir if state is None else None
    renamed = {f"^{re.escape(name)}": new for name, new in TEXT_PREFIXES.items()}
    loaded: Any
    with library_errors(f"cannot read the weights in {model_dir}", "copy the model again"):
        loaded = model_class(architecture).from_pretrained(
            source,
            config=architecture.config,
            key_mapping=renamed if architecture.is_part else None,
            state_dict=state,
            dtype=dtype,
            use_safetensors=True if state is None else None,
            output_loading_info=True,
        )
    model, report = loaded
    if architecture.is_part:
        model._weight_conversions = None  # save_pretrained would undo the renaming, and write a text model's config
    missing = sorted(report["missing_keys"])
    if missing and state is not None:
        raise UserError(
            f"mlx-lm stores {architecture.model_type} under other names than transformers, {missing[0]} among them",
            "use --execution mlx, or --backend torch",
        )
    if missing:
        raise UserError(
            f"{model_dir} lacks {len(missing)} weights, among them {missing[0]}", "copy all its *.safetensors files"
        )
    unexpected = sorted(name for name in report["unexpected_keys"] if not _is_other_part(name, architecture))
    if unexpected:
        raise UserError(
            f"{model_dir} holds {len(unexpected)} weights that {type(model).__name__} has no place for, "
            f"among them {unexpected[0]}",
            "merge adapters into the model, or name the model without its classification head",
        )
    return model


def _is_other_part(name: str, architecture: Architecture) -> bool:
    """Return whether a weight, renamed by `TEXT_PREFIXES`, is of another part of the model, such as a vision tower."""
    return architecture.is_part and not name.startswith(("model.layers.", "lm_head."))


def _stored_bytes(model_dir: Path, architecture: Architecture) -> int:
    if architecture.is_part:
        return stored_bytes(model_dir)
    return sum(os.path.getsize(file) for file in weight_files(model_dir))


def _stored_type(model_dir: Path) -> str:
    names = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
    found = {entry["dtype"] for entry in text_headers(model_dir).values()}
    return names.get(found.pop(), "mixed") if len(found) == 1 else "mixed"
