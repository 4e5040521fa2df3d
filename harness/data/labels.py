"""Label spellings. The official files write labels as strings, JSON booleans or numbers, the hub as class indices."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

from harness.data.schema import HIDDEN_LABEL, LABELS

_BOOLEAN = {"false": 0, "true": 1, '"false"': 0, '"true"': 1, '"False"': 0, '"True"': 1, "0": 0, "1": 1}


def _named(task: str) -> dict[str, int]:
    return {json.dumps(name): index for index, name in enumerate(LABELS[task])}


# Keyed by the value's JSON text: Python thinks that True == 1, the files do not.
_SPELLINGS = MappingProxyType(
    {
        "lidirus": _named("lidirus"),
        "rcb": _named("rcb"),
        "parus": {"0": 0, "1": 1},
        "muserc": {"0": 0, "1": 1},
        "terra": _named("terra"),
        "russe": _BOOLEAN,
        "rwsd": _BOOLEAN,
        "danetqa": _BOOLEAN,
    }
)

# How the hub's ClassLabel names the classes, where it differs from the official files.
_HUB_NAMES = MappingProxyType({"parus": ("choice1", "choice2"), "muserc": ("False", "True")})


class LabelError(ValueError):
    """A label that is none of the task's."""


def official_label(task: str, value: Any) -> int:
    """Class index of a label as an official file spells it.

    Raises:
        LabelError: names the value and the allowed spellings.
    """
    spellings = _SPELLINGS[task]
    index = spellings.get(_spelled(value))
    if index is None:
        raise LabelError(f"label is {short(value)}, allowed: {', '.join(spellings)}")
    return index


def hub_label(task: str, value: Any, names: Sequence[str] | None) -> int:
    """Class index of a label in the hub's parquet files.

    Args:
        task: which of the tasks with classes.
        value: a class index, -1 where hidden; or a string where the column is no ClassLabel.
        names: the ClassLabel's own names in its own order, or None where the file does not tell.

    Raises:
        LabelError: the value or its name is none of the task's.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        if value == HIDDEN_LABEL:
            return HIDDEN_LABEL
        if not 0 <= value < len(names or LABELS[task]):
            raise LabelError(f"label is {value}, allowed: -1 to {len(names or LABELS[task]) - 1}")
        if names is None:
            return value
        # By name, not by number: classes in another order must not turn answers round in silence.
        value = names[value]
    hub_names = _HUB_NAMES.get(task, ())
    return hub_names.index(value) if value in hub_names else official_label(task, value)


def short(value: Any, limit: int = 60) -> str:
    """The value as JSON on one line, cut to `limit` characters."""
    # Half a surrogate pair, which JSON can spell, must not break the printing of the very message about it.
    text = _spelled(value).encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= limit else text[:limit] + "…"


def _spelled(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=repr)
