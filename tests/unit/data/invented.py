"""The same invented examples as the official files and as the hub spell them, with every oddity that both have."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

DIRECTORIES = {
    "lidirus": "LiDiRus",
    "rcb": "RCB",
    "parus": "PARus",
    "muserc": "MuSeRC",
    "terra": "TERRa",
    "russe": "RUSSE",
    "rwsd": "RWSD",
    "danetqa": "DaNetQA",
    "rucos": "RuCoS",
}

_STORY = "(1) Варя пекла пирог. (2) Кот спал на окне."
_NEWS = (
    'В Твери открылся театр "Сова". Режиссёр Пётр Лужин приехал из Омска.\n@highlight\nВ Омске ждут гастролей Лужина'
)


def _span(text: str) -> dict[str, int]:
    start = _NEWS.index(text)
    return {"start": start, "end": start + len(text)}


OFFICIAL: dict[str, list[dict[str, Any]]] = {
    "lidirus": [
        {
            "idx": "0",
            "label": "not_entailment",
            "sentence1": "Снег тает.",
            "sentence2": "Снег не тает.",
            "logic": "Negation",
        },
        {
            "idx": "1",
            "label": "entailment",
            "sentence1": "Илья спел и сплясал.",
            "sentence2": "Илья спел.",
            "lexical-semantics": "Factivity",
            "predicate-argument-structure": "Coordination scope",
        },
        {"idx": "2", "label": "entailment", "sentence1": "Идёт дождь.", "sentence2": "На дворе дождь."},
    ],
    "rcb": [
        {
            "premise": "Сторож уверен, что ворота закрыты.",
            "label": "neutral",
            "hypothesis": "Ворота закрыты.",
            "verb": "уверен",
            "negation": "no_negation",
            "genre": "сказка",
            "idx": 0,
        },
        {
            "premise": "Никто не забыл, что завтра ярмарка.",
            "label": "entailment",
            "hypothesis": "Завтра ярмарка.",
            "verb": "забыть",
            "no_negation": "negation",
            "genre": "сказка",
            "idx": 354,
        },
    ],
    "parus": [
        {
            "premise": "Чайник засвистел.",
            "choice1": "Вода вскипела.",
            "choice2": "Чашка разбилась.",
            "question": "cause",
            "label": 0,
            "idx": 0,
        },
        {
            "premise": "Лодка дала течь.",
            "choice1": "Рыбак уснул.",
            "choice2": "Рыбак стал вычерпывать воду.",
            "question": "effect",
            "label": 1,
            "idx": 1,
        },
    ],
    "muserc": [
        {
            "idx": 0,
            "passage": {
                "text": _STORY,
                "questions": [
                    {
                        "question": "Что пекла Варя?",
                        "idx": 0,
                        "answers": [
                            {"idx": 0, "text": "Пирог.", "label": 1},
                            {"idx": 1, "text": "Хлеб.", "label": 0},
                        ],
                    },
                    {"question": "Кто спал?", "idx": 1, "answers": [{"idx": 2, "text": "Кот.", "label": 1}]},
                ],
            },
        },
        {
            "idx": 1,
            "passage": {
                "text": "(1) Поезд опоздал.",
                "questions": [
                    {"question": "Что опоздало?", "idx": 2, "answers": [{"idx": 3, "text": "Трамвай", "label": 0}]}
                ],
            },
        },
    ],
    "terra": [
        {
            "premise": '"""Пироги готовы"", - сказала Варя."',
            "hypothesis": "Варя молчала.",
            "label": "not_entailment",
            "idx": 0,
        },
        {
            "premise": "Мост открыли в мае.",
            "hypothesis": '"Мост ""Северный"" открыт."',
            "label": "entailment",
            "idx": 1,
        },
    ],
    "russe": [
        {
            "idx": 0,
            "word": "ключ",
            "sentence1": "Потерял ключи, беда",
            "sentence2": "В лесу бьёт ключ",
            "start1": 8,
            "end1": 14,
            "start2": 12,
            "end2": 17,
            "label": False,
            "gold_sense1": 1,
            "gold_sense2": 2,
        },
    ],
    "rwsd": [
        {
            "idx": 0,
            "target": {"span1_text": "Мельник", "span2_text": "он устал", "span1_index": 0, "span2_index": 3},
            "label": True,
            "text": "Мельник не пошёл на ярмарку, потому что он устал.",
        },
    ],
    "danetqa": [
        {"question": "Спят ли ежи зимой?", "passage": "Ёж впадает в спячку в октябре.", "label": True, "idx": 0},
        {"question": "Летают ли страусы?", "passage": "Страус — нелетающая птица.", "label": False, "idx": 2},
    ],
    "rucos": [
        {
            "idx": 0,
            "passage": {
                "text": _NEWS,
                "entities": [_span(name) for name in ("Твери", "Пётр Лужин", "Омска", "Омске", "Лужина", "Твери")],
            },
            "qas": [
                {
                    "query": "@placeholder поставит новую пьесу.",
                    "idx": 0,
                    "answers": [{**_span("Пётр Лужин"), "text": "Пётр Лужин"}, {**_span("Лужина"), "text": "Лужина"}],
                }
            ],
        }
    ],
}

