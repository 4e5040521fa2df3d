"""Prove that the working tree computes the same figures as an older commit, bit for bit.

Runs the same commands in both trees, on one machine, in one thread, in float32, and compares what they write:

    python scripts/same_as_before.py --data path/to/official --baseline DIR

Every piece of work has a directory of its own. The older commit's are made once and kept in --baseline. One thread in
float32 takes tens of minutes on a CPU: --only picks pieces, --limit documents.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

COMMIT = "814bbc6"
REPOSITORY = Path(__file__).resolve().parent.parent

# What a record says of the moment, the machine and the program's version; everything else must be equal.
OF_THE_MOMENT = {
    *("timing", "memory", "date", "machine", "versions", "git_commit", "command", "settings_sha256", "schema_version"),
    *("description", "warnings"),  # texts
    "self_check",  # which the older commit does not make
}

ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "RAYON_NUM_THREADS"), "1"
)
# Python runs a sitecustomize at its start: this one notes the hash of every plan that the command makes.
HOOK = """\
import dataclasses, hashlib, os
import harness, harness.scoring.plan as module
if not harness.__file__.startswith(os.environ["PROOF_TREE"] + os.sep):
    os._exit(70)
make_plan = module.make_plan
def noted(sequences, batch_tokens, *more):
    plan = make_plan(sequences, batch_tokens, *more)
    if batch_tokens == 16:  # the self-check's, which the older commit does not make
        return plan
    digest = hashlib.sha256(repr(dataclasses.astuple(plan)).encode()).hexdigest()
    with open(os.environ["PROOF_PLANS"], "a") as file:
        file.write(f"{plan.sequences} sequences, {plan.tokens_computed} tokens, batch {batch_tokens}: {digest}\\n")
    return plan
