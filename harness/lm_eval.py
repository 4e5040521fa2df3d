"""lm-eval's own command line over our engine.

    python -m harness.lm_eval run --model rsg --model_args pretrained=MODEL,backend=mlx-q4 --tasks hellaswag

lm-eval has no way in for models of other packages, so this registers ours and calls its command. In Python,
`lm_eval.simple_evaluate(model=harness.open_model(MODEL, backend="mlx-q4").lm(), tasks=[…])` does without it.
"""

from __future__ import annotations

import sys
from typing import Any

import lm_eval.models  # noqa: F401  its own models first: a registry that holds one no longer looks for them
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.registry import register_model

from harness.errors import UserError
from harness.evaluation.language_model import PlannedModel
from harness.models.open import open_model
from harness.models.options import ModelOptions
from harness.threads import limit_spinning


@register_model("rsg")
class LmEvalModel(PlannedModel):
    """The model that `--model rsg` names.

    Args:
        pretrained: As our `--model` takes it.
        backend: As our `--backend`.
        execution, dtype: As our options of these names.
        batch_tokens: Tokens in a batch.
        seed: For sampled generation.
        batch_size, max_batch_size, device: lm-eval's own; the planner and the backend decide instead.
        backend_args: Other names and values go to the backend, as with our `--backend-arg`.
    """

    def __init__(
        self,
        pretrained: str = "embedded",
        backend: str = "auto",
        execution: str = "auto",
        dtype: str = "auto",
        batch_tokens: int | None = None,
        seed: int = 0,
        batch_size: Any = None,
        max_batch_size: Any = None,
        device: Any = None,
        **backend_args: Any,
    ) -> None:
        given = tuple(f"{name}={value}" for name, value in backend_args.items())
        options = ModelOptions(pretrained, backend, given, execution, dtype, apply_chat_template="off")
        super().__init__(open_model(options), batch_tokens, seed=seed)


def main() -> int:
    """Call lm-eval's command. Return 2 after an error that the user can fix."""
    limit_spinning()
    try:
        cli_evaluate()
    except UserError as error:
        print(f"error: {error.message}" + (f" — {error.hint}" if error.hint else ""), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
