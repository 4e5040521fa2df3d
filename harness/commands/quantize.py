"""`rsg-harness quantize`: write a quantised copy of a model or checkpoint."""

from __future__ import annotations

import argparse
from typing import Any

from harness.commands.arguments import add_data, expanded, path

HELP = "write a quantised copy of a model or checkpoint"
DESCRIPTION = (
    "Quantise the backbone and keep task heads in full precision: as mlx_lm.convert does, to a directory that `run`, "
    "`predict` and mlx_lm.generate load, or to a GGUF file, as llama.cpp does."
)
INTERRUPTED = "interrupted"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--model", type=expanded, metavar="NAME", help="as for run; default: best, else embedded")
    parser.add_argument(
        "--output", type=path, required=True, metavar="DIR", help="missing or empty; with --format gguf the FILE.gguf"
    )
    parser.add_argument("--format", metavar="NAME", help="mlx (default) or gguf, which has no options but --bits")
    parser.add_argument(
        "--bits",
        type=_bits,
        metavar="N",
        help="3, 4 (default), 6 or 8; for gguf q8_0, q6_k, q5_k_m, q4_k_m (default), q4_0, q3_k_m, bf16 and so on",
    )
    parser.add_argument("--group-size", type=int, metavar="N", help="weights that share a scale: 32, 64 (default), 128")
    parser.add_argument("--mode", metavar="NAME", help="affine (default), mxfp4, nvfp4, mxfp8")
    parser.add_argument("--recipe", metavar="NAME", help="mlx-lm's mixed recipes: mixed_3_4, mixed_3_6, mixed_4_6")
    parser.add_argument(
        "--method",
        metavar="NAME",
        help="plain (default); sensitivity: more bits for the parts whose rounding moves the model's answers most; "
        "dwq, awq: learned by mlx-lm from texts",
    )
    add_data(parser, "for all methods but plain: the source whose train documents are read (default: mini)")
    parser.add_argument("--samples", type=int, metavar="N", help="texts that dwq (2048) and awq (128) read")
    parser.add_argument(
        "--target-bits", type=float, metavar="N", help="for sensitivity: average bits of a weight (default: 5)"
    )


def _bits(text: str) -> int | str:
    return int(text) if text.isdecimal() else text.lower()


def call(arguments: dict[str, Any]) -> None:
    """Quantise, and print the sizes before and after."""
    from harness.files import MIB
    from harness.progress import show_library_bars
    from harness.quantization.options import SAMPLES, QuantizeOptions, check_quantize_options

    options = QuantizeOptions(**arguments)
    check_quantize_options(options)  # before the imports take their seconds
    if options.method in SAMPLES:  # only mlx-lm's own bars can count its work
        show_library_bars()
    from harness.quantization.quantize import quantize

    done = quantize(options)
    share = done.bytes_after / done.bytes_before
    print(
        f"{done.output}: {done.bits_per_weight:.2f} bits a weight, "
        f"{done.bytes_before / MIB:.0f} → {done.bytes_after / MIB:.0f} MiB ({100 * share:.0f}%)"
    )
