"""`rsg-harness quantize`: a model or a checkpoint to an MLX directory with fewer bits.

The backbone is quantised by mlx_lm.convert; task heads stay in full precision beside it. The directory is a checkpoint
of ours where the model was one, and in any case a model that `mlx_lm.generate` loads.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    write_converted,
)
from harness.errors import UserError, nearest_hint
from harness.evaluation.options import Progress
from harness.models.checkpoint import read_checkpoint, write_merged
from harness.models.resolve import LocalModel, default_model, resolve_model
from harness.quantization.mixing import Part, average_bits, choose_bits
from harness.quiet import quiet_libraries

if TYPE_CHECKING:
    from harness.quantization.learned import Calibration

# How many texts the learned methods read: mlx-lm's own numbers.
SAMPLES = {"dwq": 2048, "awq": 128}
METHODS = ("plain", "sensitivity", *SAMPLES)
_MAX_TOKENS = 1024  # of a text
SENSITIVITY = "sensitivity.json"


@dataclass(frozen=True)
class QuantizeOptions:
    """What the user asked for; see `rsg-harness quantize --help`."""

    output: Path
    model: str | None = None
    bits: int | None = None  # None: 4, or what the mode or the recipe has
    group_size: int | None = None  # None: what is usual for the mode
    mode: str = "affine"
    recipe: str | None = None  # one of MIXED_RECIPES
    method: str = "plain"  # one of METHODS
    data: str = "mini"  # for all but `plain`: whose train documents are looked at
    samples: int | None = None  # for learned methods: how many of them; None: SAMPLES
    target_bits: float = 5.0  # for `sensitivity`: a weight, scales included


@dataclass(frozen=True)
class Quantized:
    """What came out. Sizes in bytes, of the weights as stored."""

    directory: Path
    model: LocalModel
    bits_per_weight: float
    bytes_before: int
    bytes_after: int


def quantize(
    options: QuantizeOptions, say: Callable[[str], None] = lambda text: None, progress: Progress | None = None
) -> Quantized:
    """Writes the quantised directory, whole or not at all.

    Args:
        options: what to write.
        say: told what takes long.
        progress: as for `run`; the sensitivity of some dozens of parts takes minutes.

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
    if options.method not in METHODS:
        raise UserError(f"unknown method {options.method!r}", nearest_hint(options.method, METHODS, "methods"))
    if options.method != "plain" and (options.recipe is not None or options.mode != "affine"):
        raise UserError(f"--method {options.method} goes with mode affine and no recipe", "leave out --recipe, --mode")
    if options.method == "dwq" and options.bits == 8:
        raise UserError("dwq has nothing to learn at 8 bits", "use --method plain, or fewer --bits")
    if options.samples is not None and options.samples < 1:
        raise UserError(f"--samples {options.samples} makes no sense", "give 16 or more, or leave it out")
    name = options.model or default_model()
    model = resolve_model(name, say)
    config = read_config(model.path)
    found = quantization_of(config)
    if found is not None:
        raise UserError(f"{model.name} is already quantised to {found['bits']} bits", "name the unquantised model")
    staged = {**mlx_config(config), "dtype": "bfloat16"}
    bits, group_size = _settings(options)
    check_quantization(staged, bits, group_size, options.mode)
    what = f"{options.recipe or f'{bits} bits'}, group size {group_size}"
    predicate: Any = options.recipe
    measured = calibration = None
    if options.method in SAMPLES:
        calibration = _calibration(options, model, bits, group_size)
        what = f"{bits} bits by {options.method}, group size {group_size}"
    elif options.method == "sensitivity":
        parts, part_bits = _measure(options, model, name, bits, group_size, say, progress)
        predicate = _raising(parts, part_bits, bits, group_size)
        measured = _sensitivity_text(parts, part_bits)
        what = f"{_counts(part_bits)}, group size {group_size}"
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
        if calibration is not None:
            from harness.quantization.learned import learn  # which loads MLX

            learn_from = functools.partial(learn, options.method, calibration=calibration, say=say)
            write_converted(model.path, staged, result, learn_from)
        else:
            with quiet_libraries():
                convert(
                    model.path,
                    staged,
                    result,
                    q_bits=bits,
                    q_group_size=group_size,
                    q_mode=options.mode,
                    dtype="bfloat16",
                    quant_predicate=predicate,
                )
        if measured is not None:
            (result / SENSITIVITY).write_text(measured, encoding="utf-8")
        after, weights = stored_bytes(result), parameter_count(result)
        if model.checkpoint is not None:
            bits_per_weight = f"{8 * after / weights:.2f} bits a weight"
            write_merged(result, model.checkpoint, f"Quantised by rsg-harness: {what}, {bits_per_weight}.")
        result.rename(options.output)
    except OSError as error:
        raise UserError(f"cannot write {options.output}: {error.strerror}", "free some space") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Quantized(options.output, model, 8 * after / weights, stored_bytes(model.path), after)


