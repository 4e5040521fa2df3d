"""What the task files name with `!function`: data, few-shot examples, answers, figures.

Works in `rsg-harness run` and under plain `lm_eval run --include_path task_configs`, which passes settings with
`--metadata '{"data": "path/to/official"}'` or takes the directory from the environment variable RSG_DATA.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Sequence
from typing import Any

from lm_eval.api.samplers import ContextSampler

from harness.data import cached_split
from harness.data.sampling import draw_shots, fewshot_pool, sample_documents
from harness.evaluation.answers import parse_choice, parse_entity, pick_choice, to_item
from harness.evaluation.metrics import METRICS, Item, compute

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
    """The documents of a task, for lm-eval's `custom_dataset`.

    Args:
        task: short name, from the YAML's `dataset_kwargs`.
        data: mini, hub, hub:DIR or an official directory; default: RSG_DATA, else mini.
        split: train, validation or test (LiDiRus has one file and ignores it).
        limit: this many documents, evenly sampled by the seed.
        num_fewshot: known beforehand in a run of ours; 0 leaves the train split unread.

    Returns:
        {"evaluated": Dataset, "fewshot": list of rows}.
    """
    import datasets

    source = data or os.environ.get("RSG_DATA") or "mini"
    rows = [document.row() for document in cached_split(task, "test" if task == "lidirus" else split, source).documents]
    pool = [] if num_fewshot == 0 else fewshot_pool(task, source)
    if split == "train" and num_fewshot and task != "lidirus":
        shown = [row["idx"] for row in draw_shots(pool, num_fewshot, seed)]
        rows = [row for row in rows if row["idx"] not in shown]
    if limit is not None:
        rows = sample_documents(rows, limit, seed)
    return {"evaluated": datasets.Dataset.from_list(rows), "fewshot": pool}


class FixedShots(ContextSampler):
    """Draws the few-shot examples once, by the seed, with balanced labels, and shows every document the same ones.

    lm-eval's default draws anew for every document, which leaves nothing to share between prompts.
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


def _items(task: str, doc: dict[str, Any], prediction: int | str | None) -> dict[str, Any]:
    item = to_item(task, doc, prediction)
    return dict.fromkeys(METRICS[task], item)


def _by_likelihood(task: str, doc: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    chosen = pick_choice([logprob for logprob, _ in results])
    return _items(task, doc, doc["entities"][chosen] if task == "rucos" else chosen)


def _by_text(task: str, doc: dict[str, Any], results: Sequence[str]) -> dict[str, Any]:
    if task == "rucos":
        return _items(task, doc, parse_entity(results[0], doc["entities"]))
    return _items(task, doc, parse_choice(results[0], generated_choices(task, doc)))


def generated_choices(task: str, doc: dict[str, Any]) -> list[str]:
    """What a generated answer may name, in the order of the labels."""
    if task == "parus":
        return ["1", "2"]
    if task == "rcb":
        return ["да", "нет", "неизвестно"]
    return ["да", "нет"] if task in ("terra", "lidirus") else ["нет", "да"]


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


def _score(task: str, metric: str, items: Sequence[Item]) -> float:
    """A metric over all documents with a known answer; NaN where every answer is hidden."""
    known = [item for item in items if item.gold is not None]
    return compute(METRICS[task][metric], known) if known else float("nan")


# lm-eval calls these without the task's name, so each task has functions of its own:
# likelihood_TASK and generated_TASK for `process_results`, score_TASK_METRIC for `aggregation`.
for _task, _metrics in METRICS.items():
    globals()[f"likelihood_{_task}"] = functools.partial(_by_likelihood, _task)
    globals()[f"generated_{_task}"] = functools.partial(_by_text, _task)
    for _metric in _metrics:
        globals()[f"score_{_task}_{_metric}"] = functools.partial(_score, _task, _metric)
