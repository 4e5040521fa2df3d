"""What a run wants of a model beyond lm-eval's interface, wherever the model computes."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from harness.evaluation.account import Account


def repeats(requests: Sequence[Instance]) -> list[int]:
    """Return how often each request has come before: one that is repeated is sampled anew each time."""
    asked: Counter[int] = Counter()
    found = []
    for request in requests:
        found.append(asked[id(request)])
        asked[id(request)] += 1
    return found


class AnsweringModel(LM):
    """lm-eval's interface to a model.

    Attributes:
        truncated: lm-eval's name of a task -> requests that were cut from the left.
    """

    def __init__(self) -> None:
        super().__init__()
        self.truncated: Counter[str] = Counter()
        # lm-eval places nothing on a device itself, but its base class reads this.
        self._device = "cpu"

    @property
    @abstractmethod
    def applies_chat_template(self) -> bool:
        """Whether the prompts of Russian SuperGLUE go through the model's chat template."""

    def head_kind(self, task: str) -> str | None:
        """Return the kind of the head that answers a task; None where the language model does."""
        return None

    @abstractmethod
    def account(self, scoring_seconds: float) -> Account:
        """Return what answered, once all has been asked.

        Args:
            scoring_seconds: That this process's store has counted.
        """