module.make_plan = noted
"""

# What is compared, and where it differs first; None where it is identical.
Row = tuple[str, str | None]


@dataclass(frozen=True)
class Piece:
    """Commands to run in both trees, and how to compare the two directories that they fill.

    Attributes:
        commands: arguments of rsg-harness; {out} is the piece's directory, {old} the older commit's tree.
        compare: called with the older tree's directory and the newer one's.
        prepare: called with the older tree and the piece's directory before the commands run.
    """

    commands: list[str]
    compare: Callable[[Path, Path], Iterator[Row]]
    prepare: Callable[[Path, Path], None] = lambda old, out: None


def pieces(data: Path | None, limit: int, mlx_limit: int) -> dict[str, Piece]:
    """Return every piece of the proof by name."""

    def run(arguments: str) -> Piece:
        return Piece([f"run --dtype float32 --execution torch {arguments} --output {{out}}/run"], same_run)

    found = {"weights": Piece(["run --model best --tasks terra --limit 1 --output {out}/run"], same_weights)}
    systems = [(backend, model) for backend in ("torch", "mlx-q4") for model in ("embedded", "best")]
    for backend, model in systems:
        found[f"mini {backend} {model}"] = run(f"--data mini --backend {backend} --model {model}")
    other_prompts = "lidirus=then,rcb=statement,parus=because,muserc=variant,terra=truth,russe=sense,rwsd=refers,"
    other_prompts += "danetqa=according,rucos=gap"
    found |= {
        "mini other prompts": run(f"--model embedded --limit 2 --prompt {other_prompts}"),
        "mini examples": run("--model embedded --limit 2 --num-fewshot 2 --tasks rcb,parus,russe,rwsd"),
        "mini generated": run("--model embedded --limit 2 --tasks rsg_gen"),
        "predict": Piece(
            [
                "predict --model best --dtype float32 --task terra --premise 'Кот спит дома.' --hypothesis 'Кот дома.'",
                "predict --model best --dtype float32 --task parus --premise 'Шёл дождь.' --question effect "
                "--choice1 'Дорога намокла.' --choice2 'Дорогу закрыли.'",
            ],
            same_numbers,
        ),
        "train": Piece(["train --recipe {out}/recipe.yaml --output {out}/checkpoint"], same_training, write_recipe),
        "submit": Piece(
            [
                "run --model best --dtype float32 --split test --data {out}/data --output {out}/run",
                "submit {out}/run --output {out}/archive.zip",
            ],
            same_submission,
            write_test_data,
        ),
        "leaderboard": Piece(["leaderboard --results {out}/results"], same_leaderboard, copy_records),
        "compare": Piece(
            [
                "compare {old}/results/runs/2026-11-24-103618-gemma-3-270m-rsg-torch "
                "{old}/results/runs/2026-11-24-103618-gemma-3-270m-rsg-mlx-q4 --flips 3"
            ],
            same_numbers,
        ),
    }
    for backend, model in systems if data else []:
        documents = limit if backend == "torch" else mlx_limit
        found[f"official {backend} {model}"] = run(
            f"--data '{data}' --limit {documents} --backend {backend} --model {model}"
        )
    return found


# --- what the commands need ----------------------------------------------------------------------------------------


def write_recipe(old: Path, out: Path) -> None:
    """Shorten the bundled recipe to twenty small steps."""
    recipe = yaml.safe_load((old / "task_configs/recipes/gemma-3-270m.yaml").read_text(encoding="utf-8"))
    recipe |= {"dtype": "float32", "steps": 20, "batches_per_step": 2, "batch_tokens": 256, "max_tokens": 256}
    recipe |= {"warmup_steps": 4, "evaluate_every": 10, "evaluate_limit": 8, "save_every": 10}
    (out / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")


def write_test_data(old: Path, out: Path) -> None:
    """Make official test files of the first three documents a task of the mini set, without their labels."""

    def hidden(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: hidden(part) for key, part in value.items() if key != "label"}
        return [hidden(part) for part in value] if isinstance(value, list) else value

    for source in sorted((old / "harness/data/mini").glob("*/*.jsonl")):
        if source.name == "train.jsonl":
            continue
        lines = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()[:3]]
        diagnostic = source.parent.name == "LiDiRus"  # its labels are public
        for line in lines if source.parent.name == "RuCoS" else []:
            for query in line["qas"]:
                del query["answers"]
        target = out / "data" / source.parent.name / (source.name if diagnostic else "test.jsonl")
        target.parent.mkdir(parents=True)
        kept = [line if diagnostic else hidden(line) for line in lines]
        target.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept), encoding="utf-8")


def copy_records(old: Path, out: Path) -> None:
    """Copy the records of the older commit, for both trees to read."""
    for part in ("runs", "latency"):
        shutil.copytree(old / "results" / part, out / "results" / part)


# --- comparing -----------------------------------------------------------------------------------------------------


def same_run(before: Path, after: Path) -> Iterator[Row]:
    yield "samples.jsonl, bytes", different_line(before / "run/samples.jsonl", after / "run/samples.jsonl")
    old, new = (json.loads((path / "run/results.json").read_text(encoding="utf-8")) for path in (before, after))
    yield "results.json: scores, errors, hashes, tokens", different(without_moment(old), without_moment(new))
    if (before / "plans.txt").exists():  # generated answers have no plan
        yield "plans", different_line(before / "plans.txt", after / "plans.txt")


def same_weights(before: Path, after: Path) -> Iterator[Row]:
    """Compare the models that the trees converted and fused, each in its own cache, tensor by tensor."""
    old, new = (
        {
            path.parent.name.partition("-")[0]: tensor_hashes(path)
            for path in sorted((directory.parent / "cache/models").glob("*/model.safetensors"))
        }
        for directory in (before, after)
    )
    for kind in ("gguf", "fused"):
        yield f"{len(old[kind])} tensors ({kind})", different(old[kind], new.get(kind))


def same_training(before: Path, after: Path) -> Iterator[Row]:
    logs = [
        [json.loads(line) for line in (path / "checkpoint/training_log.jsonl").read_text(encoding="utf-8").splitlines()]
        for path in (before, after)
    ]
    yield f"{len(logs[0])} lines of the log", different(*logs)
    for name in ("heads", "adapter_model"):
        old, new = (tensor_hashes(path / f"checkpoint/{name}.safetensors") for path in (before, after))
        yield f"{len(old)} tensors ({name})", different(old, new)
    old, new = (json.loads((path / "checkpoint/rsg_checkpoint.json").read_text()) for path in (before, after))
    yield "rsg_checkpoint.json: prompts, heads", different(without_moment(old), without_moment(new))


def same_submission(before: Path, after: Path) -> Iterator[Row]:
    members = []
    for path in (before, after):
        with zipfile.ZipFile(path / "archive.zip") as archive:
            members.append({name: archive.read(name).decode() for name in archive.namelist()})
    yield f"{len(members[0])} files of the archive, bytes", different(*members)
    yield "their order", different(list(members[0]), list(members[1]))


def same_leaderboard(before: Path, after: Path) -> Iterator[Row]:
    boards = [json.loads((path / "results/leaderboard.json").read_text(encoding="utf-8")) for path in (before, after)]
    yield f"leaderboard.json, {len(boards[0]['rows'])} rows", different(*boards)
    old, new = (numbers((path / "results/leaderboard.md").read_text(encoding="utf-8")) for path in (before, after))
    yield f"leaderboard.md, {len(old)} numbers", different(old, new)


def same_numbers(before: Path, after: Path) -> Iterator[Row]:
    old, new = (numbers((path / "stdout.txt").read_text(encoding="utf-8")) for path in (before, after))
    yield f"{len(old)} numbers printed", different(old, new)


def numbers(text: str) -> list[str]:
    """Return all numbers in a text, but those that measure the moment."""
    return re.findall(r"[−-]?\d+(?:\.\d+)?%?", re.sub(r"\d+ ms\b", "", text))


def different_line(before: Path, after: Path) -> str | None:
    """Return the first line in which two files differ."""
    if not before.exists() or not after.exists():
        return f"{before.name} is missing"
    if before.read_bytes() == after.read_bytes():
        return None
    old, new = (path.read_text(encoding="utf-8").splitlines(keepends=True) for path in (before, after))
    return different(old, new)


def different(old: Any, new: Any, path: str = "") -> str | None:
    """Return where two JSON values differ first, with both values there; None if they are equal."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            if key not in old or key not in new:
                return f"{path}.{key} only {'before' if key in old else 'after'}"
            if found := different(old[key], new[key], f"{path}.{key}"):
                return found
        return None
    if isinstance(old, list) and isinstance(new, list):
        pairs = enumerate(zip_longest(old, new))
        return next((found for number, pair in pairs if (found := different(*pair, f"{path}[{number}]"))), None)
    if old == new and type(old) is type(new):
        return None
    shared = next((n for n, (a, b) in enumerate(zip(str(old), str(new), strict=False)) if a != b), 0)
    start = max(0, shared - 20)
    return f"{path}: {str(old)[start : start + 60]!r} → {str(new)[start : start + 60]!r}"


