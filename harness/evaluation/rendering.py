"""Documents to prompts, by lm-eval from the task files: for runs, for training and for single questions."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance

from harness.errors import UserError
from harness.evaluation.catalogue import GROUPS, TASK_DIR, ChosenTask, task_specification
from harness.quiet import quiet_libraries


def load_tasks(
    chosen: Sequence[ChosenTask],
    *,
    data: str,
    split: str,
    limit: int | None = None,
    seed: int = 0,
    num_fewshot: int = 0,
) -> dict[str, Any]:
    """lm-eval's task objects with the chosen prompts, by full name (rsg_terra)."""
    from lm_eval.tasks import TaskManager

    with quiet_libraries():
        manager = TaskManager(
            include_path=[str(TASK_DIR / group) for group in GROUPS],
            include_defaults=False,
            metadata={"data": data, "split": split, "limit": limit, "seed": seed, "num_fewshot": num_fewshot},
        )
        tasks = manager.load([task_specification(chosen)])["tasks"]
        for task in tasks.values():
            task.set_config("num_fewshot", num_fewshot)
            task.set_fewshot_seed(seed)
    return tasks


def render_document(task: Any, doc: dict[str, Any], tokenizer: Any, chat_template: bool) -> list[Instance]:
    """The requests of one document, a (context, continuation) pair a choice, without few-shot examples."""
    options: dict[str, Any] = {"apply_chat_template": chat_template, "chat_template": None}
    if chat_template:
        options["chat_template"] = functools.partial(chat_text, tokenizer)
    context = task.fewshot_context(doc, num_fewshot=0, gen_prefix=task.doc_to_prefix(doc), **options)
    return task.construct_requests(doc=doc, ctx=context, metadata=(task.config.task, 0, 1), **options)


def chat_text(tokenizer: Any, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
    """A conversation through the tokenizer's chat template; without a generation prompt its last turn stays open."""
    return tokenizer.apply_chat_template(
        chat_history,
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=not add_generation_prompt,
    )


def uses_chat_template(tokenizer: Any, wanted: str) -> bool:
    """`auto`: where the tokenizer has a template, which the base models have not.

    Raises:
        UserError: a template is asked for and there is none.
    """
    has = bool(tokenizer.chat_template)
    if wanted == "on" and not has:
        raise UserError("this model's tokenizer has no chat template", "leave out --apply-chat-template")
    return has if wanted == "auto" else wanted == "on"
