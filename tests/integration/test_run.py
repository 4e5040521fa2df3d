"""The real command on a small random model: records, resume after SIGKILL and Ctrl-C, full disk."""

from __future__ import annotations

import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.command import ONE_THREAD, RSG_HARNESS, Command, call_here, heed_interrupts

NINE = ("lidirus", "rcb", "parus", "muserc", "terra", "russe", "rwsd", "danetqa", "rucos")
MANY_UNITS = ("--dtype", "float32", "--batch-tokens", "256")


def results(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "results.json").read_text(encoding="utf-8"))


def samples(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "samples.jsonl").read_text(encoding="utf-8").splitlines()]


def figures(directory: Path) -> dict[str, Any]:
    record = results(directory)
    return {"score": record["score"], "tasks": {name: task["metrics"] for name, task in record["tasks"].items()}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """An undisturbed run over all nine tasks."""
    directory = tmp_path_factory.mktemp("finished")
    arguments = ["run", "--model", tiny_model, "--output", directory / "run", *MANY_UNITS]
    done = call_here(arguments, directory, {**os.environ, **ONE_THREAD})
    assert done.returncode == 0, done.stderr
    return directory / "run"


def test_a_run_over_nine_tasks_writes_a_record_with_the_promised_names(finished: Path) -> None:
    record = results(finished)
    assert record["schema_version"] == 1
    assert tuple(record["tasks"]) == NINE
    assert record["score"] == pytest.approx(sum(task["score"] for task in record["tasks"].values()) / 9)
    for task in record["tasks"].values():
        assert task["documents"] in (16, 24)
        for metric in task["metrics"].values():
            assert metric["value"] is not None
            assert metric["stderr"] >= 0
    assert record["backend"] == "torch"
    assert record["execution"] == "torch"
    assert record["dtype"] == "float32"
    assert record["data"]["source"] == "mini"
    assert record["timing"]["wall_seconds"] > record["timing"]["scoring_seconds"] > 0
    assert record["timing"]["records_per_second"] > 0
    assert record["memory"]["peak_bytes"] >= record["memory"]["single_bytes"] > 10**8
    assert record["tokens"]["computed"] > 0
    assert record["tokens"]["shared"] > record["tokens"]["computed"]


def test_every_answered_example_has_a_sample(finished: Path) -> None:
    lines = samples(finished)
    for line in lines:
        assert set(line) >= {"task", "idx", "prediction", "gold", "scores"}
    terra = [line for line in lines if line["task"] == "terra"]
    assert len(terra) == 24
    for line in terra:
        best = line["scores"].index(max(line["scores"]))
        assert line["prediction"] == ("entailment", "not_entailment")[best]
    right = sum(line["prediction"] == line["gold"] for line in terra)
    assert results(finished)["tasks"]["terra"]["score"] == pytest.approx(right / 24)


def test_a_finished_run_leaves_nothing_but_its_record(finished: Path) -> None:
    assert sorted(path.name for path in finished.iterdir()) == ["results.json", "samples.jsonl"]


def test_a_finished_run_is_not_overwritten_and_resuming_it_prints_it_again(
    finished: Path, rsg_harness: Command, tiny_model: Path
) -> None:
    before = (finished / "results.json").read_bytes()
    arguments = ["run", "--model", tiny_model, "--output", finished, *MANY_UNITS]
    refused = rsg_harness(*arguments)
    assert refused.returncode == 2
    assert "already holds a finished run" in refused.stderr
    other = rsg_harness(*arguments, "--resume", "--seed", "5")
    assert other.returncode == 2
    assert "finished run with other settings" in other.stderr
    again = rsg_harness(*arguments, "--resume")
    assert again.returncode == 0, again.stderr
    assert "mean of the nine tasks" in again.stdout
    assert (finished / "results.json").read_bytes() == before


def start(arguments: list[str | Path], tmp_path: Path, environment: dict[str, str], **options: Any) -> Any:
    return subprocess.Popen(
        [RSG_HARNESS, "run", *map(str, arguments)],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def wait_for_units(store: Path, count: int, process: Any) -> None:
    """Waits until the run has stored that many units."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"the run ended before it was disturbed: {process.stderr.read()}")
        if store.exists():
            try:
                connection = sqlite3.connect(f"file:{store}?mode=ro", uri=True)
                (stored,) = connection.execute("SELECT count(*) FROM scores").fetchone()
                connection.close()
                if stored >= count:
                    return
            except sqlite3.Error:
                pass
        time.sleep(0.01)
    raise AssertionError("the run stored nothing in two minutes")


@pytest.mark.parametrize("units", [pytest.param(1, marks=pytest.mark.slow), 60])
def test_a_killed_run_goes_on_and_ends_with_the_same_figures(
    units: int, tmp_path: Path, environment: dict[str, str], tiny_model: Path, finished: Path, rsg_harness: Command
) -> None:
    arguments: list[str | Path] = ["--model", tiny_model, "--output", tmp_path / "run", *MANY_UNITS]
    process = start(arguments, tmp_path, environment)
    wait_for_units(tmp_path / "run" / "progress.sqlite", units, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "run" / "results.json").exists()

    refused = rsg_harness("run", *arguments)
    assert refused.returncode == 2
    assert "--resume" in refused.stderr

    resumed = rsg_harness("run", *arguments, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert figures(tmp_path / "run") == figures(finished)
    assert samples(tmp_path / "run") == samples(finished)
    assert results(tmp_path / "run")["resumed"]


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_scored(
    tmp_path: Path, environment: dict[str, str], tiny_model: Path, finished: Path, rsg_harness: Command
) -> None:
    arguments: list[str | Path] = ["--model", tiny_model, "--output", tmp_path / "run", *MANY_UNITS]
    process = start(arguments, tmp_path, environment, preexec_fn=heed_interrupts)
    wait_for_units(tmp_path / "run" / "progress.sqlite", 1, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in errors
    assert "Traceback" not in errors
    resumed = rsg_harness("run", *arguments, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert figures(tmp_path / "run") == figures(finished)


def test_resume_refuses_other_settings_and_says_which(
    tmp_path: Path, environment: dict[str, str], tiny_model: Path, rsg_harness: Command
) -> None:
    arguments: list[str | Path] = ["--model", tiny_model, "--output", tmp_path / "run", *MANY_UNITS]
    process = start(arguments, tmp_path, environment)
    wait_for_units(tmp_path / "run" / "progress.sqlite", 1, process)
    process.kill()
    process.wait()
    done = rsg_harness("run", *arguments, "--resume", "--seed", "7", "--prompt", "terra=then")
    assert done.returncode == 2
    assert "seed (1234, now 7)" in done.stderr
    assert "tasks.rsg_terra (" in done.stderr
    assert ", now then)" in done.stderr


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_one_line_and_loses_nothing(
    tmp_path: Path, environment: dict[str, str], tiny_model: Path, finished: Path, rsg_harness: Command
) -> None:
    def small_files() -> None:
        # A write beyond the limit fails as on a full disk; ignored, the signal becomes the error EFBIG.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (80_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    arguments: list[str | Path] = ["--model", tiny_model, "--output", tmp_path / "run", *MANY_UNITS]
    process = start(arguments, tmp_path, environment, preexec_fn=small_files)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 2, errors
    assert "Traceback" not in errors
    last = errors.strip().splitlines()[-1]
    assert last.startswith("rsg-harness: error: cannot")
    resumed = rsg_harness("run", *arguments, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert figures(tmp_path / "run") == figures(finished)


def test_generated_answers_are_read_and_scored(tiny_model: Path, rsg_harness: Command, tmp_path: Path) -> None:
    done = rsg_harness(
        "run", "--model", tiny_model, "--tasks", "gen_terra,gen_parus,gen_rucos", "--limit", "4", "--output", "run"
    )
    assert done.returncode == 0, done.stderr
    record = results(tmp_path / "run")
    assert record["score"] is None
    assert list(record["tasks"]) == ["gen_parus", "gen_terra", "gen_rucos"]
    for line in samples(tmp_path / "run"):
        assert isinstance(line["text"], str)


def test_a_limit_counts_paragraphs_and_few_shot_examples_are_shown(
    tiny_model: Path, rsg_harness: Command, tmp_path: Path
) -> None:
    arguments = ["--tasks", "muserc,rsg_terra", "--limit", "3", "--num-fewshot", "2", "--output", "run"]
    done = rsg_harness("run", "--model", tiny_model, *arguments)
    assert done.returncode == 0, done.stderr
    tasks = results(tmp_path / "run")["tasks"]
    assert tasks["muserc"]["documents"] == 3
    assert tasks["muserc"]["examples"] > 6
    assert tasks["terra"]["num_fewshot"] == 2
    assert "no Russian SuperGLUE score" in done.stdout


def test_mlx_weights_are_executed_by_torch_where_there_is_no_metal(
    tiny_model: Path, rsg_harness: Command, tmp_path: Path
) -> None:
    if sys.platform == "darwin":
        pytest.skip("here MLX computes itself")
    arguments = ["--backend", "mlx-q4", "--tasks", "terra", "--output", "run"]
    done = rsg_harness("run", "--model", tiny_model, *arguments)
    assert done.returncode == 0, done.stderr
    record = results(tmp_path / "run")
    assert record["execution"] == "torch"
    assert record["model"]["weights"] == "4-bit, group size 64"
    assert "executed by torch" in done.stdout


@pytest.mark.slow
def test_the_same_task_files_run_under_plain_lm_eval(
    tiny_model: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    import task_configs

    done = subprocess.run(
        [
            Path(sys.executable).with_name("lm_eval"),
            "run",
            *("--include_path", Path(task_configs.__file__).parent, "--tasks", "rsg", "--limit", "3"),
            *("--model", "hf", "--model_args", f"pretrained={tiny_model},dtype=float32", "--device", "cpu"),
            *("--output_path", tmp_path / "out"),
        ],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (written,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(written.read_text(encoding="utf-8"))["results"]
    assert {f"rsg_{name}" for name in NINE} <= set(found)
    assert found["rsg"]["rsg,none"] == pytest.approx(sum(found[f"rsg_{name}"]["rsg,none"] for name in NINE) / 9)
