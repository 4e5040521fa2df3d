"""lm-eval's own `hf` model and ours on the same documents: wall time, peak memory, tokens, answers.

    python scripts/against_lm_eval.py --data path/to/official [--cases muserc,terra] [--batch-size 8]

The cases long-choices, rolling and writing are tasks in lm-eval's own format over texts of MuSeRC and DaNetQA: five
choices after one paragraph and question; paragraphs whole; answers written after five solved examples that all
documents share. Every measurement is a process of its own (peak memory is the process's), ours and lm-eval's in turn.
Times are those of `lm_eval.evaluator.evaluate`: rendering, scoring and judging, the loading of the model left out on
both sides.

With `--backend gguf-q8_0` llama.cpp computes ours. Where it is installed, its prompt speed (512 tokens, no planner, as
llama-bench's pp512) is measured in the same run, beside the tokens a second that ours computes in each case.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from adapters.llama_library import library_file

# Whose prompt speed is measured: llama.cpp's fastest kind, then kinds of half and twice its size.
PROMPT_KINDS = ("gguf-q8_0", "gguf-q4_0", "gguf-bf16")
EIGHT = ("lidirus", "rcb", "parus", "muserc", "terra", "russe", "rwsd", "danetqa")


@dataclass(frozen=True)
class Case:
    """What is asked. `tasks`: of Russian SuperGLUE; `task`: one in lm-eval's format, whose documents `rows` makes."""

    tasks: tuple[str, ...] = ()
    num_fewshot: int = 0
    documents: int = 100  # lm-eval's documents: of MuSeRC answers
    task: str = ""
    rows: Callable[[Path], Iterator[dict[str, Any]]] | None = None


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        yield json.loads(line)


def long_choices(data: Path) -> Iterator[dict[str, Any]]:
    """Yield a paragraph and a question with five answers, of this question and the next ones."""
    for line in _lines(data / "MuSeRC" / "val.jsonl"):
        questions = line["passage"]["questions"]
        answers = [answer["text"] for question in questions for answer in question["answers"]]
        first = 0
        for question in questions:
            choices = (answers[first:] + answers)[:5]
            first += len(question["answers"])
            yield {"text": line["passage"]["text"], "question": question["question"], "choices": choices}


def paragraphs(data: Path) -> Iterator[dict[str, Any]]:
    """Yield paragraphs."""
    for line in _lines(data / "MuSeRC" / "val.jsonl"):
        yield {"text": line["passage"]["text"]}


def questions(data: Path) -> Iterator[dict[str, Any]]:
    """Yield passages with a question."""
    for line in _lines(data / "DaNetQA" / "val.jsonl"):
        yield {"text": line["passage"], "question": line["question"], "answer": "да" if line["label"] else "нет"}


COMMON = """
task: case
dataset_path: json
dataset_kwargs: {data_files: {test: DIR/rows.jsonl, train: DIR/rows.jsonl}}
test_split: test
fewshot_split: train
"""
LONG_CHOICES = r"""
output_type: multiple_choice
doc_to_text: "{{text}}\nВопрос: {{question}}\nОтвет:"
doc_to_choice: "{{choices}}"
doc_to_target: 0
metric_list: [{metric: acc}]
"""
ROLLING = """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}]
"""
WRITING = r"""
output_type: generate_until
num_fewshot: 5
fewshot_config: {sampler: first_n}
doc_to_text: "{{text}}\nВопрос: {{question}}\nОтвет:"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\n"], max_gen_toks: 8}
metric_list: [{metric: exact_match}]
"""


CASES = {
    "muserc": Case(("muserc",)),
    "terra": Case(("terra",)),
    "terra-4shot": Case(("terra",), num_fewshot=4),
    "eight": Case(EIGHT),
    "long-choices": Case(documents=60, task=LONG_CHOICES, rows=long_choices),
    "rolling": Case(documents=60, task=ROLLING, rows=paragraphs),
    "writing": Case(num_fewshot=5, documents=40, task=WRITING, rows=questions),
}


def prompt_speed(kind: str, tokens: int = 512, repetitions: int = 8) -> float:
    """Return llama.cpp's tokens of prompt a second with weights of a kind, the best of some repetitions."""
    from harness.models.open import open_model
    from harness.models.options import ModelOptions

    backend = open_model(ModelOptions(model="embedded", backend=kind)).backend
    row, best = list(range(1000, 1000 + tokens)), float("inf")
    for _ in range(repetitions):
        started = time.perf_counter()
        backend.hidden_states([row], [[tokens - 1]])
        best = min(best, time.perf_counter() - started)
    return tokens / best


