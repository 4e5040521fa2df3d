"""Time a command alone and two of it side by side: how well does rsg-harness share a machine?

    python scripts/side_by_side.py [--job run|train|bot] [--rounds 3] [--settings GOMP_SPINCOUNT=300000 ...]

A setting is an environment variable. GOMP_SPINCOUNT=300000 is the default of GNU OpenMP; the setting that the command
chooses itself is always measured too, as "own". The jobs use the bundled data and all cores. Times are those of whole
processes, start included. `others` is the number of cores that other processes kept busy meanwhile (Linux only): repeat
a measurement where it is not near 0.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from tabulate import tabulate

OWN = "own"
VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
RUN_TASKS = "terra,rcb,danetqa,russe,parus"
BOT_LINES = ("/query Расскажи о зиме.", "/tasks", "5", "Идёт снег.", "Холодно.", "/query Что такое дождь?")
RECIPE = {
    "frozen_layers": 8,
    "lora": {"rank": 16, "alpha": 32},
    "tasks": {"terra": {}, "rcb": {}, "danetqa": {}},
    "steps": 12,
    "batches_per_step": 2,
    "batch_tokens": 512,
    "max_tokens": 512,
    "learning_rate": 2e-4,
    "heads_learning_rate": 2e-4,
    "warmup_steps": 2,
    "evaluate_every": 12,
    "evaluate_limit": 8,
    "save_every": 12,
}


def arguments(job: str, model: str, scratch: Path) -> list[str]:
    """Return the arguments of a job, which writes below `scratch`."""
    if job == "run":
        return ["run", "--model", model, "--tasks", RUN_TASKS, "--output", str(scratch / "out")]
    if job == "bot":
        return ["bot", "--console", "--model", model, "--store", str(scratch / "store.db")]
    recipe = scratch / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"model": model, **RECIPE}), encoding="utf-8")
    return ["train", "--recipe", str(recipe), "--output", str(scratch / "out")]


def seconds_of(job: str, model: str, setting: str, count: int) -> tuple[list[float], float | None]:
    """Start a job `count` times at once; return the seconds of each, and the cores that other processes used."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    if setting != OWN:
        name, _, value = setting.partition("=")
        environment[name] = value
    with tempfile.TemporaryDirectory() as directory:
        processes, logs, ends = [], [], [0.0] * count
        busy, own, started = busy_seconds(), own_seconds(), time.monotonic()
        for number in range(count):
            scratch = Path(directory) / str(number)
            scratch.mkdir()
            (scratch / "lines").write_text("".join(f"{line}\n" for line in BOT_LINES), encoding="utf-8")
            logs.append(scratch / "log")
            with (scratch / "lines").open() as lines, logs[-1].open("w") as log:
                command = [sys.executable, "-m", "harness.cli", *arguments(job, model, scratch)]
                processes.append(subprocess.Popen(command, env=environment, stdin=lines, stdout=log, stderr=log))
        while not all(ends):
            time.sleep(0.05)
            for number, process in enumerate(processes):
                if not ends[number] and process.poll() is not None:
                    ends[number] = time.monotonic() - started
        for process, log_file in zip(processes, logs, strict=True):
            if process.returncode:
                sys.exit(f"{job} failed:\n{log_file.read_text()}")
        others = None if busy is None else (busy_seconds() or 0.0) - busy - (own_seconds() - own)
        return ends, None if others is None else max(0.0, others / max(ends))


def own_seconds() -> float:
    """Return the seconds of computing by this process and the children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def busy_seconds() -> float | None:
    """Return the seconds of computing by all processes since the machine started; None if unknown."""
    try:
        line = Path("/proc/stat").read_text().partition("\n")[0]
    except OSError:
        return None
    user, nice, system = map(int, line.split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", choices=("run", "train", "bot"), default="run")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--settings", nargs="*", default=["GOMP_SPINCOUNT=300000"], metavar="NAME=VALUE")
    args = parser.parse_args()
    settings = [OWN, *args.settings]
    alone: dict[str, list[float]] = {setting: [] for setting in settings}
    beside: dict[str, list[float]] = {setting: [] for setting in settings}
    for number in range(args.rounds):
        for setting in settings if number % 2 == 0 else reversed(settings):  # whatever drifts, drifts for all
            for count, found in ((1, alone), (2, beside)):
                ends, others = seconds_of(args.job, args.model, setting, count)
                found[setting] += ends
                shown = " and ".join(f"{end:.1f} s" for end in ends)
                print(f"{setting}: {shown}; others {'?' if others is None else f'{others:.2f}'}", flush=True)
    rows = []
    for setting in settings:
        one, two = statistics.median(alone[setting]), statistics.median(beside[setting])
        against_own = one / statistics.median(alone[OWN])
        rows.append([setting, f"{one:.1f}", f"{two:.1f}", f"{two / one:.2f}", f"{against_own:.2f}"])
    headers = ["setting", "alone (s)", "each of two (s)", "ratio", "alone / own alone"]
    print(f"\n{args.job}, {args.model}, medians of {args.rounds} rounds\n")
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