def without_moment(value: Any) -> Any:
    """Return the value without what no two runs share."""
    if isinstance(value, dict):
        return {key: without_moment(part) for key, part in value.items() if key not in OF_THE_MOMENT}
    return [without_moment(part) for part in value] if isinstance(value, list) else value


def tensor_hashes(path: Path) -> dict[str, str]:
    """Return type, shape and hash of each tensor of a safetensors file."""
    content = memoryview(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(bytes(content[8:start]))
    header.pop("__metadata__", None)
    hashes = {}
    for name, about in sorted(header.items()):
        first, last = about["data_offsets"]
        digest = hashlib.sha256(content[start + first : start + last]).hexdigest()
        hashes[name] = f"{about['dtype']} {about['shape']} {digest}"
    return hashes


# --- running -------------------------------------------------------------------------------------------------------


def machine() -> str:
    """Return what decides the last bits of a float here."""
    cpu = Path("/proc/cpuinfo")
    known = re.findall(r"^(?:model name|flags)\s*: (.*)", cpu.read_text(), re.MULTILINE)[:2] if cpu.exists() else []
    return " ".join([platform.machine(), *known])


def make(name: str, piece: Piece, tree: Path, old: Path, home: Path) -> tuple[Path, float]:
    """Run a piece's commands in a tree, unless it is done; return its directory and the seconds that it took.

    Raises:
        subprocess.CalledProcessError: a command failed; the files stay in NAME.part.
    """
    directory, done = home / name.replace(" ", "-"), {"commands": piece.commands, "machine": machine()}
    finished = directory / "done.json"
    if finished.exists() and (kept := json.loads(finished.read_text())).items() >= done.items():
        return directory, kept["seconds"]
    out = directory.with_suffix(".part")
    for leftover in (directory, out):
        shutil.rmtree(leftover, ignore_errors=True)
    out.mkdir(parents=True)
    (home / "hook").mkdir(exist_ok=True)
    (home / "hook/sitecustomize.py").write_text(HOOK)
    piece.prepare(old, out)
    environment = os.environ | ONE_THREAD | {"PYTHONPATH": f"{tree}{os.pathsep}{home / 'hook'}"}
    environment |= {"RSG_HARNESS_CACHE": str(home / "cache"), "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    environment |= {"PROOF_TREE": str(tree), "PROOF_PLANS": str(out / "plans.txt")}
    started = time.monotonic()
    with (out / "stdout.txt").open("w") as stdout, (out / "stderr.txt").open("w") as stderr:
        for command in piece.commands:
            arguments = [part.format(out=out, old=old) for part in shlex.split(command)]
            subprocess.run(
                [sys.executable, "-m", "harness.cli", *arguments],
                cwd=tree,
                env=environment,
                stdout=stdout,
                stderr=stderr,
                check=True,
            )
    seconds = time.monotonic() - started
    (out / "done.json").write_text(json.dumps(done | {"seconds": seconds}))
    out.rename(directory)
    return directory, seconds


def main() -> int:
    """Compare, print a line for each thing compared; return 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="DIR", help="the official archive's directory; default: mini only")
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="official documents a task (default: 50)")
    parser.add_argument("--mlx-limit", type=int, default=20, metavar="N", help="the same for mlx-q4 (default: 20)")
    parser.add_argument("--only", action="append", metavar="NAME", help="pieces whose name holds NAME; repeatable")
    parser.add_argument("--baseline", type=Path, metavar="DIR", help=f"keeps what {COMMIT} gives; default: temporary")
    parser.add_argument("--baseline-only", action="store_true", help="fill --baseline, compare nothing")
    parser.add_argument(
        "--tree", type=Path, default=REPOSITORY, metavar="DIR", help="the newer tree; default: this one"
    )
    parser.add_argument("--work", type=Path, metavar="DIR", help="the newer tree's outputs; default: temporary")
    parser.add_argument("--resume", action="store_true", help="continue in --work; the tree must not have changed")
    args = parser.parse_args()
    if args.work and args.work.exists() and any(args.work.iterdir()) and not args.resume:
        parser.error(f"{args.work} is not empty: name another --work, or continue with --resume")
    temporary = Path(tempfile.mkdtemp(prefix="same-as-before-"))
    baseline = (args.baseline or temporary / "before").resolve()
    work = (args.work or temporary / "after").resolve()
    old, tree = baseline / "tree", args.tree.resolve()
    if not old.exists():
        subprocess.run(["git", "clone", "-q", str(REPOSITORY), str(old)], check=True)
        subprocess.run(["git", "-C", str(old), "checkout", "-q", COMMIT], check=True)
    chosen = pieces(args.data and args.data.resolve(), args.limit, args.mlx_limit)
    chosen = {n: p for n, p in chosen.items() if not args.only or any(part in n for part in args.only)}
    differences = 0
    for name, piece in chosen.items():
        try:
            before, seconds = make(name, piece, old, old, baseline)
            if args.baseline_only:
                print(f"{name:24} {seconds:5.0f} s", flush=True)
                continue
            after, seconds = make(name, piece, tree, old, work)
            rows = list(piece.compare(before, after))
        except (subprocess.CalledProcessError, OSError, KeyError, ValueError) as error:
            rows = [("the commands", f"failed: {error}")]
        for what, difference in rows:
            differences += difference is not None
            print(f"{name:24} {what:46} {difference or 'identical'}", flush=True)
    if not args.baseline_only:
        print("everything is identical" if not differences else f"{differences} differences; the files are in {work}")
    if not differences:
        shutil.rmtree(temporary)
    return int(differences > 0)


if __name__ == "__main__":
    sys.exit(main())