def _calibration(options: QuantizeOptions, model: LocalModel, bits: int, group_size: int) -> Calibration:
    from adapters.torch_backend import load_tokenizer
    from harness.quantization.calibration import calibration_sequences
    from harness.quantization.learned import Calibration

    prompts = read_checkpoint(model.checkpoint).prompts() if model.checkpoint else None
    count = options.samples or SAMPLES[options.method]
    sequences = calibration_sequences(load_tokenizer(model.path), prompts, options.data, count, _MAX_TOKENS)
    return Calibration(sequences, bits, group_size)


def _measure(
    options: QuantizeOptions,
    model: LocalModel,
    name: str,
    bits: int,
    group_size: int,
    say: Callable[[str], None],
    progress: Progress | None,
) -> tuple[list[Part], dict[str, int]]:
    """All parts with their sensitivity, and the bits of each by its name.

    Raises:
        UserError: fewer bits asked for than the low ones take.
    """
    one = Part("", (), 1, 0.0)
    lowest = average_bits([one], {one.name: bits}, group_size)
    if options.target_bits < lowest:
        raise UserError(
            f"--target-bits {options.target_bits} is less than {bits} bits with their scales take",
            f"give {lowest} or more, or fewer --bits",
        )
    from harness.quantization.sensitivity import measure_sensitivity  # which loads lm-eval and PyTorch

    say(f"measuring {model.name} on train documents of {options.data}")
    parts = measure_sensitivity(
        name, bits, group_size, options.data, progress or (lambda what, total: lambda done: None)
    )
    chosen = choose_bits(parts, bits, group_size, options.target_bits)
    for part in sorted(parts, key=lambda part: -part.divergence)[:5]:
        say(f"{part.name}: KL {part.divergence:.4f} at {bits} bits, gets {chosen[part.name]}")
    return parts, chosen


def _raising(
    parts: Sequence[Part], part_bits: Mapping[str, int], bits: int, group_size: int
) -> Callable[[str, Any], bool | dict[str, Any]]:
    """mlx_lm's quant_predicate: more than the usual `bits` for the matrices of some parts."""
    raised = {
        matrix: {"group_size": group_size, "bits": part_bits[part.name], "mode": "affine"}
        for part in parts
        for matrix in part.matrices
        if part_bits[part.name] > bits
    }
    return lambda path, module: raised.get(path, True)


def _counts(part_bits: Mapping[str, int]) -> str:
    counts = Counter(part_bits.values())
    return ", ".join(f"{counts[bits]} parts {bits} bits" for bits in sorted(counts))


def _sensitivity_text(parts: Sequence[Part], part_bits: Mapping[str, int]) -> str:
    rows = [{**dataclasses.asdict(part), "bits": part_bits[part.name]} for part in parts]
    return json.dumps(rows, ensure_ascii=False, indent=1) + "\n"


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
