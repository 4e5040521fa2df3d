"""Measure text generation: one dialogue, a batch, the first token, and the bound that memory sets.

    python scripts/generation_speed.py [--model best] [--backend torch] [--dtype float32] [--against-transformers]

A token of one dialogue needs every weight once, so the bound is the bandwidth of the memory, measured here by a sum
with the same threads, over the size of the weights in the type of the computation. The first token needs the prompt,
so its time is compared with that of the same tokens as a scoring pass. With --against-transformers plain transformers
generates in turn with the backend, from the same weights in the same type. All figures are the best of the repetitions.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from tabulate import tabulate

from adapters.base import Backend, Sampling
from harness.data.corpus import task_texts
from harness.models.open import open_model
from harness.models.options import ModelOptions
from harness.quiet import quiet_libraries

BANDWIDTH_BYTES = 1 << 30
Generate = Callable[[Sequence[Sequence[int]], int], list[int]]  # prompts, new tokens -> tokens made for each


def best(action: Callable[[], Any], repeat: int) -> float:
    """Seconds of the fastest of some runs."""
    seconds = []
    for _ in range(repeat):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def bandwidth(repeat: int) -> float:
    """Bytes a second that all threads together read."""
    numbers = torch.ones(BANDWIDTH_BYTES // 4)
    return BANDWIDTH_BYTES / best(numbers.max, max(repeat, 5))


def prompts(tokenizer: Any, count: int, tokens: int) -> list[list[int]]:
    """Return different prompts of Russian text, each of so many tokens."""
    text = "\n".join(text for texts in task_texts("mini").values() for text in texts)
    start = tokenizer("").input_ids
    ids = tokenizer(text, add_special_tokens=False).input_ids
    size = tokens - len(start)
    if len(ids) < count * size:
        ids = ids * (count * size // len(ids) + 1)
    return [[*start, *ids[number * size : (number + 1) * size]] for number in range(count)]


def ours(backend: Backend, sampling: dict[str, Any]) -> Generate:
    def generate(rows: Sequence[Sequence[int]], tokens: int) -> list[int]:
        texts = backend.generate(rows, Sampling(tokens, **sampling), on_text=lambda row, text: None)
        return [min(tokens, len(backend.tokenizer(text, add_special_tokens=False).input_ids)) for text in texts]

    return generate


def plain(model_dir: Any, dtype: str) -> Generate:
    """Return transformers' own generation, as its documentation shows it."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype).eval()

    def generate(rows: Sequence[Sequence[int]], tokens: int) -> list[int]:
        ids = torch.tensor([list(row) for row in rows])
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, pad_token_id=0
        )
        return [made.shape[1] - ids.shape[1]] * len(rows)

    return generate


def measure(
    makers: dict[str, Generate], rows: list[list[int]], tokens: int, repeat: int
) -> dict[str, dict[str, float]]:
    """Return for each maker the seconds to the first token, and the tokens a second after it, all rows together."""
    found: dict[str, dict[str, list[float]]] = {name: {"first": [], "whole": []} for name in makers}
    made: dict[str, int] = {}
    for _ in range(repeat):
        for name, generate in makers.items():
            for kind, count in (("first", 1), ("whole", tokens)):
                started = time.perf_counter()
                lengths = generate(rows, count)
                found[name][kind].append(time.perf_counter() - started)
                made[name] = sum(lengths) - len(rows)
    return {
        name: {
            "first": min(seconds["first"]),
            "rate": made[name] / (min(seconds["whole"]) - min(seconds["first"])),
        }
        for name, seconds in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--prompt-tokens", default="65,256,1024")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16, help="prompts of a batch; 0: no batch")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--against-transformers", action="store_true")
    args = parser.parse_args()
    quiet_libraries()
    opened = open_model(ModelOptions(args.model, args.backend, dtype=args.dtype))
    backend, info = opened.backend, opened.backend.info
    lengths = [int(length) for length in args.prompt_tokens.split(",")]
    sampling = {"temperature": args.temperature, "top_p": args.top_p}
    started = time.perf_counter()
    backend.generate(prompts(opened.tokenizer, 1, 8), Sampling(2))
    print(f"{opened.name}, {info.name}, {info.dtype}, {torch.get_num_threads()} threads; "
          f"ready after the first call's {time.perf_counter() - started:.2f} s")  # fmt: skip
    makers = {info.name: ours(backend, sampling)}
    if args.against_transformers:
        makers["transformers"] = plain(opened.local.path, info.dtype)
    table = []
    for count, length in [*((1, length) for length in lengths), *([(args.batch, lengths[0])] if args.batch else [])]:
        rows = prompts(opened.tokenizer, count, length)
        read = best(partial(backend.hidden_states, rows, [[len(row) - 1] for row in rows]), args.repeat)
        for name, figures in measure(makers, rows, args.new_tokens, args.repeat).items():
            first = 1000 * figures["first"]
            table.append([name, count, length, f"{first:.0f}", f"{figures['first'] / read:.2f}", figures["rate"]])
    headers = ["", "prompts", "tokens each", "first token, ms", "times a scoring pass", "new tokens/s"]
    print(tabulate(table, headers, floatfmt=".1f"))
    if info.device == "cpu":
        speed = bandwidth(args.repeat)
        size = info.parameters * (4 if info.dtype == "float32" else 2)
        bound = speed / size
        print(
            f"memory {speed / 1e9:.1f} GB/s, weights {size / 1e6:.0f} MB: at most {bound:.1f} tokens/s for one dialogue"
        )
        print(f"reached: {table[0][-1] / bound:.0%}")


if __name__ == "__main__":
    main()
