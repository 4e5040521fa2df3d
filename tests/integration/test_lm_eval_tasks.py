"""Tasks in lm-eval's own format by the real command: run, resume, compare, refuse."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.records.run import read_run, read_samples
from harness.tasks import include, registry
from harness.tasks.foreign import load_foreign_tasks
from tests.integration.command import Command
from tests.lm_eval_tasks import CHOICES, TASKS, TEXTS, write_lm_eval_tasks

REFUSED = {
    "own_picture": 'output_type: generate_until\ndoc_to_image: picture\ndoc_to_text: "?"\ndoc_to_target: a\n',
    "own_code": 'output_type: generate_until\nunsafe_code: true\ndoc_to_text: "?"\ndoc_to_target: a\n',
    "own_beams": "output_type: generate_until\ngeneration_kwargs: {num_beams: 10}\n"
    'doc_to_text: "?"\ndoc_to_target: a\n',
    "own_missing": "dataset_path: json\ndataset_kwargs: {data_files: {test: none.jsonl}}\ntest_split: test\n"
    'output_type: multiple_choice\ndoc_to_text: "?"\ndoc_to_choice: [a, b]\ndoc_to_target: 0\n',
}


# A group that is written out within a group.
INLINE = """
group: own_inline
task:
  - group: inner
    task: [{task: own_hidden, output_type: generate_until, unsafe_code: true, doc_to_text: "?", doc_to_target: a}]
