"""The options of `rsg-harness quantize`, and the refusal of what cannot work."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from adapters.gguf_types import KINDS
from adapters.mlx_weights import MIXED_RECIPES, QUANTIZATION_MODES
from harness.errors import UserError, nearest_hint
from harness.models.options import check_numbers

FORMATS = ("mlx", "gguf")
GGUF = ".gguf"

# Learned methods -> how many texts they read unless told otherwise: mlx-lm's own numbers.
SAMPLES = {"dwq": 2048, "awq": 128}
METHODS = ("plain", "sensitivity", *SAMPLES)
# Options that GGUF files do not have.
_OF_MLX = ("group_size", "mode", "recipe", "method", "samples", "target_bits")
_USUAL_KIND = "q4_k_m"


@dataclass(frozen=True)
class QuantizeOptions:
    """The options of `rsg-harness quantize`.

    Attributes:
        output: The directory to write, missing or empty; for GGUF the file to write.
        model: The model to quantise, as `run` takes it.
        format: One of `FORMATS`.
        bits: Bits of a weight; None: 4, or those of the mode or the recipe. For GGUF one of `KINDS`.
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
    format: str = "mlx"
    bits: int | str | None = None
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
    if options.format not in FORMATS:
        raise UserError(f"unknown format {options.format!r}", nearest_hint(options.format, FORMATS, "formats"))
    (_check_gguf if options.format == "gguf" else _check_mlx)(options)


def gguf_kind(options: QuantizeOptions) -> str:
    """Return the kind of GGUF file that was asked for, or the usual one."""
    return _USUAL_KIND if options.bits is None else str(options.bits)


def _check_gguf(options: QuantizeOptions) -> None:
    usual = {field.name: field.default for field in dataclasses.fields(options)}
    for name in _OF_MLX:
        if getattr(options, name) != usual[name]:
            raise UserError(f"--{name.replace('_', '-')} is an option of MLX's format, not of GGUF", "leave it out")
    kind = gguf_kind(options)
    if kind not in KINDS:
        raise UserError(f"GGUF files know no --bits {kind}", nearest_hint(kind, KINDS, "one of"))
    if options.output.suffix != GGUF:
        raise UserError(
            f"{options.output} does not end in {GGUF}", f"name a file: --output {options.output.name}{GGUF}"
        )
    from harness.models.checkpoint import heads_directory

    for path in (options.output, heads_directory(options.output)):
        if path.exists():
            raise UserError(f"{path} exists already", "name another --output, or remove it")


def _check_mlx(options: QuantizeOptions) -> None:
    if options.output.suffix == GGUF or str(options.bits) in KINDS:
        named = options.output if options.output.suffix == GGUF else f"--bits {options.bits}"
        raise UserError(f"{named} is for GGUF files, and MLX's format is a directory", "add --format gguf")
    if isinstance(options.bits, str):
        raise UserError(f"--bits {options.bits} is no number", "give 3, 4, 6 or 8")
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
    return int(options.bits or bits), options.group_size or group_size
