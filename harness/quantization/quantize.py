"""`rsg-harness quantize`: a model or a checkpoint to an MLX directory with fewer bits.

The backbone is quantised by mlx_lm.convert; task heads stay in full precision beside it. The directory is a checkpoint
of ours where the model was one, and in any case a model that `mlx_lm.generate` loads.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adapters.mlx_weights import (
    MIXED_RECIPES,
    QUANTIZATION_MODES,
    check_quantization,
    convert,
    mlx_config,
    parameter_count,
    quantization_of,
    read_config,
    stored_bytes,
)
from harness.checkpoint import write_merged
from harness.errors import UserError, nearest_hint
from harness.models import LocalModel, default_model, resolve_model
from harness.quiet import quiet_libraries


@dataclass(frozen=True)
class QuantizeOptions:
    """What the user asked for; see `rsg-harness quantize --help`."""

    output: Path
    model: str | None = None
    bits: int | None = None  # None: 4, or what the mode or the recipe has
    group_size: int | None = None  # None: what is usual for the mode
    mode: str = "affine"
    recipe: str | None = None  # one of MIXED_RECIPES


@dataclass(frozen=True)
class Quantized:
    """What came out. Sizes in bytes, of the weights as stored."""

    directory: Path
    model: LocalModel
    bits_per_weight: float
    bytes_before: int
    bytes_after: int


def quantize(options: QuantizeOptions, say: Callable[[str], None] = lambda text: None) -> Quantized:
    """Writes the quantised directory, whole or not at all.

    Raises:
        UserError: settings that MLX does not offer or that do not divide the matrices, a quantised model, a directory
            that is not empty, no room.
    """
    if options.output.exists() and any(options.output.iterdir()):
        raise UserError(f"{options.output} is not empty", "name another --output")
    if options.recipe is not None and options.recipe not in MIXED_RECIPES:
        raise UserError(f"unknown recipe {options.recipe!r}", nearest_hint(options.recipe, MIXED_RECIPES, "recipes"))
    if options.recipe is not None and options.mode != "affine":
        raise UserError(f"mixed recipes are affine, not {options.mode}", "leave out --mode or --recipe")
    model = resolve_model(options.model or default_model(), say)
    config = read_config(model.path)
    found = quantization_of(config)
    if found is not None:
        raise UserError(f"{model.name} is already quantised to {found['bits']} bits", "name the unquantised model")
    staged = {**mlx_config(config), "dtype": "bfloat16"}
    bits, group_size = _settings(options)
    check_quantization(staged, bits, group_size, options.mode)
    what = f"{options.recipe or f'{bits} bits'}, group size {group_size}"
    say(f"quantising {model.name} to {what}")
    try:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{options.output.name}-", dir=options.output.parent))
    except OSError as error:
        raise UserError(
            f"cannot write to {options.output.parent}: {error.strerror}", "name another --output"
        ) from error
    try:
        result = scratch / "result"
        with quiet_libraries():
            convert(
                model.path,
                staged,
                result,
                q_bits=bits,
                q_group_size=group_size,
                q_mode=options.mode,
                dtype="bfloat16",
                quant_predicate=options.recipe,
            )
        after, weights = stored_bytes(result), parameter_count(result)
        if model.checkpoint is not None:
            write_merged(result, model.checkpoint, f"{what}, {8 * after / weights:.2f} bits a weight")
        result.rename(options.output)
    except OSError as error:
        raise UserError(f"cannot write {options.output}: {error.strerror}", "free some space") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Quantized(options.output, model, 8 * after / weights, stored_bytes(model.path), after)


def _settings(options: QuantizeOptions) -> tuple[int, int]:
    """Bits and group size: as asked for, else the usual ones.

    Raises:
        UserError: bits beside a recipe, which has its own; an unknown mode.
    """
    if options.mode not in QUANTIZATION_MODES:
        raise UserError(f"unknown mode {options.mode!r}", nearest_hint(options.mode, QUANTIZATION_MODES, "modes"))
    all_bits, group_sizes = QUANTIZATION_MODES[options.mode]
    usual_bits, usual_group = (4, 64) if options.mode == "affine" else (all_bits[0], group_sizes[0])
    if options.recipe is not None:
        if options.bits is not None:
            raise UserError(f"the recipe {options.recipe} names its own bits", "leave out --bits")
        usual_bits = int(options.recipe.split("_")[1])  # mixed_4_6: most matrices have 4
    return options.bits or usual_bits, options.group_size or usual_group
