"""Tasks in lm-eval's own format over documents in a file: each output type, a group, a tag, filters, repeats."""

from __future__ import annotations

import json
from pathlib import Path

TEXTS = (
    "Ёж ушёл в лес до рассвета.", "Дом стоит у реки, за полем.", "Мы читали книгу вслух.", "Снег растаял к марту.",
    "Она купила хлеб и молоко.", "Поезд опоздал на час.", "Дети спят, в окне темно.", "Кот поймал мышь в саду.",
)  # fmt: skip
CHOICES = (("да", "нет, не так"), ("конечно, это правда", "нет"), ("вода", "огонь", "лёд"))
FUNCTIONS = """
def macro(items):
    from sklearn.metrics import f1_score

    golds, predictions = zip(*items)
    return f1_score(golds, predictions, average="macro")


def louder(doc):
    return (doc["text"] + " ") * 24
"""
COMMON = """
dataset_path: json
dataset_kwargs: {data_files: {test: FILE, train: FILE}}
test_split: test
fewshot_split: train
metadata: {version: 2.0}
"""
TASKS = {
    "own_choice": r"""
tag: own_tag
output_type: multiple_choice
doc_to_text: "Текст: {{text}}\nВерно?"
doc_to_choice: "{{choices}}"
doc_to_target: gold
metric_list:
  - metric: acc
  - metric: acc_norm
  - metric: acc_mutual_info
  - metric: f1
    aggregation: !function own_functions.macro
""",
    "own_shots": r"""
tag: own_tag
output_type: multiple_choice
num_fewshot: 2
doc_to_text: "{{text}}"
doc_to_choice: ["да", "нет"]
doc_to_target: "{{gold % 2}}"
gen_prefix: "Ответ:"
metric_list: [{metric: acc}, {metric: mcc}]
""",
    "own_last": r"""
output_type: loglikelihood
doc_to_text: "{{text}}"
doc_to_target: " {{choices[0]}}"
metric_list: [{metric: perplexity}, {metric: acc}]
""",
    "own_text": r"""
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: !function own_functions.louder
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
""",
    "own_writing": r"""
output_type: generate_until
doc_to_text: "{{text}}\n"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["о"], max_gen_toks: 8}
filter_list:
  - {name: strict, filter: [{function: take_first}]}
  - {name: lower, filter: [{function: lowercase}, {function: take_first}]}
metric_list: [{metric: exact_match}]
""",
    "own_votes": r"""
output_type: generate_until
repeats: 3
doc_to_text: "{{text}}\n"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["\n"], max_gen_toks: 4, do_sample: true, temperature: 1.0}
filter_list:
  - {name: vote, filter: [{function: majority_vote}, {function: take_first}]}
metric_list: [{metric: exact_match}]
""",
}
GROUP = """
group: own_group
task: [own_choice, own_shots]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
"""


def write_lm_eval_tasks(directory: Path) -> Path:
    """Write the tasks and their documents, and return the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    documents = directory / "documents.jsonl"
    rows = []
    for number, text in enumerate(TEXTS):
        choices = CHOICES[number % len(CHOICES)]
        rows.append({"text": text, "choices": choices, "gold": number * 7 % len(choices)})
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    documents.write_text(lines, encoding="utf-8")
    common = COMMON.replace("FILE", str(documents))
    for name, text in TASKS.items():
        (directory / f"{name}.yaml").write_text(f"task: {name}\n{common}{text}", encoding="utf-8")
    (directory / "own_group.yaml").write_text(GROUP, encoding="utf-8")
    (directory / "own_functions.py").write_text(FUNCTIONS, encoding="utf-8")
    return directory
