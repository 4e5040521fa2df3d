"""The options of `rsg-harness adapt`, and the refusal of what cannot work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.errors import UserError
from harness.models.options import check_numbers


@dataclass(frozen=True)
class Pretraining:
    """The length and the rates of continued pre-training. A step is one batch.

    Attributes:
        row_steps: Steps in which only the new tokens' rows learn.
        lora_steps: Steps after them in which LoRA learns too.
    """

    row_steps: int = 0
    lora_steps: int = 0
    batch_tokens: int = 1024
    sequence_tokens: int = 256
    row_learning_rate: float = 1e-3
    lora_learning_rate: float = 4e-4
    max_gradient_norm: float = 1.0
    seed: int = 1234

    @property
    def steps(self) -> int:
        """Return the number of steps in all."""
        return self.row_steps + self.lora_steps


@dataclass(frozen=True)
class AdaptOptions:
    """The options of `rsg-harness adapt`.

    Attributes:
        corpora: Texts to adapt to: files, directories, hub:NAME, or "rsg". The first one is measured on.
        model: The model to adapt, as `run` takes it.
        output: The directory to write; None: the model is only analysed.
        new_tokens: Tokens to learn from the corpora.
        prune: Drop tokens that the corpora do not use.
        min_count: Uses in the corpora that keep a token from being pruned.
        row_steps: Steps of pre-training of the new tokens' rows.
        lora_steps: Steps after them, of LoRA and the rows.
        data: The source of the corpus "rsg", and of the analysis by task.
        resume: Continue the unfinished pre-training to `output`.
        command: The command line, for the record.
    """

    corpora: tuple[str, ...] = ()
    model: str = "embedded"
    output: Path | None = None
    new_tokens: int = 0
    prune: bool = False
    min_count: int = 1
    row_steps: int = 0
    lora_steps: int = 0
    data: str = "mini"
    resume: bool = False
    command: str = "rsg-harness adapt"

    @property
    def training(self) -> Pretraining:
        """Return the settings of continued pre-training."""
        return Pretraining(row_steps=self.row_steps, lora_steps=self.lora_steps)


def check_analyse_options(options: AdaptOptions) -> None:
    """Refuse options with which a vocabulary cannot be analysed, before anything is loaded.

    Raises:
        UserError: Names the option and what it takes.
    """
    if not options.corpora:
        raise UserError("no corpus named", "give --corpus FILE, DIR, hub:NAME or rsg (train texts of --data)")
    check_numbers(
        ("--new-tokens", options.new_tokens, 0),
        ("--min-count", options.min_count, 1),
        ("--row-steps", options.row_steps, 0),
        ("--lora-steps", options.lora_steps, 0),
    )


def check_adapt_options(options: AdaptOptions) -> None:
    """Refuse options with which a model cannot be adapted, before anything is loaded.

    Raises:
        UserError: Names the option and what it takes.
    """
    check_analyse_options(options)
    if options.output is None:
        raise UserError("no --output", "name a directory for the adapted model, or give --analyse")
    if not options.new_tokens and not options.prune:
        raise UserError("nothing to do", "give --new-tokens N, --prune, or both; --analyse tells what they would save")
    if options.training.steps and not options.new_tokens:
        raise UserError("continued pre-training is for new tokens", "give --new-tokens, or no training steps")
    if options.output.exists():
        raise UserError(f"{options.output} exists already", "name another --output, or remove it")
