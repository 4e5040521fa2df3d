"""A task of one's own is one YAML and one Python file: it runs, trains, predicts, and can be asked in the bot."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import yaml

from harness.records.run import read_run, read_samples
from harness.tasks import registry
from tests.integration.command import Command
from tests.integration.training import RECIPE

PYTHON = """
from harness.tasks import Document, InputField, Task, register
from harness.tasks.document import BinaryLabel, Index
from harness.tasks.metrics import accuracy_metrics


class Sentiment(Document):
    text: str
    idx: Index
    label: BinaryLabel


register(
    Task(
        name="sentiment",
        title="Sentiment",
        document=Sentiment,
        fields=(InputField("text", "a sentence"),),
        metrics=accuracy_metrics(),
        official=("acc",),
        labels=("negative", "positive"),
        passage="text",
    )
)
"""
YAML = r"""# Sentiment: is the sentence glad?
task: sentiment
dataset_kwargs: {task: sentiment}
custom_dataset: !function task_configs.functions.load_dataset
validation_split: evaluated
fewshot_config:
  split: fewshot
  sampler: !function task_configs.functions.FixedShots
output_type: multiple_choice
doc_to_target: label
target_delimiter: " "
fewshot_delimiter: "\n\n"
process_results: !function task_configs.functions.by_likelihood
metric_list:
  - metric: rsg
    aggregation: !function task_configs.functions.rsg
    higher_is_better: true
  - metric: acc
    aggregation: !function task_configs.functions.acc
    higher_is_better: true
metadata:
  version: 1
  default_prompt: glad
  prompts:
    glad: &default
      doc_to_text: "{{text}}\nВопрос: радостно ли это?\n"
      doc_to_choice: ["нет", "да"]
      gen_prefix: "Ответ:"
    short:
      doc_to_text: "{{text}} Радостно?"
      doc_to_choice: ["нет", "да"]
<<: *default
"""
GLAD = ("Мы победили!", "Дочь вернулась домой.", "Нам дали отпуск.", "Щенок выздоровел.")
SAD = ("Мы проиграли.", "Сын уехал надолго.", "Отпуск отменили.", "Щенок заболел.")


@pytest.fixture
def own_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The directory of the task, and that of its data."""
    monkeypatch.setattr(registry, "_tasks", dict(registry._tasks))
    monkeypatch.setattr(registry, "_directories", [])
    directory, data = tmp_path / "mine", tmp_path / "data" / "Sentiment"
    directory.mkdir()
    data.mkdir(parents=True)
    (directory / "sentiment.py").write_text(PYTHON, encoding="utf-8")
    (directory / "sentiment.yaml").write_text(YAML, encoding="utf-8")
    labelled = {"positive": GLAD, "negative": SAD}
    rows = [{"text": text, "label": label} for label, texts in labelled.items() for text in texts]
    lines = [json.dumps({"idx": number, **row}, ensure_ascii=False) + "\n" for number, row in enumerate(rows)]
    for name in ("train.jsonl", "val.jsonl"):
        (data / name).write_text("".join(lines), encoding="utf-8")
    return directory, data.parent


def test_it_runs_trains_and_predicts(
    own_task: tuple[Path, Path],
    rsg_harness: Command,
    float32_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory, data = own_task
    include = ("--include-path", directory)

    listed = rsg_harness("tasks", *include)
    assert "glad, short" in listed.stdout, listed.stderr

    asked = ("--tasks", "sentiment,terra", "--data", data, "--limit", "6", "--model", float32_model)
    (data / "TERRa").mkdir()
    (data / "TERRa" / "val.jsonl").write_text(
        '{"idx": 0, "premise": "Идёт снег.", "hypothesis": "Зима.", "label": "entailment"}\n', encoding="utf-8"
    )
    done = rsg_harness("run", *include, *asked, "--prompt", "sentiment=short", "--output", "run")
    assert done.returncode == 0, done.stderr
    record = read_run(tmp_path / "run")
    assert record.tasks["sentiment"].documents == 6
    assert record.tasks["sentiment"].prompt == "short"
    assert record.score is None
    samples = [sample for sample in read_samples(tmp_path / "run") if sample.task == "sentiment"]
    assert {sample.gold for sample in samples} == {"negative", "positive"}
    right = sum(sample.prediction == sample.gold for sample in samples)
    assert record.tasks["sentiment"].score == pytest.approx(right / 6)

    recipe = tmp_path / "mine.yaml"
    settings = {**RECIPE, "tasks": {"sentiment": {}}, "steps": 1, "model": str(float32_model)}
    recipe.write_text(yaml.safe_dump(settings), encoding="utf-8")
    trained = rsg_harness("train", *include, "--recipe", recipe, "--data", data, "--output", "checkpoint")
    assert trained.returncode == 0, trained.stderr

    answer = rsg_harness(
        "predict", *include, "--model", tmp_path / "checkpoint", "--task", "sentiment", "--text", "Мы рады."
    )
    assert answer.returncode == 0, answer.stderr
    assert "positive" in answer.stdout
    assert "да" in answer.stdout

    monkeypatch.setattr("sys.stdin", io.StringIO("/tasks\n10\nМы рады.\n"))
    talked = rsg_harness("bot", "--console", *include, "--model", tmp_path / "checkpoint")
    assert talked.returncode == 0, talked.stderr
    assert "Пришлите поле «text» (a sentence)." in talked.stdout
    assert " % positive" in talked.stdout


def test_a_file_that_cannot_be_loaded_is_one_line(own_task: tuple[Path, Path], rsg_harness: Command) -> None:
    directory, _ = own_task
    (directory / "sentiment.py").write_text("import nothing_of_this_name\n" + PYTHON, encoding="utf-8")
    done = rsg_harness("run", "--include-path", directory, "--tasks", "sentiment")
    assert done.returncode == 2
    assert "sentiment.py cannot be loaded" in done.stderr
    assert "nothing_of_this_name" in done.stderr


def test_a_directory_that_is_not_there_is_one_line(rsg_harness: Command) -> None:
    done = rsg_harness("run", "--include-path", "nowhere", "--tasks", "terra")
    assert done.returncode == 2
    assert "no directory" in done.stderr