def measure(
    model: str, case: Case, data: str, dtype: str, batch_size: int, directory: str, backend: str
) -> dict[str, Any]:
    """Run one side of one case in this process; a directory holds its task file."""
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    from harness.models.resolve import find_model, provide
    from harness.quiet import quiet_libraries
    from harness.records.provenance import peak_process_bytes
    from harness.tasks.prompts import TASK_DIR

    with quiet_libraries():
        path = provide(find_model("embedded")).path
        lm: Any
        if model == "ours":
            from harness.evaluation.language_model import PlannedModel
            from harness.models.open import open_model
            from harness.models.options import ModelOptions

            chosen = dtype if backend.startswith("torch") else "auto"
            lm = PlannedModel(open_model(ModelOptions(model="embedded", backend=backend, dtype=chosen)))
        else:
            from lm_eval.models.huggingface import HFLM

            # Whole texts begin with one BOS on both sides.
            bos = False if case.task is ROLLING else None
            lm = HFLM(pretrained=str(path), dtype=dtype, device="cpu", batch_size=batch_size, add_bos_token=bos)
        own = TASK_DIR / "rsg"
        if case.rows:
            own = Path(directory)
            rows = list(itertools.islice(case.rows(Path(data)), case.documents + case.num_fewshot))
            text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows)
            (own / "rows.jsonl").write_text(text, encoding="utf-8")
            (own / "case.yaml").write_text(COMMON.replace("DIR", directory) + case.task, encoding="utf-8")
        manager = TaskManager(include_path=[str(own)], include_defaults=False, metadata={"data": data, "seed": 1234})
        names = ["case"] if case.task else [f"rsg_{task}" for task in case.tasks]
        loaded = manager.load(names)
        for task in loaded["tasks"].values():
            task.set_config("num_fewshot", case.num_fewshot)
            task.set_fewshot_seed(1234)
        started = time.perf_counter()
        results = evaluate(lm=lm, task_dict=loaded, limit=case.documents, bootstrap_iters=0)
        seconds = time.perf_counter() - started
    assert results is not None
    answers = [sample["filtered_resps"] for name in names for sample in results["samples"][name]]
    logprobs = [[float(one[0]) if isinstance(one, list | tuple) else one for one in answer] for answer in answers]
    statistics = vars(lm.scorer.statistics) if model == "ours" else {}
    return {"seconds": seconds, "peak": peak_process_bytes(), "logprobs": logprobs, "statistics": statistics}


def in_process(model: str, name: str, args: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--data", args.data, "--dtype", args.dtype]
    command += ["--batch-size", str(args.batch_size), "--backend", args.backend, "--only", model, "--cases", name]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def row(name: str, ours: dict[str, Any], theirs: dict[str, Any], speed: float | None) -> list[Any]:
    """A line of the table. Answers: the share of documents where both choose or write the same."""
    pairs = list(zip(ours["logprobs"], theirs["logprobs"], strict=True))
    answered = [(a.index(max(a)), b.index(max(b))) if len(a) > 1 else (a, b) for a, b in pairs]
    same = sum(a == b for a, b in answered) / len(pairs)
    is_answer = len(pairs[0][0]) > 1 or isinstance(pairs[0][0][0], str)  # and not a text's log-probability
    numbers = [(x, y) for a, b in pairs for x, y in zip(a, b, strict=True) if not isinstance(x, str)]
    difference = max((abs(x - y) for x, y in numbers), default=0.0)
    statistics = ours["statistics"]
    return [
        name,
        len(pairs),
        f"{theirs['seconds']:.1f}",
        f"{ours['seconds']:.1f}",
        f"{theirs['seconds'] / ours['seconds']:.1f}",
        f"{theirs['peak'] / 2**30:.2f}",
        f"{ours['peak'] / 2**30:.2f}",
        f"{theirs['peak'] / ours['peak']:.1f}",
        statistics["tokens_computed"],
        statistics["tokens_shared"],
        f"{statistics['tokens_computed'] / ours['seconds'] / speed:.1f}" if speed else "",
        f"{100 * same:.0f}%" if is_answer else "–",
        f"{difference:.3f}",
    ]


HEADERS = [
    "case",
    "documents",
    "lm-eval s",
    "ours s",
    "times faster",
    "lm-eval GiB",
    "ours GiB",
    "times smaller",
    "tokens computed",
    "tokens shared",
    "computed a second / llama.cpp's",
    "same answers",
    "largest difference",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the official archive's directory")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--batch-size", type=int, default=8, help="lm-eval's; ours goes by its token budget")
    parser.add_argument("--backend", default="torch-cpu", help="of ours")
    parser.add_argument("--only", choices=["ours", "hf", "llama.cpp"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.data = str(Path(args.data).resolve())
    names = args.cases.split(",")
    if args.only == "llama.cpp":
        print(json.dumps({kind: prompt_speed(kind) for kind in PROMPT_KINDS}))
        return
    if args.only:
        with tempfile.TemporaryDirectory() as directory:
            found = measure(args.only, CASES[names[0]], args.data, args.dtype, args.batch_size, directory, args.backend)
        print(json.dumps(found))
        return
    speeds = in_process("llama.cpp", names[0], args) if library_file() else {}
    rows = []
    for name in names:
        theirs, ours = in_process("hf", name, args), in_process("ours", name, args)
        rows.append(row(name, ours, theirs, speeds.get(PROMPT_KINDS[0])))
        print(f"{name}: {theirs['seconds']:.1f} s, {ours['seconds']:.1f} s", file=sys.stderr, flush=True)
    print(f"gemma-3-270m, {args.dtype}, CPU; lm-eval's hf model with batch size {args.batch_size}; ours {args.backend}")
    if speeds:
        shown = ", ".join(f"{speed:.0f} ({kind})" for kind, speed in speeds.items())
        print(f"llama.cpp's tokens of prompt a second: {shown}; the ratio in the table is to the first")
    print()
    print(tabulate(rows, headers=HEADERS, tablefmt="github"))


if __name__ == "__main__":
    main()
