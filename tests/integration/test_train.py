"""`rsg-harness train`: kills, processes, bad input, and what the checkpoint then does."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._inductor.config
from safetensors.numpy import load_file

from harness.models.checkpoint import read_checkpoint
from harness.records.run import read_run, read_samples
from tests.integration.command import IN_TWO_PROCESSES, RSG_HARNESS
from tests.integration.training import RECIPE, call, copy_files, losses_of, steps_of, write_recipe
from tests.tiny_models import make_tiny_gemma_with_vision, make_tiny_model

# They share the checkpoint and what is trained.
pytestmark = pytest.mark.xdist_group("train")


def test_a_checkpoint_holds_only_safetensors_json_and_its_card(checkpoint: Path) -> None:
    assert {path.name for path in checkpoint.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "heads.safetensors",
        "rsg_checkpoint.json",
        "tensorboard",
        "training_log.jsonl",
    }
    assert list((checkpoint / "tensorboard").glob("events.out.tfevents.*"))
    assert not checkpoint.with_name("small.training").exists()
    card = (checkpoint / "README.md").read_text(encoding="utf-8")
    assert "Gemma Terms of Use" in card
    assert "| terra | classification |" in card


def test_the_loss_falls(checkpoint: Path) -> None:
    losses = losses_of(checkpoint)
    assert len(losses) == RECIPE["steps"]
    assert sum(losses[-3:]) < sum(losses[:3])


@pytest.mark.parametrize("backend", [("torch",), ("mlx-bf16", "--execution", "mlx"), ("mlx-bf16",)])
def test_a_run_answers_with_the_heads_and_gives_the_figures_of_training(
    checkpoint: Path, shared_environment: dict[str, str], tmp_path: Path, backend: tuple[str, ...]
) -> None:
    """In float32 nothing is rounded, so backends agree with training, task by task. bfloat16 weights come close."""
    output = tmp_path / "run"
    done = call(
        shared_environment, "run", "--model", checkpoint, "--dtype", "float32", "--limit", "4",
        "--tasks", "rcb,parus,muserc,terra,russe,rwsd,danetqa,rucos,lidirus",
        "--seed", "1234", "--output", output, "--backend", *backend,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = read_run(output)
    assert record.tasks["terra"].head == record.tasks["lidirus"].head == "classification"
    assert record.tasks["muserc"].head == "sigmoid"
    assert record.tasks["parus"].head == "likelihood"
    assert record.tasks["rucos"].head == "ranking"
    assert record.tasks["russe"].head == "pair"
    for sample in read_samples(output):
        if sample.task != "parus":  # whose scores are log-probabilities of texts
            assert sum(2.718281828**score for score in sample.scores) == pytest.approx(1, abs=1e-5)
    if backend == ("torch",):
        trained = json.loads((checkpoint / "rsg_checkpoint.json").read_text())["training"]["validation"]["figures"]
        for task, parts in trained.items():
            assert record.tasks[task].score == pytest.approx(parts["rsg"], abs=1e-9), task


def test_mlx_scores_with_the_heads_as_torch_does(
    checkpoint: Path, shared_environment: dict[str, str], tmp_path: Path
) -> None:
    scores = {}
    for backend in (("torch",), ("mlx-q8",), ("mlx-q8", "--execution", "mlx")):
        output = tmp_path / "-".join(backend).replace("--", "")
        done = call(
            shared_environment, "run", "--model", checkpoint, "--dtype", "float32", "--limit", "3",
            "--tasks", "terra,muserc,rucos", "--output", output, "--backend", *backend,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        scores[backend] = [score for sample in read_samples(output) for score in sample.scores]
    torch_q8, mlx_q8 = scores["mlx-q8",], scores["mlx-q8", "--execution", "mlx"]
    assert mlx_q8 == pytest.approx(torch_q8, abs=2e-3)
    assert torch_q8 == pytest.approx(scores["torch",], abs=0.5)
    assert torch_q8 != pytest.approx(scores["torch",], abs=1e-4)


def test_predict_gives_probabilities(checkpoint: Path, shared_environment: dict[str, str]) -> None:
    done = call(
        shared_environment, "predict", "--model", checkpoint, "--task", "terra",
        "--premise", "Кошка спит на диване.", "--hypothesis", "Животное отдыхает.",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "entailment" in done.stdout
    shares = [float(word.rstrip("%")) for word in done.stdout.split() if word.endswith("%")]
    assert sum(shares) == pytest.approx(100, abs=0.11)


def kill_when(process: subprocess.Popen[str], is_time: Callable[[], bool]) -> None:
    """Kill a process as soon as it is time."""
    deadline = time.monotonic() + 180
    while not is_time():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_training_continues_from_a_checkpoint(
    checkpoint: Path, float32_model: Path, shared_environment: dict[str, str], tmp_path: Path
) -> None:
    """One step at a rate of almost nothing: the heads and layers are still those of the checkpoint."""
    recipe = write_recipe(
        tmp_path, float32_model, steps=1, learning_rate=1e-12, heads_learning_rate=1e-12, warmup_steps=0
    )
    output = tmp_path / "further"
    done = call(
        shared_environment, "train", "--recipe", recipe, "--start", checkpoint, "--output", output
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name in ("adapter_model.safetensors", "heads.safetensors"):
        before, after = load_file(checkpoint / name), load_file(output / name)
        assert before.keys() == after.keys()
        for key, tensor in before.items():
            np.testing.assert_allclose(after[key], tensor, atol=1e-5, err_msg=key)
    trained, further = read_checkpoint(checkpoint), read_checkpoint(output)
    assert further.training.start is not None
    assert (further.training.start.name, further.training.start.step) == (trained.name, trained.training.step)
    assert further.training.validation.figures == trained.training.validation.figures


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"frozen_layers": 4}, "layers.3"), ({"lora": {"rank": 2, "alpha": 4}}, "(4, 64)"), ({"lora": None}, "lora")],
)
def test_a_start_whose_layers_are_others_is_refused(
    checkpoint: Path,
    float32_model: Path,
    shared_environment: dict[str, str],
    tmp_path: Path,
    changes: dict[str, Any],
    named: str,
) -> None:
    recipe = write_recipe(tmp_path, float32_model, **changes)
    done = call(shared_environment, "train", "--recipe", recipe, "--start", checkpoint, "--output", tmp_path / "x")
    assert done.returncode == 2
    assert named in done.stderr
    assert "give the recipe the checkpoint's frozen_layers and lora" in done.stderr
    assert not (tmp_path / "x.training").exists()  # nothing to remove or to resume before the next try


@pytest.mark.parametrize("execution", ["torch", "mlx"])
def test_a_model_trained_for_rounded_weights_runs_on_them_as_it_was_trained(
    float32_model: Path, shared_environment: dict[str, str], tmp_path: Path, execution: str
) -> None:
    recipe = write_recipe(tmp_path, float32_model, steps=2)
    trained = tmp_path / "for-q4"
    done = call(
        shared_environment, "train", "--recipe", recipe, "--weights", "mlx-q4", "--output", trained
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    checkpoint = read_checkpoint(trained)
    assert checkpoint.weights == "mlx-q4"
    output = tmp_path / "run"
    done = call(
        shared_environment, "run", "--model", trained, "--execution", execution, "--dtype", "float32", "--limit", "4",
        "--tasks", "rcb,parus,muserc,terra,russe,rwsd,danetqa,rucos", "--seed", "1234", "--output", output,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = read_run(output)
    assert record.backend == "mlx-q4"
    assert record.model.weights == "4-bit, group size 64, LoRA of rank 4 in float32 beside them"
    for task, figures in checkpoint.training.validation.figures.items():
        assert record.tasks[task].score == pytest.approx(figures["rsg"], abs=1e-9), task


@pytest.mark.parametrize("at_step", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_a_killed_training_goes_on_as_if_nothing_had_happened(
    checkpoint: Path, float32_model: Path, shared_environment: dict[str, str], tmp_path: Path, at_step: int
) -> None:
    """SIGKILL after a step, then --resume: the log and the weights are those of the undisturbed run, bit for bit."""
    recipe = write_recipe(tmp_path, float32_model)
    output = tmp_path / "small"
    log = tmp_path / "small.training" / "log.jsonl"
    command = [RSG_HARNESS, "train", "--recipe", str(recipe), "--output", str(output)]
    process = subprocess.Popen(
        command, env=shared_environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    kill_when(process, lambda: log.exists() and log.read_text().count("learning_rate") >= at_step)
    assert not output.exists()
    again = call(shared_environment, *command[1:])
    assert again.returncode == 2
    assert "--resume" in again.stderr
    resumed = call(shared_environment, *command[1:], "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert steps_of(output / "training_log.jsonl") == steps_of(checkpoint / "training_log.jsonl")
    for name in ("adapter_model.safetensors", "heads.safetensors"):
        assert (output / name).read_bytes() == (checkpoint / name).read_bytes(), name


@pytest.mark.slow
def test_two_processes_train_to_the_loss_of_one(
    checkpoint: Path, float32_model: Path, shared_environment: dict[str, str], tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, float32_model)
    output = tmp_path / "small"
    done = subprocess.run(
        [*IN_TWO_PROCESSES, "train", "--recipe", str(recipe), "--output", str(output)],
        env=shared_environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [read_checkpoint(directory).training.processes for directory in (checkpoint, output)] == [1, 2]
    one, two = (steps_of(directory / "training_log.jsonl") for directory in (checkpoint, output))
    assert [entry["step"] for entry in two] == [entry["step"] for entry in one]
    for before, after in zip(one, two, strict=True):
        for key in ("loss", "gradient_norm", "mean"):
            if key in before:
                assert after[key] == pytest.approx(before[key], rel=1e-3), (before["step"], key)


@pytest.mark.slow
def test_without_the_cache_of_the_frozen_layers_the_loss_curve_is_the_same(
    checkpoint: Path, float32_model: Path, shared_environment: dict[str, str], tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, float32_model, frozen_cache_gb=0)
    output = tmp_path / "small"
    done = call(shared_environment, "train", "--recipe", recipe, "--output", output)
    assert done.returncode == 0, done.stderr
    assert "output of the frozen layers" not in done.stderr
    assert losses_of(output) == pytest.approx(losses_of(checkpoint), rel=1e-4)


@pytest.mark.slow
def test_compiled_layers_train_to_the_same_losses(
    float32_model: Path, shared_environment: dict[str, str], tmp_path: Path
) -> None:
    losses = {}
    for name, compiled in (("plain", False), ("compiled", True)):
        # Compiled dropout draws other numbers.
        recipe = write_recipe(tmp_path, float32_model, compile=compiled, lora={"rank": 4, "alpha": 8}, steps=4)
        done = call(shared_environment, "train", "--recipe", recipe, "--output", tmp_path / name)
        assert done.returncode == 0, done.stderr
        losses[name] = losses_of(tmp_path / name)
    assert len(losses["plain"]) == 4
    assert losses["compiled"] == pytest.approx(losses["plain"], rel=1e-4)


@pytest.mark.slow
def test_layers_trained_in_full_make_a_checkpoint_that_runs(
    float32_model: Path, shared_environment: dict[str, str], tmp_path: Path
) -> None:
    changes = {"lora": None, "tasks": {"terra": {}, "russe": {}}, "steps": 4, "frozen_layers": 6}
    recipe = write_recipe(tmp_path, float32_model, **changes)
    output = tmp_path / "full"
    done = call(shared_environment, "train", "--recipe", recipe, "--output", output)
    assert done.returncode == 0, done.stderr
    assert (output / "layers.safetensors").exists()
    run = call(
        shared_environment, "run", "--model", output, "--dtype", "float32", "--limit", "4", "--tasks",
        "terra,russe,rwsd", "--output", tmp_path / "run",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    record = read_run(tmp_path / "run")
    assert record.tasks["rwsd"].head is None
    trained = json.loads((output / "rsg_checkpoint.json").read_text())["training"]["validation"]["figures"]
    for task in ("terra", "russe"):
        assert record.tasks[task].score == pytest.approx(trained[task]["rsg"], abs=1e-9)


def refused(environment: dict[str, str], *arguments: str | Path) -> str:
    """Return the error line of a call that ends with exit code 2."""
    done = call(environment, *arguments)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if "error:" in line]
    return line


def test_bad_recipes_are_refused_before_anything_is_loaded(
    float32_model: Path, shared_environment: dict[str, str], tmp_path: Path
) -> None:
    def train(**changes: Any) -> str:
        recipe = write_recipe(tmp_path, float32_model, **changes)
        return refused(shared_environment, "train", "--recipe", recipe, "--output", tmp_path / "out")

    assert "learning_rate" in train(learning_rat=1)
    assert "the model has 8" in train(frozen_layers=9)
    assert not (tmp_path / "out.training" / "settings.json").exists()  # no run that the corrected recipe would meet
    assert "never trained on" in train(tasks={"lidirus": {}})
    with torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler")}):
        assert "needs a C++ compiler" in train(compile=True)


def test_a_task_without_training_data_is_refused(
    float32_model: Path, shared_environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "data" / "TERRa").mkdir(parents=True)
    for name in ("train.jsonl", "val.jsonl"):
        (tmp_path / "data" / "TERRa" / name).write_text("", encoding="utf-8")
    recipe = write_recipe(tmp_path, float32_model, tasks={"terra": {}})
    line = refused(
        shared_environment, "train", "--recipe", recipe, "--output", tmp_path / "out", "--data", tmp_path / "data"
    )
    assert "terra" in line.lower()


EXPLODING: dict[str, Any] = {
    "tasks": {"terra": {}}, "learning_rate": 1e4, "heads_learning_rate": 1e4, "warmup_steps": 0,
    "schedule": "constant", "evaluate_every": 1, "loss": {"weights": "fixed"},
}  # fmt: skip


@pytest.fixture(scope="module")
def exploded(
    tmp_path_factory: pytest.TempPathFactory, float32_model: Path, shared_environment: dict[str, str]
) -> tuple[Path, str]:
    """The directory of a training that stopped halfway, with its recipe, and what it said."""
    directory = tmp_path_factory.mktemp("exploded")
    recipe = write_recipe(directory, float32_model, **EXPLODING)
    return directory, refused(shared_environment, "train", "--recipe", recipe, "--output", directory / "out")


def test_an_exploding_loss_stops_with_step_and_task_and_keeps_the_best_checkpoint(exploded: tuple[Path, str]) -> None:
    directory, line = exploded
    assert "step" in line
    assert "terra" in line
    assert list((directory / "out.training").glob("best-*/rsg_checkpoint.json"))


def test_resume_refuses_a_changed_recipe_and_says_what_differs(
    exploded: tuple[Path, str], float32_model: Path, shared_environment: dict[str, str], tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, float32_model, **EXPLODING, seed=5)
    line = refused(shared_environment, "train", "--recipe", recipe, "--output", exploded[0] / "out", "--resume")
    assert "recipe.seed (1234, now 5)" in line


def refused_under(program: str, recipe: Path, output: Path, environment: dict[str, str]) -> str:
    """Return what a training says that ends with exit code 2, started by a Python program that limits it."""
    done = subprocess.run(
        [sys.executable, "-c", program, "train", "--recipe", str(recipe), "--output", str(output)],
        env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.slow
def test_a_full_disk_keeps_what_was_saved_before(
    float32_model: Path, shared_environment: dict[str, str], tmp_path: Path
) -> None:
    """RLIMIT_FSIZE stands in for the full disk: no file may grow beyond 40 kB, so no state can be written."""
    recipe = write_recipe(tmp_path, float32_model, tasks={"terra": {}}, frozen_cache_gb=0)
    limit = "import resource, signal, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000)); "
    limit += "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); from harness.cli import main; sys.exit(main(sys.argv[1:]))"
    assert "cannot write" in refused_under(limit, recipe, tmp_path / "out", shared_environment)
    resumed = call(shared_environment, "train", "--recipe", recipe, "--output", tmp_path / "out", "--resume")
    assert resumed.returncode == 0, resumed.stderr


@pytest.mark.slow
def test_a_lack_of_memory_says_which_setting_lowers_it(
    float32_model: Path, shared_environment: dict[str, str], tmp_path: Path
) -> None:
    """RLIMIT_AS leaves 500 MB beyond what the program itself takes; sixteen long paragraphs in one batch take more."""
    recipe = write_recipe(tmp_path, float32_model, tasks={"muserc": {}}, batch_tokens=100_000, evaluate_limit=1)
    limited = """
