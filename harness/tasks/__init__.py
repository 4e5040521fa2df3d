"""The tasks: one file and one `Task` object each.

`get_task` finds one by name. `register` adds one of your own; `include` loads a directory that holds such a task's
Python file and its YAML.
"""

from __future__ import annotations

from harness.tasks.document import HIDDEN_LABEL, Document, Row, document_key
from harness.tasks.registry import (
    RUSSIAN_SUPERGLUE,
    get_task,
    include,
    included_directories,
    register,
    task_names,
    trainable_tasks,
)
from harness.tasks.task import SPLITS, HeadKind, InputField, Task

__all__ = [
    "HIDDEN_LABEL",
    "RUSSIAN_SUPERGLUE",
    "SPLITS",
    "Document",
    "HeadKind",
    "InputField",
    "Row",
    "Task",
    "document_key",
    "get_task",
    "include",
    "included_directories",
    "register",
    "task_names",
    "trainable_tasks",
]
