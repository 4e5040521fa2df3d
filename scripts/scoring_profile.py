"""Which share of this machine's matrix peak the scoring reaches, and where the rest of the time goes.

    python scripts/scoring_profile.py --data path/to/official [--tasks terra,muserc] [--limit 100] [--dtype bfloat16]

The peak is measured, not read from a data sheet: the best of several products of square matrices. The scoring is timed
in turn with PyTorch's own linear layers and MLPs in the model and with those of `adapters/torch_linear.py`. The work of
the scoring is counted as 2 × parameters of the layers × tokens computed, and 2 × parameters of the vocabulary matrix ×
positions projected; attention's own products, norms and activations count as nothing, so they lower the share.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from adapters.torch_backend import load_torch
from adapters.torch_linear import library_linear
from harness.models.resolve import find_model, provide
from harness.quiet import quiet_libraries
from harness.scoring.encoding import TextEncoder, encode_pairs
from harness.scoring.plan import make_plan
from harness.scoring.scorer import Scorer
from harness.tasks.prompts import choose
from harness.tasks.rendering import load_tasks

PEAK_SIZE = 4096
REPETITIONS = 3
KINDS = {
    "aten::mm": "matrix products of the layers and the projection",
    "aten::addmm": "matrix products of the layers and the projection",
    "mkldnn::_linear_pointwise": "matrix products of the layers and the projection",  # with an MLP's activation
    "aten::bmm": "attention's matrix products",
    "aten::_softmax": "attention's softmax and masks",
    "aten::where": "attention's softmax and masks",
    "aten::gelu": "activation",
    "aten::copy_": "casts and copies",
    "aten::cat": "casts and copies",
    "aten::exp": "log-softmax of the projection",
    "aten::max": "log-softmax of the projection",
}


def matrix_peak(dtype: torch.dtype) -> float:
    """Best measured floating-point operations a second of a square matrix product."""
    a, b = torch.randn(PEAK_SIZE, PEAK_SIZE).to(dtype), torch.randn(PEAK_SIZE, PEAK_SIZE).to(dtype)
    best = float("inf")
    for _ in range(6):
        started = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - started)
    return 2 * PEAK_SIZE**3 / best


def timed(scorer: Scorer, plan: Any, sequences: Any) -> float:
    started = time.perf_counter()
    scorer.score(plan, sequences)
    return time.perf_counter() - started


def requests_of(tasks: list[str], data: str, limit: int) -> list[tuple[str, str]]:
    """(context, continuation) pairs as lm-eval renders them."""
    pairs = []
    for task in load_tasks(choose(tasks), data=data, split="validation", limit=limit).values():
        task.build_all_requests()
        pairs += [instance.args for instance in task.instances]
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--tasks", default="terra")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    args = parser.parse_args()
    with quiet_libraries(), torch.inference_mode():
        path = provide(find_model("embedded")).path
        backend = load_torch("torch-cpu", path, device="cpu", dtype=args.dtype)
        pairs = requests_of(args.tasks.split(","), str(Path(args.data).resolve()), args.limit)
        encoder = TextEncoder(backend.tokenizer)
        sequences = encode_pairs(encoder, pairs, backend.info.context_length)
        plan = make_plan(sequences, backend.info.batch_tokens)
        Scorer(backend).score(plan, sequences)  # the first touch of the weights reads them from the disk
        peak = matrix_peak(backend.model.dtype)
        own, seconds = float("inf"), float("inf")
        for _ in range(REPETITIONS):
            with library_linear(backend.model):
                own = min(own, timed(Scorer(backend), plan, sequences))
            scorer = Scorer(backend)
            seconds = min(seconds, timed(scorer, plan, sequences))
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            Scorer(backend).score(plan, sequences)
    vocabulary = backend.model.get_output_embeddings().weight.numel()
    layers = backend.info.parameters - vocabulary
    statistics = scorer.statistics
    work = 2 * (layers * statistics.tokens_computed + vocabulary * statistics.positions_projected)
    print(
        f"{args.tasks}: {len(pairs)} requests, {statistics.tokens_computed} tokens computed, "
        f"{statistics.padding} of padding, {statistics.positions_projected} positions projected, "
        f"{statistics.forward_passes} forward passes, {seconds:.2f} s"
    )
    print(f"with PyTorch's own linear layers {own:.2f} s: {own / seconds:.2f} times as long")
    print(f"{args.dtype} matrix peak {peak / 1e9:.0f} GFLOP/s, {torch.get_num_threads()} threads")
    print(f"scoring {work / seconds / 1e9:.0f} GFLOP/s: {100 * work / seconds / peak:.0f}% of the peak\n")
    print(tabulate(shares(profile), headers=["where the time goes", "share"], tablefmt="github"))


def shares(profile: Any) -> list[list[str]]:
    """Share of the time of each kind of operation, largest first."""
    times: Counter[str] = Counter()
    for event in profile.key_averages():
        times[KINDS.get(event.key, "norms, rotary positions, sums and everything else")] += event.self_cpu_time_total
    total = sum(times.values())
    return [[kind, f"{100 * spent / total:.0f}%"] for kind, spent in times.most_common()]


if __name__ == "__main__":
    main()
