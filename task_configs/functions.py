"""The functions that task files name with `!function`: data, few-shot examples, answers, metrics.

They work in `rsg-harness run` and under plain `lm_eval run --include_path task_configs`, which passes settings with
`--metadata '{"data": "path/to/official"}'` or takes the directory from the environment variable RSG_DATA.

lm-eval does not tell these functions which task they work for, so every document carries its task's name, and so does
every item that the metrics read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

from lm_eval.api.samplers import ContextSampler

from harness.data import cached_split
from harness.data.sampling import draw_shots, fewshot_pool, sample_documents, without_documents
from harness.tasks import get_task
from harness.tasks.answers import parse_choice, parse_entity, pick_choice
from harness.tasks.metrics import Item, compute
from harness.tasks.rendering import PLACEHOLDER

FEWSHOT_SEED = 1234  # lm-eval's own default


def load_dataset(
    task: str,
    data: str | None = None,
    split: str = "validation",
    limit: int | None = None,
    seed: int = FEWSHOT_SEED,
    num_fewshot: int | None = None,
    **_: Any,
) -> dict[str, Any]:
    """Load a task's documents, for lm-eval's `custom_dataset`.

    Args:
        task: The task's name, from the YAML's `dataset_kwargs`.
        data: mini, hub, hub:DIR or an official directory; default: RSG_DATA, else mini.
        split: train, validation or test; a test set has one split, which validation reads too.
        limit: This many documents, evenly sampled by the seed.
        seed: Of the sample and of the few-shot examples.
        num_fewshot: Known beforehand in a run of ours; 0 leaves the train split unread.

    Returns:
        {"evaluated": Dataset, "fewshot": list of rows}.
    """
    import datasets

    if data == PLACEHOLDER:
        row = get_task(task).placeholder()
        return {"evaluated": datasets.Dataset.from_list([row]), "fewshot": [row]}
    source = data or os.environ.get("RSG_DATA") or "mini"
    found = cached_split(task, get_task(task).split(split), source)
    rows = [document.row() for document in found.documents]
    pool = [] if num_fewshot == 0 else fewshot_pool(task, source)
    if found.split == "train" and num_fewshot:
        rows = without_documents(task, rows, draw_shots(pool, num_fewshot, seed))
    else:  # a document is never its own solved example
        pool = without_documents(task, pool, rows)
    if limit is not None:
        rows = sample_documents(rows, limit, seed)
    return {"evaluated": datasets.Dataset.from_list([{"task": task, **row} for row in rows]), "fewshot": pool}


class FixedShots(ContextSampler):
    """Draws the few-shot examples once, by the seed, with balanced labels, and shows every document the same ones.

    lm-eval's default draws new ones for every document, which leaves nothing to share between prompts.
    """

    def set_rnd(self, rnd: int | None) -> FixedShots:
        self.seed = rnd
        self._shots: dict[int, list[dict[str, Any]]] = {}
        return self

    def __init__(self, df: Iterable[dict[str, Any]] | None = None, *, rnd: int | None = None, **_: Any) -> None:
        super().__init__(list(df or []))
        self.set_rnd(rnd)

    def sample(self, n: int, eval_doc: Any = None, df: Any = None, **_: Any) -> list[dict[str, Any]]:
        if n not in self._shots:
            self._shots[n] = draw_shots(self.df, n, FEWSHOT_SEED if self.seed is None else self.seed)
        return self._shots[n]


def by_likelihood(doc: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, Item]:
    """Turn the choices' log-probabilities into an item for every metric, for lm-eval's `process_results`."""
    chosen = pick_choice([logprob for logprob, _ in results])
    return _items(doc, get_task(doc["task"]).prediction(doc, chosen))


def by_text(doc: dict[str, Any], results: Sequence[str]) -> dict[str, Item]:
    """Turn a generated answer into an item for every metric, for lm-eval's `process_results`."""
    task = get_task(doc["task"])
    read = parse_entity if task.choices else parse_choice
    return _items(doc, read(results[0], doc[task.choices] if task.choices else task.generated))


def _items(doc: dict[str, Any], prediction: int | str | None) -> dict[str, Item]:
    task = get_task(doc["task"])
    return dict.fromkeys(task.metrics, task.item(doc, prediction))


def rucos_queries(doc: dict[str, Any]) -> list[str]:
    """The query with each entity filled in."""
    return [doc["query"].replace("@placeholder", entity) for entity in doc["entities"]]


def rucos_entities(doc: dict[str, Any]) -> list[str]:
    return list(doc["entities"])


def rucos_passage(doc: dict[str, Any]) -> str:
    """The passage without its marks: the headlines after @highlight stand on lines of their own."""
    lines = doc["passage"].replace("@header", "\n").replace("@highlight", "\n").splitlines()
    return "\n".join(line.strip() for line in lines if line.strip())


def rucos_gap(doc: dict[str, Any]) -> str:
    """The passage and the query with a gap."""
    return f"{rucos_passage(doc)}\nПредложение с пропуском: {doc['query'].replace('@placeholder', '___')}\n"


def rucos_instruction(doc: dict[str, Any]) -> str:
    return (
        f"{rucos_passage(doc)}\nКакое имя или название из текста пропущено в следующем предложении? "
        f"Напишите только его.\n{doc['query'].replace('@placeholder', '___')}\n"
    )


def rucos_target(doc: dict[str, Any]) -> int:
    """Index of the first right entity; 0 where the answer is hidden."""
    return next((index for index, entity in enumerate(doc["entities"]) if entity in doc["answers"]), 0)


# One function for each metric's name, for lm-eval's `aggregation`.


def rsg(items: Sequence[Item]) -> float:
    return _compute("rsg", items)


def acc(items: Sequence[Item]) -> float:
    return _compute("acc", items)


def macro_f1(items: Sequence[Item]) -> float:
    return _compute("macro_f1", items)


def f1a(items: Sequence[Item]) -> float:
    return _compute("f1a", items)


def em(items: Sequence[Item]) -> float:
    return _compute("em", items)


def f1(items: Sequence[Item]) -> float:
    return _compute("f1", items)


def mcc(items: Sequence[Item]) -> float:
    return _compute("mcc", items)


def mcc_knowledge(items: Sequence[Item]) -> float:
    return _compute("mcc_knowledge", items)


def mcc_lexical_semantics(items: Sequence[Item]) -> float:
    return _compute("mcc_lexical_semantics", items)


def mcc_logic(items: Sequence[Item]) -> float:
    return _compute("mcc_logic", items)


def mcc_predicate_argument_structure(items: Sequence[Item]) -> float:
    return _compute("mcc_predicate_argument_structure", items)


def _compute(metric: str, items: Sequence[Item]) -> float:
    """Compute a metric over all documents with a known answer; NaN where every answer is hidden."""
    known = [item for item in items if item.gold is not None]
    return compute(get_task(known[0].task).metrics[metric], known) if known else float("nan")
