"""`rsg-harness quantize`: write a copy of a model or a checkpoint in fewer bits, for MLX or as a GGUF file.

mlx_lm.convert quantises the backbone; task heads stay in full precision beside it. The result is a model that
`mlx_lm.generate` loads, and a checkpoint of this program where the source was one.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters.mlx_weights import (
    check_quantization,
    convert,
    mlx_config,
    parameter_count,
    quantization_of,
    read_config,
    stored_bytes,
    write_converted,
)
from harness.errors import UserError
from harness.files import whole_directory
from harness.models.checkpoint import write_merged
from harness.models.resolve import LocalModel, ModelReference, find_model, provide
from harness.quantization.options import (
    SAMPLES,
    QuantizeOptions,
    bits_and_group_size,
    check_quantize_options,
    gguf_kind,
)
from harness.quantization.sensitivity import Part, average_bits, choose_bits, measure_sensitivity
from harness.quiet import quiet_libraries

if TYPE_CHECKING:
    from harness.quantization.learned import Calibration

SENSITIVITY = "sensitivity.json"
_MAX_TOKENS = 1024  # of a text that a learned method reads
# MLX computes in bfloat16, so what stays unquantised is stored in it.
_DTYPE = "bfloat16"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Quantized:
    """The outcome of quantising.

    Attributes:
        output: The directory or file that was written.
        model: What it was made from.
        bits_per_weight: Scales, and matrices that are not quantised, included.
        bytes_before: Of the weights as stored.
        bytes_after: Of the weights as stored.
    """

    output: Path
    model: LocalModel
    bits_per_weight: float
    bytes_before: int
    bytes_after: int


def quantize(options: QuantizeOptions) -> Quantized:
    """Write the quantised directory or file, whole or not at all.

    Raises:
        UserError: The format does not offer the settings, they do not divide the matrices, the model is quantised
            already, the output is not empty, or there is no room for it.
    """
    check_quantize_options(options)
    if options.format == "gguf":
        from harness.quantization.gguf import check_library

        check_library(gguf_kind(options))
    reference = find_model(options.model)
    model = provide(reference)
    config = read_config(model.path)
    found = quantization_of(config)
    if found is not None:
        raise UserError(f"{model.name} is already quantised to {found['bits']} bits", "name the unquantised model")
    if model.apart is not None:
        log.warning(
            "%s was trained for %s, where its adapter stays beside the weights; a quantised copy rounds both once more",
            model.name,
            model.apart.backend,
        )
    if options.format == "gguf":
        return _quantize_to_gguf(options, model)
    staged = {**mlx_config(config), "dtype": _DTYPE}
    bits, group_size = bits_and_group_size(options)
    check_quantization(staged, bits, group_size, options.mode)
    what = f"{options.recipe or f'{bits} bits'}, group size {group_size}"
    predicate: Any = options.recipe
    measured = calibration = None
    if options.method in SAMPLES:
        calibration = _calibration(options, reference, model, bits, group_size)
        what = f"{bits} bits by {options.method}, group size {group_size}"
    elif options.method == "sensitivity":
        parts, part_bits = _measure(options, reference, model, bits, group_size)
        predicate = _raising(parts, part_bits, bits, group_size)
        measured = _sensitivity_text(parts, part_bits)
        what = f"{_counts(part_bits)}, group size {group_size}"
    log.info("quantising %s to %s", model.name, what)
    with whole_directory(options.output) as result:
        if calibration is not None:
            from harness.quantization.learned import learn  # loads MLX

            write_converted(
                model.path, staged, result, functools.partial(learn, options.method, calibration=calibration)
            )
        else:
            with quiet_libraries():
                convert(
                    model.path,
                    staged,
                    result,
                    q_bits=bits,
                    q_group_size=group_size,
                    q_mode=options.mode,
                    dtype=_DTYPE,
                    quant_predicate=predicate,
                )
        if measured is not None:
            (result / SENSITIVITY).write_text(measured, encoding="utf-8")
        after, weights = stored_bytes(result), parameter_count(result)
        if model.checkpoint is not None:
            bits_per_weight = f"{8 * after / weights:.2f} bits a weight"
            write_merged(result, model.checkpoint, f"Quantised by rsg-harness: {what}, {bits_per_weight}.")
    return Quantized(options.output, model, 8 * after / weights, stored_bytes(model.path), after)


def _quantize_to_gguf(options: QuantizeOptions, model: LocalModel) -> Quantized:
    from harness.quantization.gguf import write_model

    kind = gguf_kind(options)
    log.info("writing %s as %s", model.name, kind)
    after, weights = write_model(model, options.output, kind), parameter_count(model.path)
    return Quantized(options.output, model, 8 * after / weights, stored_bytes(model.path), after)


def _calibration(
    options: QuantizeOptions, reference: ModelReference, model: LocalModel, bits: int, group_size: int
) -> Calibration:
    from adapters.text import load_tokenizer
    from harness.quantization.calibration import calibration_sequences
    from harness.quantization.learned import Calibration

    count = options.samples or SAMPLES[options.method]
    sequences = calibration_sequences(load_tokenizer(model.path), reference.prompts, options.data, count, _MAX_TOKENS)
    return Calibration(sequences, bits, group_size)


def _measure(
    options: QuantizeOptions, reference: ModelReference, model: LocalModel, bits: int, group_size: int
) -> tuple[list[Part], dict[str, int]]:
    """Return all parts with their sensitivity, and each part's bits by its name.

    Raises:
        UserError: The budget is smaller than what the lowest width takes.
    """
    one = Part("", (), 1, 0.0)
    lowest = average_bits([one], {one.name: bits}, group_size)
    if options.target_bits < lowest:
        raise UserError(
            f"--target-bits {options.target_bits} is less than {bits} bits with their scales take",
            f"give {lowest} or more, or fewer --bits",
        )
    log.info("measuring %s on train documents of %s", model.name, options.data)
    parts = measure_sensitivity(reference.name, model, bits, group_size, options.data)
    chosen = choose_bits(parts, bits, group_size, options.target_bits)
    for part in sorted(parts, key=lambda part: -part.divergence)[:5]:
        log.info("%s: KL %.4f at %d bits, gets %d", part.name, part.divergence, bits, chosen[part.name])
    return parts, chosen


def _raising(
    parts: Sequence[Part], part_bits: Mapping[str, int], bits: int, group_size: int
) -> Callable[[str, Any], bool | dict[str, Any]]:
    """Return mlx_lm's quant_predicate that gives the matrices of some parts more than `bits`."""
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
