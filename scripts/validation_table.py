"""Runs beside the baselines, by the official metrics and by the protocol of the gemma-3-1b-it reference.

    python scripts/validation_table.py --data path/to/official RUN [RUN …]

The reference counts single examples everywhere (accuracy; for MuSeRC of answers). LiDiRus is left out there, because
the reference trained on it, and RuCoS, of which only whole sets compare. The majority rows answer every validation
document with the most frequent label of the train split (LiDiRus: of TERRa's).
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from tabulate import tabulate

from harness.data import cached_split
from harness.records.run import read_run, read_samples
from harness.reports.published import published
from harness.tasks import get_task, trainable_tasks
from harness.tasks.metrics import compute

EIGHT = ("lidirus", *(name for name in trainable_tasks() if name != "rucos"))
SEVEN = EIGHT[1:]
REFERENCE = next(row for row in published() if row.name == "gemma-3-1b-it multitask")


def majority(task: str, metric: str, data: str) -> float:
    """Return the score of the train split's most frequent label on the validation split."""
    asked = get_task(task)
    labels = Counter(document.row()["label"] for document in cached_split(asked.head_owner, "train", data).documents)
    constant = labels.most_common(1)[0][0]
    items = [asked.item(document.row(), constant) for document in cached_split(task, "validation", data).documents]
    return compute(asked.metrics[metric], items)


def row(name: str, scores: dict[str, float]) -> list[str]:
    cells = [f"{100 * value:.1f}" for value in scores.values()]
    return [name, *cells, f"{100 * sum(scores.values()) / len(scores):.1f}"]


def answers(directory: Path) -> list[list[str]]:
    """Return, for each task and right label, how often each label was answered."""
    counts: dict[str, dict[str, Counter[str]]] = {}
    for sample in read_samples(directory):
        if sample.task in EIGHT and get_task(sample.task).labels:
            counts.setdefault(sample.task, {}).setdefault(str(sample.gold), Counter())[str(sample.prediction)] += 1
    return [
        [task, gold, ", ".join(f"{label} {given[label]}" for label in get_task(task).labels)]
        for task, by_gold in counts.items()
        for gold, given in sorted(by_gold.items())
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data", required=True)
    args = parser.parse_args()
    records = [read_run(directory) for directory in args.runs]
    names = [f"{record.model.name}, {record.backend}" for record in records]

    rows = [row("majority class, validation", {task: majority(task, "rsg", args.data) for task in EIGHT})]
    for known in published():
        if known.split == "test":
            rows.append(row(f"{known.name}, test set", {task: known.task_score(task) for task in EIGHT}))
    for name, record in zip(names, records, strict=True):
        rows.append(row(name, {task: record.tasks[task].metrics["rsg"].value or 0.0 for task in EIGHT}))
    print("Official metrics × 100\n")
    print(tabulate(rows, headers=["", *EIGHT, "mean of eight"], tablefmt="github", floatfmt=".1f"))

    rows = [
        row("majority class", {task: majority(task, "acc", args.data) for task in SEVEN}),
        row(f"{REFERENCE.name} reference", {task: REFERENCE.task_score(task) for task in SEVEN}),
    ]
    for name, record in zip(names, records, strict=True):
        scores = {task: record.tasks[task].metrics["acc"].value or 0.0 for task in SEVEN}
        above = sum(scores[task] > REFERENCE.task_score(task) for task in SEVEN)
        rows.append(row(f"{name} ({above} of 7 above the reference)", scores))
    for directory, name in zip(args.runs, names, strict=True):
        print(f"\nAnswers of {name}\n")
        print(tabulate(answers(directory), headers=["task", "gold", "answered"], tablefmt="github"))

    print("\nAccuracy of single examples × 100, validation\n")
    print(tabulate(rows, headers=["", *SEVEN, "mean of seven"], tablefmt="github", floatfmt=".1f"))


if __name__ == "__main__":
    main()
