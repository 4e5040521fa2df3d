"""Russian SuperGLUE for small language models: evaluation, fine-tuning and quantisation with figures to defend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.models.open import OpenModel

__version__ = "0.1.0"


def open_model(model: str | None = None, **options: Any) -> OpenModel:
    """Load a model.

    Args:
        model: As `--model` takes it; None: the best checkpoint that is kept, else the embedded model.
        options: The other fields of `harness.models.options.ModelOptions`: backend, execution, dtype, …

    Raises:
        UserError: The model or the backend is not available here.
    """
    from harness.models.open import open_model
    from harness.models.options import ModelOptions

    return open_model(ModelOptions(model, **options))
