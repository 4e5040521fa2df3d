"""The task files: which tasks and prompts there are, and the user's choice among them.

A task file is lm-eval's YAML. Its prompts stand under `metadata.prompts`; the default one is merged into the task by a
YAML anchor, so plain lm-eval runs it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from harness.errors import UserError, nearest_hint
from harness.tasks.registry import included_directories

GROUPS = ("rsg", "rsg_gen")
# Keys of a file that are not fields of lm-eval's TaskConfig.
_FILE_KEYS = {"include", "tag", "group"}


def _package_directory(name: str) -> Path:
    """Return the directory of a package without importing it: task_configs imports this package."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


TASK_DIR = _package_directory("task_configs")


@dataclass(frozen=True)
class TaskFile:
    """One task file."""

    full_name: str  # for lm-eval: rsg_terra, rsg_gen_terra
    group: str  # rsg, rsg_gen, or the name of the user's directory
    task: str  # whose documents and metrics it uses: terra
    path: Path
    prompts: tuple[str, ...]  # the default one first
    description: str
    config: dict[str, Any]  # as parsed, functions as their names

    @property
    def name(self) -> str:
        """The name in commands and records: terra, gen_terra."""
        return self.full_name.removeprefix("rsg_")

    @property
    def is_generated(self) -> bool:
        """Whether the model writes its answer, instead of choosing by likelihood."""
        return self.config.get("output_type") == "generate_until"


@dataclass(frozen=True)
class ChosenTask:
    """A task file and the prompt to use with it."""

    file: TaskFile
    prompt: str

    @property
    def template(self) -> dict[str, Any]:
        """The prompt's keys as in the file, functions as their names."""
        return self.file.config["metadata"]["prompts"][self.prompt]

    @property
    def gives_pair(self) -> bool:
        """Whether the choices of the prompt are two texts to compare, which only a pair head can do."""
        return self.prompt in self.file.config["metadata"].get("pair_prompts", ())

    def verbalizers(self) -> list[str]:
        """Return the answer words of the prompt, one a label; empty where the choices differ by document."""
        choices = self.template.get("doc_to_choice")
        return [str(choice) for choice in choices] if isinstance(choices, list) else []


