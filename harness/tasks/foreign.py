"""Tasks in lm-eval's own format: its 14,000 and the user's, found by name and loaded before any model is.

Their prompts, filters and metrics are lm-eval's; how they are scored, resumed and recorded is ours.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adapters.base import library_errors
from harness.data.sampling import evenly_spread
from harness.errors import UserError, nearest_hint
from harness.quiet import quiet_libraries
from harness.tasks.document import content_hash
from harness.tasks.lm_eval_index import matching, task_manager
from harness.tasks.prompts import GROUPS, task_files
from harness.tasks.registry import included_directories
from harness.tasks.rendering import compile_templates_once

log = logging.getLogger(__name__)

# What `generation_kwargs` may ask for, and what else may be named as long as it changes nothing.
GENERATION = (
    "until", "max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens",
    "do_sample", "temperature", "top_p",
)  # fmt: skip
WITHOUT_EFFECT = {"num_beams": 1, "repetition_penalty": 1, "num_return_sequences": 1, "top_k": 0, "min_p": 0}
OUTPUT_TYPES = ("multiple_choice", "loglikelihood", "loglikelihood_rolling", "generate_until")


@dataclass(frozen=True)
class ForeignTasks:
    """Loaded tasks of lm-eval's format.

    Attributes:
        tasks: Name -> lm-eval's Task.
        groups: Name -> lm-eval's Group, subgroups included.
        documents: Name of a task -> the numbers of the documents that are asked.
        sha256: Name of a task -> over these documents.
    """

    tasks: Mapping[str, Any]
    groups: Mapping[str, Any]
    documents: Mapping[str, list[int]]
    sha256: Mapping[str, str]

    def settings(self) -> dict[str, Any]:
        """Return what decides the results: a hash of every task's documents and configuration."""
        return {name: [self.sha256[name], _config_hash(task)] for name, task in self.tasks.items()}


