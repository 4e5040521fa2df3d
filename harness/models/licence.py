"""The licence of a model, for the card of what is made from it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from adapters.mlx_weights import read_config

GEMMA_NOTICE = (
    "Gemma is provided under and subject to the Gemma Terms of Use found at https://ai.google.dev/gemma/terms. "
    "This checkpoint is a Model Derivative of Gemma: the weights here were modified, as described below, "
    "and their use is bound by the same terms and by the Gemma Prohibited Use Policy "
    "(https://ai.google.dev/gemma/prohibited_use_policy)."
)
_FRONT_MATTER = re.compile(r"---\n(.*?)\n---", re.DOTALL)
_KEYS = ("license", "license_name", "license_link")
# Gemma 4 has another licence, which its card names.
_GEMMAS = ("gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text")


def licence_of(model_dir: Path) -> dict[str, str]:
    """Return the licence that a model's card names, by the hub's keys: license, license_name, license_link.

    Empty where nothing says which.
    """
    card = model_dir / "README.md"
    if card.is_file() and (matter := _FRONT_MATTER.match(card.read_text(encoding="utf-8", errors="replace"))):
        try:
            keys: Any = yaml.safe_load(matter.group(1))
        except yaml.YAMLError:
            keys = None
        if isinstance(keys, dict) and keys.get("license"):
            return {key: str(keys[key]) for key in _KEYS if keys.get(key)}
    return {"license": "gemma"} if read_config(model_dir)["model_type"] in _GEMMAS else {}


def licence_notice(licence: dict[str, str]) -> str:
    """Return a sentence on what the licence of a base model means for what was made from it."""
    if licence.get("license") == "gemma":
        return GEMMA_NOTICE
    if not licence:
        return "The base model's files name no licence: read the base model's own terms before you use or share this."
    name = licence.get("license_name", licence["license"])
    link = f" ({licence['license_link']})" if "license_link" in licence else ""
    return f"The weights were changed from those of the base model, whose licence binds their use too: {name}{link}."
