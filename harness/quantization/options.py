"""The options of `rsg-harness quantize`, and the refusal of what cannot work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adapters.mlx_weights import MIXED_RECIPES, QUANTIZATION_MODES
from harness.errors import UserError, nearest_hint
from harness.models.options import check_numbers

# Learned methods -> how many texts they read unless told otherwise: mlx-lm's own numbers.
SAMPLES = {"dwq": 2048, "awq": 128}
METHODS = ("plain", "sensitivity", *SAMPLES)


@dataclass(frozen=True)
class QuantizeOptions:
    """The options of `rsg-harness quantize`.

    Attributes:
        output: The directory to write; missing or empty.
        model: The model to quantise, as `run` takes it.
        bits: Bits of a weight; None: 4, or those of the mode or the recipe.
        group_size: Weights that share a scale; None: the usual number for the mode.
        mode: A key of `QUANTIZATION_MODES`.
        recipe: One of `MIXED_RECIPES`, or None.
        method: One of `METHODS`.
        data: The source whose train documents all methods but "plain" read.
        samples: Texts that a learned method reads; None: `SAMPLES`.
        target_bits: Average bits of a weight, scales included, for "sensitivity".
    """

    output: Path
    model: str | None = None
    bits: int | None = None
    group_size: int | None = None
    mode: str = "affine"
    recipe: str | None = None
    method: str = "plain"
    data: str = "mini"
    samples: int | None = None
    target_bits: float = 5.0


def check_quantize_options(options: QuantizeOptions) -> None:
    """Refuse options that cannot work, before anything is loaded.

    Raises:
        UserError: Names the option and what it takes.
    """
    if options.output.exists() and not (options.output.is_dir() and not any(options.output.iterdir())):
        raise UserError(f"{options.output} is not empty", "name another --output")
    if options.recipe is not None:
        if options.recipe not in MIXED_RECIPES:
            hint = nearest_hint(options.recipe, MIXED_RECIPES, "recipes")
            raise UserError(f"unknown recipe {options.recipe!r}", hint)
        if options.mode != "affine":
            raise UserError(f"mixed recipes are affine, not {options.mode}", "leave out --mode or --recipe")
        if options.bits is not None:
            raise UserError(f"the recipe {options.recipe} names its own bits", "leave out --bits")
    if options.method not in METHODS:
        raise UserError(f"unknown method {options.method!r}", nearest_hint(options.method, METHODS, "methods"))
    if options.method != "plain" and (options.recipe is not None or options.mode != "affine"):
        raise UserError(f"--method {options.method} goes with mode affine and no recipe", "leave out --recipe, --mode")
    if options.mode not in QUANTIZATION_MODES:
        raise UserError(f"unknown mode {options.mode!r}", nearest_hint(options.mode, QUANTIZATION_MODES, "modes"))
    if options.method == "dwq" and options.bits == 8:
        raise UserError("dwq has nothing to learn at 8 bits", "use --method plain, or fewer --bits")
    check_numbers(("--samples", options.samples, 1))


def bits_and_group_size(options: QuantizeOptions) -> tuple[int, int]:
    """Return the given bits and group size, or the usual ones of the recipe or the mode."""
    all_bits, group_sizes = QUANTIZATION_MODES[options.mode]
    bits, group_size = (4, 64) if options.mode == "affine" else (all_bits[0], group_sizes[0])
    if options.recipe is not None:
        bits = int(options.recipe.split("_")[1])  # mixed_4_6: most matrices have 4
    return options.bits or bits, options.group_size or group_size
