"""Write a model directory with another vocabulary: tokenizer and matrix are rewritten, the rest is copied."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import Gemma3ForCausalLM

from adapters.mlx_weights import TOKENIZER_FILES, read_config
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

    Gemma-3 has one matrix for input and output rows, and so has the new model.

    Args:
        source: A transformers directory.
        target: An existing empty directory.
        tokenizer: The new tokenizer.json: the kept ids in their old order come first, then the new tokens.
        kept: Old ids, ascending.
        make_new: Returns the rows of the new tokens, given the old matrix.

    Raises:
        UserError: The model has a separate matrix for output rows.
    """
    if read_config(source).get("tie_word_embeddings") is False:
        raise UserError(f"{source} has separate output embeddings", "Gemma-3 has one matrix for both; use such a model")
    with quiet_libraries():
        model: Any = Gemma3ForCausalLM.from_pretrained(source, dtype="auto")
        embedding = model.get_input_embeddings()
        old = embedding.weight.detach()
        # Gemma-3's tokenizer has a token for images, whose id is past the last row of its text models.
        missing = max(0, max(kept) + 1 - len(old))
        rows = functional.pad(old, (0, 0, 0, missing))[list(kept)]
        if make_new is not None:
            rows = torch.cat([rows, make_new(old.float()).to(old.dtype)])
        embedding.weight = torch.nn.Parameter(rows)
        embedding.num_embeddings = len(rows)
        model.tie_weights()
        model.config.vocab_size = len(rows)
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


def _renumbered(found: int | list[int], new_ids: Mapping[int, int]) -> int | list[int]:
    return [new_ids[number] for number in found] if isinstance(found, list) else new_ids[found]


def _set_plain_tokenizer_class(path: Path) -> None:
    """Name the class that reads tokenizer.json unchanged; Gemma's own class rebuilds it from its vocabulary."""
    settings = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings.pop("added_tokens_decoder", None)  # has the old ids; tokenizer.json has the new ones
    path.write_text(json.dumps(settings, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