import resource, sys
import harness.training.train, lm_eval.tasks, peft, tensorboardX
from harness.cli import main
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 500_000_000, -1))
sys.exit(main(sys.argv[1:]))
"""
    errors = refused_under(limited, recipe, tmp_path / "out", shared_environment)
    assert "not enough memory" in errors
    assert "lower batch_tokens (now 100000)" in errors


@pytest.mark.parametrize("name", ["heads.safetensors", "adapter_model.safetensors", "adapter_config.json"])
def test_a_damaged_checkpoint_names_the_file(
    checkpoint: Path, shared_environment: dict[str, str], tmp_path: Path, name: str
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    copy_files(checkpoint, copy)
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    assert name in refused(shared_environment, "run", "--model", copy)


def test_best_is_the_kept_checkpoint_with_the_highest_mean(
    checkpoint: Path, shared_environment: dict[str, str], tmp_path: Path
) -> None:
    for name, mean in (("good", 0.9), ("poor", 0.1)):
        kept = tmp_path / "results" / "checkpoints" / name
        kept.mkdir(parents=True)
        copy_files(checkpoint, kept)
        description = json.loads((kept / "rsg_checkpoint.json").read_text())
        description["training"]["validation"]["mean"] = mean
        description["name"] = name
        (kept / "rsg_checkpoint.json").write_text(json.dumps(description))
    arguments = ("--model", "best", "--tasks", "terra", "--limit", "2", "--output", "out")
    done = call(shared_environment, "run", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert read_run(tmp_path / "out").model.name == "good"


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2", "qwen3", "gemma3 with pictures"])
@pytest.mark.slow
def test_any_architecture_is_trained_run_and_quantised(
    architecture: str, shared_environment: dict[str, str], tmp_path: Path
) -> None:
    """The figures are those of training; the card has the base's licence."""
    pictures = architecture == "gemma3 with pictures"
    base = (
        make_tiny_gemma_with_vision(tmp_path / "base") if pictures else make_tiny_model(architecture, tmp_path / "base")
    )
    if architecture == "qwen3":
        (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n", encoding="utf-8")
    recipe = write_recipe(
        tmp_path, base, frozen_layers=2, lora=None if architecture == "gemma2" else {"rank": 4},
        tasks={"terra": {}, "parus": {"head": "likelihood"}}, steps=2, evaluate_every=2, save_every=2,
    )  # fmt: skip
    trained = call(shared_environment, "train", "--recipe", recipe, "--output", tmp_path / "out")
    assert trained.returncode == 0, trained.stderr
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    expected = {"qwen3": "license: apache-2.0", "gpt2": "name no licence"}
    assert expected.get(architecture, "license: gemma") in card
    shared = ("--dtype", "float32", "--tasks", "terra,parus", "--limit", "4", "--seed", "1234")
    done = call(shared_environment, "run", "--model", tmp_path / "out", *shared, "--output", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    record = read_run(tmp_path / "run")
    figures = read_checkpoint(tmp_path / "out").training.validation.figures
    assert {task: record.tasks[task].score for task in figures} == pytest.approx(
        {task: parts["rsg"] for task, parts in figures.items()}
    )
    quantised = call(
        shared_environment, "quantize", "--model", tmp_path / "out", "--bits", "8", "--group-size", "32",
        "--output", tmp_path / "q8",
    )  # fmt: skip
    if architecture == "gpt2":
        assert quantised.returncode == 2
        assert "mlx-lm" in quantised.stderr
        return
    assert quantised.returncode == 0, quantised.stderr
    done = call(
        shared_environment, "run", "--model", tmp_path / "q8", "--backend-arg", "group_size=32", *shared,
        "--output", tmp_path / "run-q8",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert read_run(tmp_path / "run-q8").tasks["terra"].head == "classification"
