"""Runs beside the baselines, by the official metrics and by the protocol of the gemma-3-1b-it reference.

    python tests/benchmarks/validation_table.py --data path/to/official RUN [RUN …]

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
from harness.records.run import read_run
from harness.reports.published import PUBLISHED
from harness.tasks.answers import to_item
from harness.tasks.metrics import METRICS, compute

EIGHT = ("lidirus", "rcb", "parus", "muserc", "terra", "russe", "rwsd", "danetqa")
SEVEN = EIGHT[1:]
REFERENCE = next(row for row in PUBLISHED if row.name == "gemma-3-1b-it multitask")


def majority(task: str, metric: str, data: str) -> float:
    """The figure of the train split's most frequent label on the validation split."""
    trained_on = "terra" if task == "lidirus" else task
    labels = Counter(document.row()["label"] for document in cached_split(trained_on, "train", data).documents)
    constant = labels.most_common(1)[0][0]
    split = "test" if task == "lidirus" else "validation"
    items = [to_item(task, document.row(), constant) for document in cached_split(task, split, data).documents]
    return compute(METRICS[task][metric], items)


def row(name: str, figures: dict[str, float]) -> list[str]:
    cells = [f"{100 * value:.1f}" for value in figures.values()]
    return [name, *cells, f"{100 * sum(figures.values()) / len(figures):.1f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data", required=True)
    args = parser.parse_args()
    records = [read_run(directory) for directory in args.runs]
    names = [f"{record.model.name}, {record.backend}" for record in records]

    rows = [row("majority class, validation", {task: majority(task, "rsg", args.data) for task in EIGHT})]
    for published in PUBLISHED:
        if published.split == "test":
            rows.append(row(f"{published.name}, test set", {task: published.task_figure(task) for task in EIGHT}))
    for name, record in zip(names, records, strict=True):
        rows.append(row(name, {task: record.tasks[task].metrics["rsg"].value or 0.0 for task in EIGHT}))
    print("Official metrics × 100\n")
    print(tabulate(rows, headers=["", *EIGHT, "mean of eight"], tablefmt="github", floatfmt=".1f"))

    rows = [
        row("majority class", {task: majority(task, "acc", args.data) for task in SEVEN}),
        row(f"{REFERENCE.name} reference", {task: REFERENCE.task_figure(task) for task in SEVEN}),
    ]
    for name, record in zip(names, records, strict=True):
        figures = {task: record.tasks[task].metrics["acc"].value or 0.0 for task in SEVEN}
        above = sum(figures[task] > REFERENCE.task_figure(task) for task in SEVEN)
        rows.append(row(f"{name} ({above} of 7 above the reference)", figures))
    print("\nAccuracy of single examples × 100, validation\n")
    print(tabulate(rows, headers=["", *SEVEN, "mean of seven"], tablefmt="github", floatfmt=".1f"))


if __name__ == "__main__":
    main()
