"""The task files: which tasks and prompts there are, and what the user chose of them."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import task_configs
from harness.errors import UserError, nearest_hint

TASK_DIR = Path(task_configs.__file__).parent
GROUPS = ("rsg", "rsg_gen")
# Keys that lm-eval reads beside those of its TaskConfig.
_FILE_KEYS = {"include", "tag", "group"}


@dataclass(frozen=True)
class TaskFile:
    """One task file."""

    full_name: str  # rsg_terra, rsg_gen_terra: the name for lm-eval
    group: str  # rsg or rsg_gen
    task: str  # terra: data and metrics
    path: Path
    prompts: tuple[str, ...]  # the default one first
    description: str
    config: dict[str, Any]  # as parsed, functions as their names

    @property
    def name(self) -> str:
        """The name in commands and records: terra, gen_terra."""
        return self.full_name.removeprefix("rsg_")


@dataclass(frozen=True)
class ChosenTask:
    """A task file and the prompt to use with it."""

    file: TaskFile
    prompt: str

    def words(self) -> list[str]:
        """The answer words of the prompt, one a label; empty where the choices differ by document."""
        choices = self.file.config["metadata"]["prompts"][self.prompt].get("doc_to_choice")
        return [str(choice) for choice in choices] if isinstance(choices, list) else []


def prompt_hash(task: ChosenTask) -> str:
    """SHA-256 of a prompt's template, by which a checkpoint knows the prompt that it was trained on."""
    template = task.file.config["metadata"]["prompts"][task.prompt]
    return hashlib.sha256(json.dumps(template, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


class _Loader(yaml.SafeLoader):
    """Reads task files without importing what they name."""


def _function_name(loader: yaml.SafeLoader, node: yaml.Node) -> str:
    return f"!function {loader.construct_scalar(node)}"


_Loader.add_constructor("!function", _function_name)


@functools.cache
def task_files(directory: Path = TASK_DIR) -> dict[str, TaskFile]:
    """All task files of a directory, short name -> file, in the order of the groups.

    Raises:
        UserError: a file that is no YAML or has a key that lm-eval does not know.
    """
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


def _parse(path: Path) -> dict[str, Any]:
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError(f"{where}: not valid YAML: {getattr(error, 'problem', error)}", "mend the file") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: a task file is a mapping of keys", "see task_configs/rsg/terra.yaml")
    return config


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
    """lm-eval's keys of a task. Read from its source file: importing lm-eval takes seconds, this milliseconds."""
    import ast
    import importlib.util

    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse((Path(spec.origin).parent / "config" / "task.py").read_text(encoding="utf-8"))
    config = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "TaskConfig")
    fields = {
        node.target.id for node in config.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    return frozenset(fields | _FILE_KEYS)


def choose(
    tasks: Sequence[str],
    prompt: str | None = None,
    directory: Path = TASK_DIR,
    defaults: Mapping[str, str] | None = None,
) -> list[ChosenTask]:
    """The tasks that the user named, each with its prompt.

    Args:
        tasks: short (terra, gen_terra) or full names (rsg_terra, rsg_gen_terra), or groups (rsg, rsg_gen).
        prompt: one name for all tasks, or TASK=NAME pairs separated by commas; default: each task's own default.
        defaults: task (terra) -> other default prompt of its file in the group rsg: what a checkpoint was trained on.

    Raises:
        UserError: an unknown task or prompt, with the nearest names.
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
    """What --prompt asks of each task: one name for all, or TASK=NAME pairs."""
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


def task_specification(chosen: Sequence[ChosenTask]) -> dict[str, Any]:
    """What lm-eval's TaskManager loads: a group of the registered tasks with the chosen prompts."""
    return {
        "group": "chosen",
        "task": [{"task": task.file.full_name, **_overrides(task)} for task in chosen],
    }


def _overrides(task: ChosenTask) -> dict[str, Any]:
    if task.prompt == task.file.prompts[0]:
        return {}
    from lm_eval.tasks._yaml_loader import load_yaml

    prompts = load_yaml(task.file.path)["metadata"]["prompts"]
    cleared = dict.fromkeys(set(prompts[task.file.prompts[0]]) - set(prompts[task.prompt]))
    if "target_delimiter" in cleared:
        cleared["target_delimiter"] = " "
    return {**cleared, **prompts[task.prompt]}
