"""Russian SuperGLUE documents: official files, the hub's parquet branch and the bundled mini set, one schema a task.

Importing this package loads neither pyarrow nor huggingface_hub; they wait for the first split that needs them.
"""

from __future__ import annotations

from harness.data.schema import DOCUMENTS, LABELS, TASKS, Document
from harness.data.sources import (
    SPLITS,
    Split,
    cached_split,
    document_key,
    fingerprint,
    load_split,
)

__all__ = [
    "DOCUMENTS",
    "LABELS",
    "SPLITS",
    "TASKS",
    "Document",
    "Split",
    "cached_split",
    "document_key",
    "fingerprint",
    "load_split",
]