def split_names(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return which of these names are of our task files and groups, and which of lm-eval's."""
    files = task_files()

    def is_ours(name: str) -> bool:
        lowered = name.strip().lower()
        return lowered in GROUPS or lowered.removeprefix("rsg_") in files

    return [name for name in names if is_ours(name)], [name.strip() for name in names if not is_ours(name)]


def load_foreign_tasks(
    names: Sequence[str], *, limit: int | None = None, num_fewshot: int | None = None, seed: int = 0
) -> ForeignTasks:
    """Load tasks, groups, tags or patterns (`mmlu_*`), with their documents.

    Args:
        names: As lm-eval's `--tasks` takes them.
        limit: Documents a task, evenly spread over it; None: all.
        num_fewshot: Solved examples before each document; None: each task's own number.
        seed: Of the samples.

    Raises:
        UserError: A name that nothing has, a task that needs what is not there, or documents that cannot be had.
    """
    compile_templates_once()
    with quiet_libraries():
        manager = task_manager(included_directories())
        found, unknown = matching(names, manager.task_index)
        if unknown:
            known = [*task_files(), *GROUPS, *manager.task_index]
            raise UserError(
                f"unknown task {unknown[0]!r}",
                nearest_hint(unknown[0], known, "`rsg-harness tasks --search TEXT` finds one"),
            )
        for name in found:
            for member, config in _configs(name, manager.task_index):
                _refuse_if_unsupported(member, config)
        tasks, groups = _load(manager, found)
        for name, task in tasks.items():
            _refuse_if_unsupported(name, {**task.dump_config(), "output_type": task.OUTPUT_TYPE})
            _set_shots(name, task, num_fewshot, seed)
    documents, hashes = {}, {}
    for name, task in tasks.items():
        rows = task.eval_docs
        documents[name] = evenly_spread(range(len(rows)), limit, seed)
        if not documents[name]:
            raise UserError(f"the task {name} has no documents", "leave it out")
        hashes[name] = _hash(rows[number] for number in documents[name])
    return ForeignTasks(tasks, groups, documents, hashes)


def seed_generators() -> None:
    """Seed Python's and NumPy's own generators as lm-eval does, for tasks that shuffle their choices by these."""
    random.seed(0)
    np.random.seed(1234)


def _load(manager: Any, names: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the tasks and groups that names stand for, each name loaded by itself."""
    tasks: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    named_by: dict[str, str] = {}
    for name in names:
        seed_generators()
        with library_errors(f"cannot load the task {name}", "its documents come from the Hugging Face hub or a file"):
            loaded = manager.load([name])
        for task_name, task in loaded["tasks"].items():
            if task_name in tasks and _config_hash(tasks[task_name]) != _config_hash(task):
                raise UserError(
                    f"{named_by[task_name]} and {name} ask {task_name} in two ways", "ask for them in two runs"
                )
            tasks.setdefault(task_name, task)
            named_by.setdefault(task_name, name)
        groups |= loaded.get("groups", {})
    return tasks, groups


def _hash(documents: Iterator[Any]) -> str:
    digest = hashlib.sha256()
    for document in documents:
        digest.update(content_hash(document).encode())
    return digest.hexdigest()


def _config_hash(task: Any) -> str:
    """Return the SHA-256 of a task's configuration, without where its file lies and where its functions are loaded."""
    config = {key: value for key, value in task.dump_config().items() if key != "metadata"}
    text = json.dumps(config, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", text).encode()).hexdigest()


def _configs(name: str, index: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the names and configurations of the tasks that a name stands for, functions as their names."""
    from lm_eval.tasks._yaml_loader import load_yaml

    entry = index[name]
    if entry.yaml_path is None:
        for member in sorted(entry.tags):
            if member in index:
                yield from _configs(member, index)
        return
    config = load_yaml(entry.yaml_path, resolve_func=False)
    members = config.get("task") if "group" in config or isinstance(config.get("task"), list) else None
    if not isinstance(members, list):
        yield name, config
        return
    yield from _members(name, members, index)


def _members(name: str, members: Sequence[Any], index: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the same of a group's members: names, or tasks and groups that are written out within it."""
    for member in members:
        called = member if isinstance(member, str) else member.get("task") or member.get("group")
        if isinstance(called, str) and called in index and called != name:
            yield from _configs(called, index)
        elif isinstance(member, Mapping) and isinstance(called, str):
            yield f"{name}::{called}", member
        elif isinstance(member, Mapping) and isinstance(called, list):
            yield from _members(f"{name}::{member.get('group')}", called, index)


def _refuse_if_unsupported(name: str, config: Mapping[str, Any]) -> None:
    """Refuse, before its documents are fetched, a task that needs what there is not."""
    output_type = config.get("output_type")
    if output_type is not None and output_type not in OUTPUT_TYPES:
        raise _unsupported(name, f"its output type is {output_type}")
    for key, what in (("doc_to_image", "pictures"), ("doc_to_audio", "sound")):
        if config.get(key) is not None:
            raise _unsupported(name, f"it asks about {what}")
    if config.get("unsafe_code"):
        raise _unsupported(name, "it runs code that the model writes")
    if output_type in (None, "generate_until"):
        for key, value in (config.get("generation_kwargs") or {}).items():
            if key not in GENERATION and value not in (None, WITHOUT_EFFECT.get(key)):
                raise _unsupported(name, f"it asks to generate with {key}: {value}")


def _unsupported(name: str, why: str) -> UserError:
    return UserError(f"the task {name} cannot be run: {why}", f"leave it out; supported are {', '.join(OUTPUT_TYPES)}")


def _set_shots(name: str, task: Any, num_fewshot: int | None, seed: int) -> None:
    """Set the number of solved examples as lm-eval does: a task that fixes 0 keeps it."""
    own = task.get_config("num_fewshot")
    if num_fewshot is not None and own == 0:
        log.info("%s keeps its own number of solved examples: 0", name)
    elif num_fewshot is not None or own is None:
        task.set_config("num_fewshot", num_fewshot or 0)
    shots = task.get_config("num_fewshot")
    if shots:
        own_split = task.fewshot_cfg.split == task.config.test_split
        with library_errors(f"{name} cannot show {shots} solved examples", "ask for fewer with --num-fewshot"):
            task.sampler.sample(n=shots, eval_doc=task.eval_docs[0] if own_split else None)
    task.set_fewshot_seed(seed)
