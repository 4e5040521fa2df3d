"""What differs between causal language models, read from a model's configuration.

transformers knows how to build and load each of them; the planner needs a few facts besides: which part of a model with
pictures or sound is its text decoder, and how the output head turns hidden states into logits. Importing this loads no
tensor library.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.base import UserError, library_errors


@dataclass(frozen=True)
class Logits:
    """How a model's logits follow from hidden states: cap · tanh(scale · (hidden · weight + bias) / cap).

    Attributes:
        scale: Cohere's `logit_scale`; 1 / `logits_scaling` of Granite.
        cap: `final_logit_softcapping` of Gemma 2, 3n and 4; None: no cap.
    """

    scale: float = 1.0
    cap: float | None = None


@dataclass(frozen=True)
class Architecture:
    """A causal language model as its configuration describes it.

    Attributes:
        model_type: transformers' name of the text decoder, such as "gemma3_text".
        config: transformers' configuration of the text decoder.
        is_part: Whether the directory holds more than the text decoder, such as a vision tower.
        logits: How logits follow from hidden states.
    """

    model_type: str
    config: Any
    is_part: bool
    logits: Logits

    @property
    def context_length(self) -> int:
        """Tokens that the model can read."""
        return int(self.config.max_position_embeddings)

    @property
    def window(self) -> int | None:
        """Tokens that the layers with the shortest memory see; None: every layer sees all."""
        kinds = getattr(self.config, "layer_types", None)
        slides = "sliding_attention" in kinds if kinds else getattr(self.config, "use_sliding_window", True)
        return getattr(self.config, "sliding_window", None) if slides else None

    @property
    def windows(self) -> dict[str, int | None]:
        """Kind of layer, as transformers names it -> tokens that such layers see, None: all."""
        named = getattr(self.config, "layer_types", None) or []
        default = "sliding_attention" if self.window else "full_attention"
        return {kind: self.window if kind == "sliding_attention" else None for kind in sorted({*named}) or [default]}

    @property
    def overflows_float16(self) -> bool:
        """Whether float16 is too small for the model's hidden states, as it is for all Gemmas."""
        return self.model_type.startswith("gemma")


def read_architecture(model_dir: Path) -> Architecture:
    """Read the architecture of a model directory.

    Raises:
        UserError: transformers knows no such architecture, or none that writes text.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    with library_errors(
        f"transformers cannot read {model_dir / 'config.json'}",
        "a newer transformers may know it; models that bring code of their own are not run",
    ):
        whole = AutoConfig.from_pretrained(model_dir)
    config = whole.get_text_config(decoder=True)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(
            f"{model_dir} holds a {whole.model_type} model, which is no causal language model",
            "name a model that continues texts, such as google/gemma-3-270m or Qwen/Qwen3-0.6B",
        )
    return Architecture(
        model_type=config.model_type,
        config=config,
        is_part=config is not whole,
        logits=Logits(_logit_scale(config), getattr(config, "final_logit_softcapping", None)),
    )


def _logit_scale(config: Any) -> float:
    scale = getattr(config, "logit_scale", None)
    divisor = getattr(config, "logits_scaling", None)
    return float(scale if scale is not None else 1.0) / float(divisor or 1.0)


def model_class(architecture: Architecture) -> Any:
    """Return transformers' class of the language model."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    return MODEL_FOR_CAUSAL_LM_MAPPING[type(architecture.config)]
