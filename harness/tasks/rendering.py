"""Documents to requests, rendered by lm-eval from the task files: for runs, for training and for single questions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from lm_eval.api.instance import Instance

from harness.quiet import quiet_libraries
from harness.tasks.prompts import GROUPS, TASK_DIR, ChosenTask
from harness.tasks.registry import included_directories

# In place of a data source where documents are rendered that no source holds: lm-eval wants one at hand.
PLACEHOLDER = "placeholder"


class ChatTemplate(Protocol):
    """How a conversation becomes text; `harness.models.chat.Template` is one."""

    @property
    def applied(self) -> bool: ...

    @property
    def text(self) -> Callable[..., str]: ...


def load_tasks(
    chosen: Sequence[ChosenTask],
    *,
    data: str,
    split: str,
    limit: int | None = None,
    seed: int = 0,
    num_fewshot: int = 0,
) -> dict[str, Any]:
    """Return lm-eval's task objects with the chosen prompts, by full name (rsg_terra)."""
    from lm_eval.tasks import TaskManager

    compile_templates_once()
    with quiet_libraries():
        manager = TaskManager(
            include_path=[*(str(TASK_DIR / group) for group in GROUPS), *map(str, included_directories())],
            include_defaults=False,
            metadata={"data": data, "split": split, "limit": limit, "seed": seed, "num_fewshot": num_fewshot},
        )
        tasks = manager.load([task.file.full_name for task in chosen])["tasks"]
        others = [
            _with_prompt(tasks[task.file.full_name], task) for task in chosen if task.prompt != task.file.prompts[0]
        ]
        if others:
            tasks |= manager.load([{"group": "chosen", "task": others}])["tasks"]
        for loaded in tasks.values():
            loaded.set_config("num_fewshot", num_fewshot)
            loaded.set_fewshot_seed(seed)
    return tasks


def compile_templates_once() -> None:
    """Let lm-eval keep compiled templates: it compiles a prompt anew for every document, which is most of the work."""
    from lm_eval.utils import env

    if not hasattr(env.from_string, "cache_info"):
        env.from_string = functools.lru_cache(maxsize=256)(env.from_string)


def _with_prompt(loaded: Any, task: ChosenTask) -> dict[str, Any]:
    """Return what lm-eval loads to have the chosen prompt's keys in place of the default one's."""
    prompts = loaded.config.metadata["prompts"]  # as lm-eval read them, functions resolved
    default, chosen = prompts[task.file.prompts[0]], prompts[task.prompt]
    cleared = {key: " " if key == "target_delimiter" else None for key in default.keys() - chosen.keys()}
    return {"task": task.file.full_name, **cleared, **chosen}


def render_document(task: Any, doc: dict[str, Any], template: ChatTemplate) -> list[Instance]:
    """Return the requests of one document, a (context, continuation) pair a choice, without few-shot examples."""
    options: dict[str, Any] = {
        "apply_chat_template": template.applied,
        "chat_template": template.text if template.applied else None,
    }
    context = task.fewshot_context(doc, num_fewshot=0, gen_prefix=task.doc_to_prefix(doc), **options)
    return task.construct_requests(doc=doc, ctx=context, metadata=(task.config.task, 0, 1), **options)
