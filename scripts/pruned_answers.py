"""Did pruning a vocabulary change answers? Two runs over the same documents, of a model and of its pruned copy.

    python scripts/pruned_answers.py MODEL PRUNED RUN RUN_OF_PRUNED --data DIR

Renders the runs' documents, counts those whose prompts and choices have the same tokens in both vocabularies, and
compares the answers among these and among the others. In float32 the first must be equal; in bfloat16 an answer near a
tie may differ, since batches are put together differently.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tabulate import tabulate
from tokenizers import Tokenizer

from adapters.text import load_tokenizer
from harness.data import cached_split
from harness.models.chat import chat_template
from harness.models.checkpoint import is_checkpoint, read_checkpoint
from harness.models.resolve import find_model, provide
from harness.records.run import read_run, read_samples
from harness.tasks.prompts import choose
from harness.tasks.rendering import load_tasks, render_document


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs=2, metavar="MODEL")
    parser.add_argument("runs", nargs=2, type=Path, metavar="RUN")
    parser.add_argument("--data", required=True)
    args = parser.parse_args()
    paths = [provide(find_model(name)).path for name in args.models]
    before, after = (Tokenizer.from_file(str(path / "tokenizer.json")) for path in paths)
    template = chat_template(load_tokenizer(paths[0]))
    prompts = read_checkpoint(paths[1]).prompts() if is_checkpoint(paths[1]) else None
    chosen = {task.file.task: task for task in choose(["rsg"], defaults=prompts)}
    tasks = load_tasks(list(chosen.values()), data=args.data, split="validation")
    samples = [{(one.task, str(one.idx)): one for one in read_samples(run)} for run in args.runs]
    table = []
    for task in read_run(args.runs[0]).tasks:
        counts = {True: [0, 0], False: [0, 0]}  # same tokens -> documents, changed answers
        for document in cached_split(task, "validation", args.data).documents:
            row = document.row()
            key = (task, str(row["idx"]))
            if key not in samples[0]:
                continue
            requests = render_document(tasks[f"rsg_{task}"], row, template)
            texts = ["".join(request.args) for request in requests]
            same = all(before.encode(text).tokens == after.encode(text).tokens for text in texts)
            counts[same][0] += 1
            counts[same][1] += samples[0][key].prediction != samples[1][key].prediction
        table.append([task, *counts[True], *counts[False]])
    table.append(["all", *(sum(row[place] for row in table) for place in range(1, 5))])
    print(
        tabulate(
            table,
            headers=["task", "same tokens", "answers changed", "other tokens", "answers changed"],
        )
    )


if __name__ == "__main__":
    main()
