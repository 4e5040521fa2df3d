"""The chat template: whether prompts go through it, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from adapters.base import library_errors
from harness.errors import UserError

WHEN = ("auto", "on", "off")
# Qwen3's template and those made after it: no thoughts before the answer. Others ignore the name.
_TEMPLATE_ARGUMENTS = {"enable_thinking": False}


@dataclass(frozen=True)
class Template:
    """A tokenizer's chat template and the decision whether to apply it.

    Attributes:
        tokenizer: A transformers tokenizer.
        applied: Whether prompts go through its template.
    """

    tokenizer: Any
    applied: bool

    def text(self, history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Render a conversation; without a generation prompt its last turn stays open."""
        with library_errors("this model's chat template cannot be used", "leave it out: --apply-chat-template off"):
            return self.tokenizer.apply_chat_template(
                history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
                **_TEMPLATE_ARGUMENTS,
            )


def chat_template(tokenizer: Any, wanted: str = "auto") -> Template:
    """Decide whether the template is applied: "auto" where the tokenizer has one, as base models do not.

    Raises:
        UserError: "on", and the tokenizer has none.
    """
    has = bool(tokenizer.chat_template)
    if wanted == "on" and not has:
        raise UserError("this model's tokenizer has no chat template", "leave out --apply-chat-template")
    return Template(tokenizer, has if wanted == "auto" else wanted == "on")