def prompt_hash(task: ChosenTask) -> str:
    """Return the SHA-256 of a prompt's template, by which a checkpoint knows the prompt that it was trained on."""
    return hashlib.sha256(json.dumps(task.template, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


class _Loader(yaml.SafeLoader):
    """Reads task files without importing the functions that they name."""


def _function_name(loader: yaml.SafeLoader, node: yaml.Node) -> str:
    return f"!function {loader.construct_scalar(node)}"


_Loader.add_constructor("!function", _function_name)


def task_files(directory: Path = TASK_DIR) -> dict[str, TaskFile]:
    """Return our task files by short name: the groups' in their order, then those of included directories.

    Args:
        directory: Of the groups.

    Raises:
        UserError: A file is not YAML or has a key that lm-eval does not know.
    """
    found = dict(_group_files(directory))
    for included in included_directories():
        for path in sorted(included.glob("*.yaml")):
            if _reads_our_documents(_parse(path)):
                file = _read(path, included.name)
                found[file.name] = file
    return found


@functools.cache
def _group_files(directory: Path) -> dict[str, TaskFile]:
    found: dict[str, TaskFile] = {}
    for group in GROUPS:
        members = _parse(directory / group / f"{group}.yaml")["task"]
        files = [_read(path, group) for path in sorted((directory / group).glob("*.yaml")) if path.stem != group]
        by_name = {file.full_name: file for file in files}
        for name in members:
            if name not in by_name:
                raise UserError(
                    f"{directory / group / group}.yaml names the task {name}, which no file declares",
                    nearest_hint(name, by_name, "declared"),
                )
            found[by_name[name].name] = by_name[name]
    return found


def _reads_our_documents(config: Mapping[str, Any]) -> bool:
    """Return whether a file declares a task of ours: one over the documents of a `Task`, not plain lm-eval's."""
    return config.get("custom_dataset") == "!function task_configs.functions.load_dataset"


def _parse(path: Path) -> dict[str, Any]:
    """Return the keys of a file and of the file that it includes."""
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", "check the key include") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError(f"{where}: not valid YAML: {getattr(error, 'problem', error)}", "fix the file") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: a task file is a mapping of keys", "see task_configs/rsg/terra.yaml")
    included = config.get("include")
    return {**_parse(path.parent / included), **config} if isinstance(included, str) else config


def _read(path: Path, group: str) -> TaskFile:
    config = _parse(path)
    known = _known_keys()
    for key in config:
        if key not in known:
            raise UserError(f"{path}: unknown key {key!r}", nearest_hint(str(key), known, "known keys"))
    for key in ("task", "metadata", "dataset_kwargs"):
        if key not in config:
            raise UserError(f"{path}: the key {key!r} is missing", "see task_configs/rsg/terra.yaml")
    metadata = config["metadata"]
    prompts = metadata.get("prompts") or {}
    default = metadata.get("default_prompt")
    if default not in prompts:
        raise UserError(
            f"{path}: default_prompt {default!r} is not one of the prompts",
            nearest_hint(str(default), prompts, "prompts"),
        )
    for name, prompt in prompts.items():
        for key in prompt:
            if key not in known:
                raise UserError(
                    f"{path}: unknown key {key!r} in prompt {name}", nearest_hint(str(key), known, "known keys")
                )
    names = (default, *(name for name in prompts if name != default))
    first = path.read_text(encoding="utf-8").splitlines()[0]
    description = first.removeprefix("#").strip() if first.startswith("#") else ""
    return TaskFile(config["task"], group, config["dataset_kwargs"]["task"], path, names, description, config)


@functools.cache
def _known_keys() -> frozenset[str]:
    """Return lm-eval's keys of a task."""
    from lm_eval.config.task import TaskConfig

    return frozenset({field.name for field in dataclasses.fields(TaskConfig)} | _FILE_KEYS)


def choose(
    tasks: Sequence[str],
    prompt: str | None = None,
    defaults: Mapping[str, str] | None = None,
    directory: Path = TASK_DIR,
) -> list[ChosenTask]:
    """Return the tasks that the user named, each with its prompt.

    Args:
        tasks: Short (terra, gen_terra) or full names (rsg_terra, rsg_gen_terra), or groups (rsg, rsg_gen).
        prompt: One name for all tasks, or TASK=NAME pairs separated by commas; default: each task's own default.
        defaults: Task (terra) -> another default prompt of its file: the one that a checkpoint was trained on.
        directory: Of the groups.

    Raises:
        UserError: An unknown task or prompt; the nearest names are the hint.
    """
    files = task_files(directory)
    chosen: dict[str, TaskFile] = {}
    for wanted in tasks:
        name = wanted.strip().lower()
        if name in GROUPS:
            chosen.update({file.name: file for file in files.values() if file.group == name})
            continue
        short = name.removeprefix("rsg_")
        if short not in files:
            raise UserError(f"unknown task {wanted!r}", nearest_hint(short, [*files, *GROUPS], "tasks"))
        chosen[short] = files[short]
    if not chosen:
        raise UserError("no task named", f"tasks: {', '.join(files)}")
    order = [name for name in files if name in chosen]
    trained = {name: (defaults or {}).get(name) for name in order}
    prompts = {**trained, **_prompts_by_task(prompt, order)}
    return [ChosenTask(files[name], _prompt_of(files[name], prompts.get(name))) for name in order]


def _prompts_by_task(prompt: str | None, tasks: Sequence[str]) -> dict[str, str]:
    """Parse --prompt: one name for all tasks, or TASK=NAME pairs."""
    if not prompt:
        return {}
    if "=" not in prompt:
        return dict.fromkeys(tasks, prompt)
    prompts: dict[str, str] = {}
    for pair in prompt.split(","):
        task, equals, name = pair.strip().partition("=")
        short = task.lower().removeprefix("rsg_")
        if not equals or short not in tasks:
            raise UserError(
                f"--prompt {pair.strip()!r} names no task of this run",
                nearest_hint(short, tasks, "give TASK=NAME pairs, tasks"),
            )
        prompts[short] = name
    return prompts


def _prompt_of(file: TaskFile, wanted: str | None) -> str:
    if wanted is None or wanted == "default":
        return file.prompts[0]
    if wanted not in file.prompts:
        raise UserError(
            f"task {file.name} has no prompt {wanted!r}",
            f"its prompts: {', '.join(file.prompts)}; --prompt TASK=NAME,… names one a task",
        )
    return wanted