# What the hub's parquet files hold for the same examples.
HUB: dict[str, list[dict[str, Any]]] = {
    "lidirus": [
        {
            "sentence1": "Снег тает.",
            "sentence2": "Снег не тает.",
            "knowledge": "",
            "lexical-semantics": "",
            "logic": "Negation",
            "predicate-argument-structure": "",
            "idx": 0,
            "label": 1,
        },
        {
            "sentence1": "Илья спел и сплясал.",
            "sentence2": "Илья спел.",
            "knowledge": "",
            "lexical-semantics": "Factivity",
            "logic": "",
            "predicate-argument-structure": "Coordination scope",
            "idx": 1,
            "label": 0,
        },
        {
            "sentence1": "Идёт дождь.",
            "sentence2": "На дворе дождь.",
            "knowledge": "",
            "lexical-semantics": "",
            "logic": "",
            "predicate-argument-structure": "",
            "idx": 2,
            "label": 0,
        },
    ],
    "rcb": [
        {
            "premise": "Сторож уверен, что ворота закрыты.",
            "hypothesis": "Ворота закрыты.",
            "verb": "уверен",
            "negation": "no_negation",
            "idx": 0,
            "label": 2,
        },
        {
            "premise": "Никто не забыл, что завтра ярмарка.",
            "hypothesis": "Завтра ярмарка.",
            "verb": "забыть",
            "negation": "",
            "idx": 354,
            "label": 0,
        },
    ],
    "parus": copy.deepcopy(OFFICIAL["parus"]),
    "muserc": [
        {
            "paragraph": line["passage"]["text"],
            "question": question["question"],
            "answer": answer["text"],
            "idx": {"paragraph": line["idx"], "question": question["idx"], "answer": answer["idx"]},
            "label": answer["label"],
        }
        for line in OFFICIAL["muserc"]
        for question in line["passage"]["questions"]
        for answer in question["answers"]
    ],
    "terra": [row | {"label": int(row["label"] == "not_entailment")} for row in OFFICIAL["terra"]],
    "russe": [row | {"label": int(row["label"])} for row in OFFICIAL["russe"]],
    "rwsd": [
        {"text": row["text"], **row["target"], "idx": row["idx"], "label": int(row["label"])}
        for row in OFFICIAL["rwsd"]
    ],
    "danetqa": [row | {"label": int(row["label"])} for row in OFFICIAL["danetqa"]],
    "rucos": [
        {
            "passage": _NEWS,
            "query": "@placeholder поставит новую пьесу.",
            # Sorted by alphabet, each with the character that follows it in the passage.
            "entities": ["Лужина", "Омска.", "Омске ", "Пётр Лужин ", "Твери "],
            "answers": ["Лужина", "Пётр Лужин"],
            "idx": {"passage": 0, "query": 0},
        }
    ],
}


def official_lines(task: str) -> list[dict[str, Any]]:
    """A copy to spoil."""
    return copy.deepcopy(OFFICIAL[task])


def write_official(root: Path, task: str, lines: list[Any] | None = None, split: str = "train") -> Path:
    """Writes an official file (strings go in as they are) and returns its path."""
    name = "LiDiRus.jsonl" if task == "lidirus" else {"validation": "val"}.get(split, split) + ".jsonl"
    path = root / DIRECTORIES[task] / name
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = OFFICIAL[task] if lines is None else lines
    text = "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)
    path.write_bytes(text.encode("utf-8"))
    return path


_CLASS_NAMES = {
    "lidirus": ["entailment", "not_entailment"],
    "rcb": ["entailment", "contradiction", "neutral"],
    "parus": ["choice1", "choice2"],
    "terra": ["entailment", "not_entailment"],
}


def write_hub(
    root: Path,
    task: str,
    rows: list[dict[str, Any]] | None = None,
    split: str = "train",
    shard: int = 0,
    names: list[str] | None = None,
) -> Path:
    """Writes a parquet shard as the hub's converter does, the label as a ClassLabel."""
    import datasets

    dataset = datasets.Dataset.from_list(HUB[task] if rows is None else rows)
    if "label" in dataset.features:
        classes = names or _CLASS_NAMES.get(task, ["False", "True"])
        features = dataset.features.copy()
        features["label"] = datasets.ClassLabel(names=classes)
        dataset = dataset.cast(features)
    path = root / task / split / f"{shard:04}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.to_parquet(path)
    return path