"""
OTHER = """
group: own_other
task: [{task: own_choice, num_fewshot: 1}]
"""


@pytest.fixture
def own_tasks(tmp_path: Path, index: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(registry, "_directories", [])
    shutil.copytree(index, Path(environment["RSG_HARNESS_CACHE"]) / "lm-eval")
    directory = write_lm_eval_tasks(tmp_path / "own")
    for name, text in REFUSED.items():
        (directory / f"{name}.yaml").write_text(f"task: {name}\n{text}", encoding="utf-8")
    choice = (directory / "own_choice.yaml").read_text(encoding="utf-8")
    many = choice.replace("task: own_choice", "task: own_many").replace("tag: own_tag", "num_fewshot: 9")
    (directory / "own_many.yaml").write_text(many, encoding="utf-8")
    (directory / "own_inline.yaml").write_text(INLINE, encoding="utf-8")
    (directory / "own_other.yaml").write_text(OTHER, encoding="utf-8")
    return directory


def test_a_run_of_all_kinds(
    own_tasks: Path, tiny_model: Path, rsg_harness: Command, environment: dict[str, str], tmp_path: Path
) -> None:
    asked = ("run", "--include-path", own_tasks, "--model", tiny_model, "--dtype", "float32")
    tasks = ",".join(["own_group", *(name for name in TASKS if name not in ("own_choice", "own_shots")), "terra"])
    done = rsg_harness(*asked, "--tasks", tasks, "--limit", 6, "--output", "run")
    assert done.returncode == 0, done.stderr
    for shown in ("own_group (group)", "word_perplexity", "exact_match,lower", "terra", "mean of these 1 tasks"):
        assert shown in done.stdout
    record = read_run(tmp_path / "run")
    assert set(record.tasks) == {"terra"}
    assert set(record.foreign) == set(TASKS)
    assert all(task.documents == 6 for task in record.foreign.values())
    assert record.foreign["own_shots"].num_fewshot == 2
    assert record.foreign["own_choice"].main == "acc"
    parts = [record.foreign[name].metrics["acc"] for name in ("own_choice", "own_shots")]
    group = record.groups["own_group"].metrics["acc"]
    assert group.value == pytest.approx(sum(part.value for part in parts) / 2)
    assert group.stderr == pytest.approx(sum(part.stderr**2 for part in parts) ** 0.5 / 2)
    samples = {task: [one for one in read_samples(tmp_path / "run") if one.task == task] for task in record.foreign}
    for name, task in record.foreign.items():
        assert len({sample.document for sample in samples[name]}) == 6
        for metric, found in task.metrics.items():
            if found.aggregation == "mean":
                values = [sample.values[metric] for sample in samples[name]]
                assert found.value == pytest.approx(sum(values) / 6), (name, metric)
    # lm-eval's mutual information scores each choice once more, without its context.
    documents = {text: len(CHOICES[number % len(CHOICES)]) for number, text in enumerate(TEXTS)}
    assert {len(sample.scores) for sample in samples["own_choice"]} <= set(documents.values())
    assert all(sample.prediction < len(sample.scores) for sample in samples["own_choice"])
    # The three answers of a document are sampled one by one.
    assert len({sample.text for sample in samples["own_votes"]}) > 1

    again = rsg_harness(*asked, "--tasks", tasks, "--limit", 6, "--output", "run", "--resume")
    assert again.returncode == 0, again.stderr
    other = rsg_harness(
        *asked, "--tasks", "own_choice,own_text", "--limit", 6, "--output", "other", "--batch-tokens", 64
    )
    assert other.returncode == 0, other.stderr
    # In a process of its own, where nothing else has loaded lm-eval's metrics.
    command = [sys.executable, "-m", "harness.cli", "compare", "run", "other"]
    compared = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert compared.returncode == 0, compared.stderr
    assert "0 / 0 of 6" in compared.stdout
    assert "word_perplexity" in compared.stdout
    assert "not compared: terra" in compared.stdout
    fewer = rsg_harness(*asked, "--tasks", "own_choice", "--limit", 5, "--output", "fewer")
    assert fewer.returncode == 0, fewer.stderr
    refused = rsg_harness("compare", "run", "fewer")
    assert refused.returncode == 2
    assert "different documents in own_choice" in refused.stderr


def test_a_tag_and_a_pattern_name_several_tasks(
    own_tasks: Path, tiny_model: Path, rsg_harness: Command, tmp_path: Path
) -> None:
    asked = ("run", "--include-path", own_tasks, "--model", tiny_model, "--limit", 2)
    for name, wanted in (("own_tag", {"own_choice", "own_shots"}), ("own_?hots", {"own_shots"})):
        done = rsg_harness(*asked, "--tasks", name, "--output", tmp_path / name[:6])
        assert done.returncode == 0, done.stderr
        assert set(read_run(tmp_path / name[:6]).foreign) == wanted


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("own_picture", "it asks about pictures"),
        ("own_code", "runs code that the model writes"),
        ("own_missing", "cannot load the task own_missing"),
        ("own_inline", "own_inline::inner::own_hidden cannot be run: it runs code"),
        ("own_beams", "it asks to generate with num_beams: 10"),
        ("own_many", "own_many cannot show 9 solved examples"),
        ("own_group,own_other", "own_group and own_other ask own_choice in two ways"),
        ("hellaswagg", "did you mean hellaswag"),
        ("фывапролдж", "rsg-harness tasks --search"),
    ],
)
def test_what_cannot_be_run_is_refused_before_the_model(
    own_tasks: Path, tiny_model: Path, rsg_harness: Command, tmp_path: Path, name: str, said: str
) -> None:
    done = rsg_harness("run", "--include-path", own_tasks, "--model", tiny_model, "--tasks", name, "--output", "run")
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "loading" not in done.stderr


def test_a_task_that_shuffles_when_it_is_loaded_is_the_same_each_time(own_tasks: Path) -> None:
    choice = (own_tasks / "own_choice.yaml").read_text(encoding="utf-8")
    shuffled = choice.replace("task: own_choice", "task: own_shuffled\nprocess_docs: !function own_shuffling.shuffled")
    (own_tasks / "own_shuffled.yaml").write_text(shuffled, encoding="utf-8")
    (own_tasks / "own_shuffling.py").write_text(
        "import random\ndef shuffled(docs):\n    return docs.map(lambda doc: {'gold': random.randrange(2)},"
        " load_from_cache_file=False)\n",
        encoding="utf-8",
    )
    include(own_tasks)
    hashes = [
        load_foreign_tasks(names).sha256["own_shuffled"]
        for names in (["own_shuffled"], ["own_last", "own_shuffled"], ["own_shuffled"])
    ]
    assert len(set(hashes)) == 1


def test_the_index_is_searched_in_both_alphabets(own_tasks: Path, rsg_harness: Command) -> None:
    for text in ("gsm8k", "гсм8к"):
        done = rsg_harness("tasks", "--search", text)
        assert "gsm8k_cot" in done.stdout, done.stderr
    assert "no task" in rsg_harness("tasks", "--search", "qqqqqq").stdout


@pytest.mark.slow
def test_lm_evals_own_command_runs_on_our_engine(
    own_tasks: Path, tiny_model: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "harness.lm_eval", "run", "--model", "rsg",
            "--model_args", f"pretrained={tiny_model},backend=mlx-q4,execution=torch,group_size=32",
            "--tasks", "own_choice", "--include_path", own_tasks, "--limit", "4", "--output_path", tmp_path / "out",
        ],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (results,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(results.read_text(encoding="utf-8"))
    assert found["n-samples"]["own_choice"] == {"original": len(TEXTS), "effective": 4}
    assert "acc,none" in found["results"]["own_choice"]
