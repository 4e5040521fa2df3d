"""Write a model directory with another vocabulary: tokenizer and matrix are rewritten, the rest is copied."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from adapters.architecture import read_architecture
from adapters.mlx_weights import TOKENIZER_FILES
from adapters.torch_backend import load_weights
from harness.errors import UserError
from harness.quiet import quiet_libraries

_ID_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")


def write_model(
    source: Path,
    target: Path,
    tokenizer: Mapping[str, Any],
    kept: Sequence[int],
    make_new: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> None:
    """Write the model with the rows of the kept tokens and one row for each new token.

    Args:
        source: A transformers directory.
        target: An existing empty directory.
        tokenizer: The new tokenizer.json: the kept ids in their old order come first, then the new tokens.
        kept: Old ids, ascending.
        make_new: Returns the rows of the new tokens, given the old matrix.

    Raises:
        UserError: A matrix other than those of input and output has rows of the vocabulary.
    """
    architecture = read_architecture(source)
    with quiet_libraries():
        model = load_weights(source, architecture, "auto")
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        tied = head.weight is embedding.weight
        _check_rows(model, [embedding.weight, head.weight, head.bias])
        if make_new is not None and (not tied or head.bias is not None):
            raise UserError(f"{source} has separate output embeddings or a bias", "use --prune without --new-tokens")
        embedding.weight = torch.nn.Parameter(_chosen(embedding.weight.detach(), kept, make_new))
        embedding.num_embeddings = model.config.vocab_size = len(embedding.weight)
        if tied:
            model.tie_weights()
        else:
            head.weight = torch.nn.Parameter(_chosen(head.weight.detach(), kept))
        if head.bias is not None:
            head.bias = torch.nn.Parameter(_chosen(head.bias.detach(), kept))
        new_ids = {number: place for place, number in enumerate(kept)}
        for config in (model.config, model.generation_config):
            for key in _ID_KEYS:
                if (found := getattr(config, key, None)) is not None:
                    setattr(config, key, _renumbered(found, new_ids))
        model.save_pretrained(target)
    (target / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    for file in source.iterdir():
        if file.name.startswith(TOKENIZER_FILES) and not (target / file.name).exists():
            shutil.copyfile(file, target / file.name)
    _set_plain_tokenizer_class(target / "tokenizer_config.json")


def _check_rows(model: Any, known: Sequence[torch.Tensor | None]) -> None:
    """Refuse a model that holds rows of the vocabulary in yet another tensor, such as one a layer (Gemma 3n and 4)."""
    vocabulary = len(model.get_input_embeddings().weight)
    for name, parameter in model.named_parameters():
        if len(parameter) == vocabulary and not any(parameter is one for one in known):
            raise UserError(
                f"{type(model).__name__} has rows of the vocabulary in {name} too, which adapt does not change",
                "adapt a model with one matrix for input and one for output rows",
            )


def _chosen(
    old: torch.Tensor, kept: Sequence[int], make_new: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> torch.Tensor:
    """Return the kept rows of a matrix, and the new ones."""
    # Gemma-3's tokenizer has a token for images, whose id is past the last row of its text models.
    missing = max(0, max(kept) + 1 - len(old))
    rows = torch.cat([old, old.new_zeros(missing, *old.shape[1:])])[list(kept)]
    return rows if make_new is None else torch.cat([rows, make_new(old.float()).to(old.dtype)])


def _renumbered(found: int | list[int], new_ids: Mapping[int, int]) -> int | list[int]:
    return [new_ids[number] for number in found] if isinstance(found, list) else new_ids[found]


def _set_plain_tokenizer_class(path: Path) -> None:
    """Name the class that reads tokenizer.json unchanged; Gemma's own class rebuilds it from its vocabulary."""
    settings = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings.pop("added_tokens_decoder", None)  # has the old ids; tokenizer.json has the new ones
    path.write_text(json.dumps(settings, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
