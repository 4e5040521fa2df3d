"""Small local datasets in the layout that lm-eval's own task files name, so that the tasks run without the hub.

`datasets.load_dataset("Rowan/hellaswag")` reads a directory of that name where there is one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Rows = Sequence[Mapping[str, Any]]

_STORIES = (
    (
        "Кипячение чайника",
        "Хозяйка налила в чайник воды. Она",
        "поставила его на огонь.",
        "спрятала его в шкаф на зиму.",
    ),
    ("Рыбалка", "Дед забросил удочку. Он", "стал ждать поклёвки.", "сел на поезд до Тулы и уснул."),
    ("Игра в шахматы", "Чёрные сдвинули пешку. Белые", "ответили ходом коня.", "сварили суп из капусты."),
    ("Стирка", "Бельё уже высохло. Мама", "сняла его с верёвки.", "закопала его под яблоней."),
)
_QUESTIONS = (
    ("Где зимует ёж?", ("в норе", "на крыше", "в реке", "на луне"), 0),
    ("Чем питается корова?", ("камнями", "травой", "гвоздями", "светом"), 1),
    ("Сколько ног у паука?", ("две", "четыре", "восемь", "сто"), 2),
    ("Что светит ночью?", ("Солнце", "ведро", "окунь", "Луна"), 3),
)
_PAIRS = (
    ("Идёт сильный дождь.", "На улице мокро.", 0),
    ("Кот спит на печи.", "Кот, возможно, серый.", 1),
    ("Магазин открыт весь день.", "Магазин закрыт.", 2),
    ("Поезд пришёл вовремя.", "Поезд не опоздал.", 0),
)


def _hellaswag() -> Rows:
    return [
        {
            "ind": number, "activity_label": title, "ctx_a": context.rpartition(" ")[0],
            "ctx_b": context.rpartition(" ")[2], "ctx": context, "endings": [right, wrong, wrong + " [step]", "всё."],
            "label": "0",
        }
        for number, (title, context, right, wrong) in enumerate(_STORIES)
    ]  # fmt: skip


def _arc() -> Rows:
    return [
        {"id": str(number), "question": question, "choices": {"text": options, "label": list("ABCD")},
         "answerKey": "ABCD"[answer]}
        for number, (question, options, answer) in enumerate(_QUESTIONS)
    ]  # fmt: skip


def _openbookqa() -> Rows:
    return [{**row, "question_stem": row["question"].rstrip("?")} for row in _arc()]


def _piqa() -> Rows:
    return [
        {"goal": title, "sol1": right if number % 2 else wrong, "sol2": wrong if number % 2 else right,
         "label": (number + 1) % 2}
        for number, (title, _, right, wrong) in enumerate(_STORIES)
    ]  # fmt: skip


def _winogrande() -> Rows:
    sentences = ("Кубок не влез в сумку, потому что _ был велик.", "Аня звонила Оле, но _ не брала трубку.")
    options = (("кубок", "мешок"), ("Аня", "Оля"))
    return [
        {"sentence": sentence, "option1": pair[0], "option2": pair[1], "answer": str(number + 1)}
        for number, (sentence, pair) in enumerate(zip(sentences, options, strict=True))
    ]


def _boolq() -> Rows:
    return [
        {"passage": f"{premise} Так было весь день.", "question": hypothesis.rstrip("."), "label": int(label == 0),
         "idx": number}
        for number, (premise, hypothesis, label) in enumerate(_PAIRS)
    ]  # fmt: skip


def _copa() -> Rows:
    return [
        {"premise": "Двор промок.", "choice1": "Шёл дождь.", "choice2": "Пели птицы.", "question": "cause", "label": 0,
         "idx": 0},
        {"premise": "Свет погас.", "choice1": "Все уснули.", "choice2": "Стало темно.", "question": "effect",
         "label": 1, "idx": 1},
    ]  # fmt: skip


def _sciq() -> Rows:
    return [
        {"question": question, "support": f" {question} Об этом пишут в книгах.",
         "correct_answer": options[answer], **{f"distractor{n}": option for n, option in
         enumerate((option for place, option in enumerate(options) if place != answer), 1)}}
        for question, options, answer in _QUESTIONS
    ]  # fmt: skip


def _truthfulqa() -> Rows:
    return [
        {"question": question, "mc1_targets": {"choices": options, "labels": [1, 0, 0, 0]},
         "mc2_targets": {"choices": options, "labels": [1, 1, 0, 0]}}
        for question, options, _ in _QUESTIONS
    ]  # fmt: skip


def _xnli() -> Rows:
    return [{"premise": premise, "hypothesis": hypothesis, "label": label} for premise, hypothesis, label in _PAIRS]


def _belebele() -> Rows:
    return [
        {"flores_passage": f"Спросили однажды в школе. {question} Ответ знали все.", "question": question,
         **{f"mc_answer{n}": option for n, option in enumerate(options, 1)}, "correct_answer_num": str(answer + 1)}
        for question, options, answer in _QUESTIONS
    ]  # fmt: skip


def _mmlu() -> Rows:
    return [{"question": question, "choices": options, "answer": answer} for question, options, answer in _QUESTIONS]


def _xwinograd() -> Rows:
    return [{key: row[key] for key in ("sentence", "option1", "option2", "answer")} for row in _winogrande()]


def _texts() -> Rows:
    return [{"text": f"{context} {right}".rstrip(".")} for _, context, right, _ in _STORIES]


def _pages() -> Rows:
    return [{"page": f" = {title} = \n {context} {right} " * 6} for title, context, right, _ in _STORIES]


def _gsm8k() -> Rows:
    return [
        {"question": f"У Пети {first} яблок, у Маши {second}. Сколько вместе?",
         "answer": f"{first} + {second} = {first + second}\n#### {first + second}"}
        for first, second in ((1, 2), (3, 4), (5, 1), (2, 2), (7, 2), (6, 3), (8, 1))
    ]  # fmt: skip


def _nq_open() -> Rows:
    return [{"question": question.rstrip("?"), "answer": [options[answer]]} for question, options, answer in _QUESTIONS]


def _triviaqa() -> Rows:
    return [{"question": row["question"], "answer": {"value": row["answer"][0], "aliases": row["answer"]}} for row in
            _nq_open()]  # fmt: skip


# Task -> (directory, configuration, splits, rows).
LAYOUTS: Mapping[str, tuple[str, str | None, tuple[str, ...], Rows]] = {
    "hellaswag": ("Rowan/hellaswag", None, ("train", "validation"), _hellaswag()),
    "arc_easy": ("allenai/ai2_arc", "ARC-Easy", ("train", "validation", "test"), _arc()),
    "openbookqa": ("allenai/openbookqa", "main", ("train", "validation", "test"), _openbookqa()),
    "piqa": ("baber/piqa", None, ("train", "validation"), _piqa()),
    "winogrande": ("allenai/winogrande", "winogrande_xl", ("train", "validation"), _winogrande()),
    "boolq": ("aps/super_glue", "boolq", ("train", "validation"), _boolq()),
    "copa": ("aps/super_glue", "copa", ("train", "validation"), _copa()),
    "sciq": ("allenai/sciq", None, ("train", "validation", "test"), _sciq()),
    "truthfulqa_mc2": ("truthfulqa/truthful_qa", "multiple_choice", ("validation",), _truthfulqa()),
    "xnli_ru": ("facebook/xnli", "ru", ("train", "validation"), _xnli()),
    "belebele_rus_Cyrl": ("facebook/belebele", "rus_Cyrl", ("test",), _belebele()),
    "mmlu_anatomy": ("cais/mmlu", "anatomy", ("dev", "test"), _mmlu()),
    "xwinograd_ru": ("Muennighoff/xwinograd", "ru", ("test",), _xwinograd()),
    "lambada_openai": ("EleutherAI/lambada_openai", "default", ("test",), _texts()),
    "wikitext": ("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1", ("train", "validation", "test"), _pages()),
    "gsm8k": ("openai/gsm8k", "main", ("train", "test"), _gsm8k()),
    "nq_open": ("google-research-datasets/nq_open", None, ("train", "validation"), _nq_open()),
    "triviaqa": ("mandarjoshi/trivia_qa", "rc.nocontext", ("train", "validation"), _triviaqa()),
}


def write_layouts(root: Path) -> Path:
    """Write all datasets below a directory, which is then the one to work in, and return it."""
    described: dict[str, dict[str, list[dict[str, str]]]] = {}
    for directory, config, splits, rows in LAYOUTS.values():
        name = config or "default"
        for split in splits:
            path = root / directory / name / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
            described.setdefault(directory, {}).setdefault(name, []).append(
                {"split": split, "path": f"{name}/{split}.jsonl"}
            )
    for directory, configs in described.items():
        listed = [{"config_name": name, "data_files": files} for name, files in configs.items()]
        (root / directory / "README.md").write_text(f"---\nconfigs: {json.dumps(listed)}\n---\n", encoding="utf-8")
    return root
