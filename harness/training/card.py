"""The model card of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NOTICE = (
    "Gemma is provided under and subject to the Gemma Terms of Use found at https://ai.google.dev/gemma/terms. "
    "This checkpoint is a Model Derivative of Gemma: the weights here were modified, as described below, "
    "and their use is bound by the same terms and by the Gemma Prohibited Use Policy "
    "(https://ai.google.dev/gemma/prohibited_use_policy)."
)


def model_card(description: Mapping[str, Any]) -> str:
    """README.md of a checkpoint.

    Args:
        description: fields of `Checkpoint`, without `files`.
    """
    training = description["training"]
    validation = training["validation"]
    recipe = training["recipe"]
    rows = [
        f"| {task} | {head.kind} | {head.prompt} | {100 * validation['figures'][task]['rsg']:.1f} |"
        for task, head in description["tasks"].items()
    ]
    changed = (
        f"LoRA of rank {recipe['lora']['rank']} in the layers above the first {description['frozen_layers']}"
        if description["adaptation"] == "lora"
        else f"all layers above the first {description['frozen_layers']}, trained in full"
    )
    return "\n".join(
        [
            "---",
            "license: gemma",
            "language: ru",
            "library_name: rsg-harness",
            "---",
            f"# {description['name']}",
            "",
            f"A multitask model for Russian SuperGLUE: {description['base'].origin} with {changed}, and a head for "
            "each task on the hidden state of the prompt's last token.",
            "",
            NOTICE,
            "",
            "Use it with rsg-harness:",
            "",
            "    rsg-harness run --model THIS_DIRECTORY --backend torch",
            '    rsg-harness predict --model THIS_DIRECTORY --task terra --premise "…" --hypothesis "…"',
            "",
            f"## Figures on validation, at step {training['step']}",
            "",
            f"Official metrics × 100, at most {validation['limit']} documents a task, chosen by the same figures; mean "
            f"{100 * validation['mean']:.1f}. Records of full evaluations are on the leaderboard."
            if validation["limit"]
            else f"Official metrics × 100, chosen by the same figures; mean {100 * validation['mean']:.1f}.",
            "",
            "| task | head | prompt | figure |",
            "|---|---|---|---|",
            *rows,
            "",
            "LiDiRus is never trained on; TERRa's head answers it.",
            "",
            f"Trained with `{training['command']}`; recipe, data fingerprints and versions are in rsg_checkpoint.json.",
            "",
        ]
    )
