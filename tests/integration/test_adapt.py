"""`rsg-harness adapt`: the models that it writes run and train, a killed one continues, bad input is refused."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from harness.records.adaptation import read_adaptation
from harness.records.run import read_run, read_samples
from tests.integration.command import RSG_HARNESS, Command
from tests.integration.training import write_recipe
from tests.russian_tokenizer import make_russian_gemma


@pytest.fixture(scope="module")
def russian_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_russian_gemma(tmp_path_factory.mktemp("models") / "russian", dtype="float32")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Return a corpus of few different words, so that pruning drops many tokens."""
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(f"Это предложение номер {number}, и оно короткое." for number in range(400)))
    return path


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute with one thread, as the process does whose work is continued here."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_pruned_model_answers_as_before_where_its_tokens_are_kept(
    rsg_harness: Command, russian_model: Path, tmp_path: Path
) -> None:
    done = rsg_harness("adapt", "--model", russian_model, "--corpus", "rsg", "--prune", "--output", "pruned")
    assert done.returncode == 0, done.stderr
    assert re.search(r"rows of the vocabulary +1,\d\d\d +(1,0|9)\d+ +-", done.stdout), done.stdout
    record = read_adaptation(tmp_path / "pruned")
    assert record.rows.kept < record.rows.before
    assert record.held_out.after.tokens_per_word >= record.held_out.before.tokens_per_word
    assert record.held_out.before_training is None
    samples = []
    for number, model in enumerate((russian_model, tmp_path / "pruned")):
        run = rsg_harness(
            "run", "--model", model, "--dtype", "float32", "--tasks", "terra,danetqa", "--split", "train",
            "--output", f"run{number}",
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        samples.append(list(read_samples(tmp_path / f"run{number}")))
    # Train texts are what it was pruned for; the prompts' own words may be in other pieces.
    same = [one.prediction == other.prediction for one, other in zip(*samples, strict=True)]
    assert sum(same) > 0.9 * len(same)


@pytest.mark.slow
def test_an_adapted_model_runs_on_mlx_and_trains(rsg_harness: Command, russian_model: Path, tmp_path: Path) -> None:
    done = rsg_harness(
        "adapt", "--model", russian_model, "--corpus", "rsg", "--prune", "--min-count", "3", "--new-tokens", "40",
        "--row-steps", "3", "--lora-steps", "2", "--output", "adapted",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    held_out = read_adaptation(tmp_path / "adapted").held_out
    assert held_out.before_training is not None
    assert held_out.after.tokens_per_word < held_out.before_training.tokens_per_word + 1e-9
    assert held_out.after.bits_per_character < held_out.before_training.bits_per_character
    assert (tmp_path / "adapted" / "README.md").read_text().count("Gemma Terms of Use") == 1
    scores = []
    for number, settings in enumerate((("torch", "auto"), ("mlx-fp16", "mlx"))):
        backend, execution = settings
        run = rsg_harness(
            "run", "--model", "adapted", "--backend", backend, "--execution", execution, "--dtype", "float32",
            "--tasks", "terra,muserc", "--limit", "4", "--output", f"run{number}",
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        scores.append([list(sample.scores) for sample in read_samples(tmp_path / f"run{number}")])
    assert all(one == pytest.approx(other, abs=0.05) for one, other in zip(*scores, strict=True))
    from mlx_lm import load

    text = "Привет, мир!\n\n日本語"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "adapted")
    assert load(str(tmp_path / "adapted"))[1].encode(text) == tokenizer(text).input_ids
    assert AutoTokenizer.from_pretrained(tmp_path / "adapted")(text).input_ids == tokenizer(text).input_ids
    recipe = write_recipe(tmp_path, russian_model, steps=2, evaluate_every=2, save_every=2)
    trained = rsg_harness("train", "--recipe", recipe, "--model", tmp_path / "adapted", "--output", "trained")
    assert trained.returncode == 0, trained.stderr
    description = json.loads((tmp_path / "trained" / "rsg_checkpoint.json").read_text())
    assert description["base"]["model"] == str(tmp_path / "adapted")


@pytest.mark.slow
def test_a_checkpoint_keeps_its_heads_when_it_is_pruned(
    rsg_harness: Command, russian_model: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, russian_model, steps=2, evaluate_every=2, save_every=2)
    trained = rsg_harness("train", "--recipe", recipe, "--output", "small")
    assert trained.returncode == 0, trained.stderr
    done = rsg_harness("adapt", "--model", "small", "--corpus", "rsg", "--prune", "--output", "pruned")
    assert done.returncode == 0, done.stderr
    assert "Vocabulary pruned" in (tmp_path / "pruned" / "README.md").read_text()
    shared = ("--dtype", "float32", "--tasks", "terra,rcb,parus", "--limit", "6")
    for model in ("small", "pruned"):
        run = rsg_harness("run", "--model", model, *shared, "--output", f"run-{model}")
        assert run.returncode == 0, run.stderr
    before, after = (read_run(tmp_path / f"run-{model}") for model in ("small", "pruned"))
    assert after.tasks["terra"].head == "classification"
    assert (before.model.name, after.model.name) == ("small", "pruned")
    assert after.model.parameters < before.model.parameters
    compared = rsg_harness("compare", "run-small", "run-pruned")
    assert compared.returncode == 0, compared.stderr
    quantised = rsg_harness("quantize", "--model", "pruned", "--group-size", "32", "--output", "q4")
    assert quantised.returncode == 0, quantised.stderr
    run = rsg_harness(
        "run", "--model", "q4", "--backend", "mlx-q4", "--backend-arg", "group_size=32", "--tasks", "terra",
        "--limit", "2", "--output", "run-q4",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_killed_pretraining_continues_with_the_same_numbers(
    rsg_harness: Command, russian_model: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    settings = (
        "adapt", "--model", str(russian_model), "--corpus", "rsg", "--new-tokens", "30", "--row-steps", "30",
        "--lora-steps", "10", "--output",
    )  # fmt: skip
    whole = rsg_harness(*settings, "whole")
    assert whole.returncode == 0, whole.stderr
    killed = subprocess.Popen([RSG_HARNESS, *settings, "killed"], cwd=tmp_path, env=environment, stderr=subprocess.PIPE)
    work = tmp_path / "killed.adapting"
    deadline = time.monotonic() + 120
    while not list(work.glob("state-*")) and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert killed.poll() is None, killed.communicate()[1].decode()
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "killed").exists()
    again = rsg_harness(*settings, "killed")
    assert again.returncode == 2
    assert "--resume" in again.stderr
    other = rsg_harness(*settings, "killed", "--resume", "--prune")
    assert other.returncode == 2
    assert "other settings: prune" in other.stderr
    resumed = rsg_harness(*settings, "killed", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert not work.exists()
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert all((one[name] == two[name]).all() for name in one)


def test_analysis_prints_both_tables_and_writes_nothing(
    rsg_harness: Command, russian_model: Path, corpus: Path, tmp_path: Path
) -> None:
    before = set(tmp_path.iterdir())
    done = rsg_harness("adapt", "--analyse", "--model", russian_model, "--corpus", corpus, "--new-tokens", "5")
    assert done.returncode == 0, done.stderr
    for words in ("danetqa train (mini)", "tokens a word", "pruned and extended", "time to write"):
        assert words in done.stdout
    assert {path.name for path in set(tmp_path.iterdir()) - before} <= {"cache"}


def test_bad_input_is_told_in_a_line(rsg_harness: Command, russian_model: Path, corpus: Path, tmp_path: Path) -> None:
    def refusal(*arguments: object) -> str:
        done = rsg_harness("adapt", "--model", russian_model, *map(str, arguments))
        assert done.returncode == 2, done.stdout
        assert "Traceback" not in done.stderr
        return done.stderr.strip().splitlines()[-1]

    english = tmp_path / "english.txt"
    english.write_text("\n".join(f"This is sentence number {number}." for number in range(100)))
    assert "no corpus named" in refusal("--prune", "--output", "x")
    assert "no --output" in refusal("--prune", "--corpus", corpus)
    assert "nothing to do" in refusal("--corpus", corpus, "--output", "x")
    assert "new tokens" in refusal("--corpus", corpus, "--prune", "--row-steps", "3", "--output", "x")
    assert "new tokens, not 5000" in refusal("--corpus", corpus, "--new-tokens", "5000", "--output", "x")
    assert "exists already" in refusal("--corpus", corpus, "--prune", "--output", tmp_path)
    assert "no adaptation to resume" in refusal(
        "--corpus", corpus, "--new-tokens", "3", "--row-steps", "2", "--output", "x", "--resume"
    )
    warned = rsg_harness("adapt", "--model", russian_model, "--corpus", english, "--prune", "--output", "pruned")
    assert warned.returncode == 0, warned.stderr
    assert "warning: no corpus here is Russian" in warned.stderr
    assert "0% of the letters Cyrillic" in warned.stderr
    assert not (tmp_path / "x").exists()
