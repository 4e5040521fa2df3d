"""What can be answered without reading: a constant, lengths, negation, shared words, position; and repeated documents.

    python scripts/giveaways.py --source written [--official DIR]

For each task a small decision tree (depth 2, five-fold cross-validation by document) sees one kind of surface feature
of each text; what it reaches above a constant answer is given away by that feature. With --official, documents that
repeat one of any split of the official archive, exactly or nearly, are counted.
"""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.tree import DecisionTreeClassifier
from tabulate import tabulate

from harness.data import cached_split
from harness.errors import UserError
from harness.tasks import RUSSIAN_SUPERGLUE, document_key, get_task

COLUMNS = {
    "lidirus": ("sentence1", "sentence2"),
    "rcb": ("premise", "hypothesis"),
    "parus": ("premise", "choice1", "choice2"),
    "muserc": ("question", "answer"),
    "terra": ("premise", "hypothesis"),
    "russe": ("sentence1", "sentence2"),
    "rwsd": ("text", "span1_text"),
    "danetqa": ("question", "passage"),
    "rucos": ("query",),
}
ENTAILMENT = ("terra", "rcb", "lidirus")
NEGATION = re.compile(r"\b(не|нет|ни|никогда|никто|ничто|ничего|без|нельзя)\b", re.IGNORECASE)


def words(text: str) -> set[str]:
    """Return the first five letters of each word of more than two letters, which undoes most inflection."""
    return {word[:5] for word in re.findall(r"\w{3,}", text.lower())}


def overlap(text: str, others: list[str]) -> float:
    """Return the share of a text's words that stand in the other texts."""
    own = words(text)
    return len(own & set().union(*map(words, others))) / len(own) if own else 0.0


FEATURES: dict[str, Callable[[list[str]], list[float]]] = {
    "length": lambda texts: [float(len(text)) for text in texts],
    "negation": lambda texts: [float(len(NEGATION.findall(text))) for text in texts],
    "shared words": lambda texts: [overlap(text, [o for o in texts if o is not text]) for text in texts],
}


def examples(task: str, source: str) -> tuple[list[list[str]], list[Any], list[str]]:
    """Return the texts, the label and the document of every example; a document's own choices are examples each."""
    texts: list[list[str]] = []
    labels: list[Any] = []
    groups: list[str] = []
    for document in cached_split(task, "train" if source == "written" else "validation", source).documents:
        row = document.row()
        if task == "rucos":
            found = [([row["query"], entity], entity in row["answers"]) for entity in row["entities"]]
        else:
            found = [([row[name] for name in COLUMNS[task]], row["label"])]
        for columns, label in found:
            texts.append(columns)
            labels.append(label)
            groups.append(str(document_key(row)))
    return texts, labels, groups


def repeated(task: str, source: str, official: str) -> int:
    """Return the number of documents that repeat one of the same kind in the official archive."""
    from harness.distillation.deduplicate import KnownDocuments, normal_form

    known = KnownDocuments()
    for related in ENTAILMENT if task in ENTAILMENT else (task,):
        for split in get_task(related).splits:
            with contextlib.suppress(UserError):  # a split that is not on this machine
                for document in cached_split(related, split, official).documents:
                    known.add(normal_form([document.row()[name] for name in COLUMNS[related]]), related)
    rows = [document.row() for document in cached_split(task, "train", source).documents]
    return sum(known.match(normal_form([row[name] for name in COLUMNS[task]])) is not None for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="mini", help="a data source, as --data of rsg-harness run takes it")
    parser.add_argument("--official", metavar="DIR")
    args = parser.parse_args()
    rows = []
    for task in RUSSIAN_SUPERGLUE:
        try:
            texts, labels, groups = examples(task, args.source)
        except UserError:
            continue
        counts = np.unique(np.array([str(label) for label in labels]), return_counts=True)[1]
        row: list[Any] = [task, len(labels), f"{100 * counts.max() / counts.sum():.1f}"]
        for measure in FEATURES.values():
            tree = DecisionTreeClassifier(max_depth=2, random_state=0)
            reached = cross_val_score(
                tree, [measure(found) for found in texts], labels, groups=groups, cv=GroupKFold(5)
            )
            row.append(f"{100 * reached.mean():.1f}")
        if args.official:
            row.append(repeated(task, args.source, args.official))
        rows.append(row)
    print(tabulate(rows, headers=["task", "examples", "constant", *FEATURES, *(["repeated"] if args.official else [])]))


if __name__ == "__main__":
    main()
