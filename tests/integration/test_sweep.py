"""`rsg-harness sweep` through the real command."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.records.divergence import DIVERGENCE, read_divergence
from harness.records.run import RESULTS, read_samples
from harness.tasks import registry
from tests.integration.command import Command
from tests.lm_eval_tasks import write_lm_eval_tasks

ARGUMENTS = ("--tasks", "terra,parus", "--limit", "6")


@pytest.mark.slow
def test_every_backend_gets_the_record_that_run_makes_and_stands_beside_the_first(
    rsg_harness: Command, tiny_model: Path, tmp_path: Path
) -> None:
    backends = "torch,mlx-q8:group_size=32,mlx-q3:group_size=32"
    arguments = ("--model", tiny_model, "--backends", backends, *ARGUMENTS, "--output", "swept")
    done = rsg_harness("sweep", *arguments)
    assert done.returncode == 0, done.stderr
    [_, _, *rows] = done.stdout.splitlines()
    assert [row.split()[0] for row in rows] == ["torch", "mlx-q8", "mlx-q3"]
    assert "points" not in rows[0]
    for row in rows[1:]:
        assert "points, interval" in row or "the same" in row
    directories = [tmp_path / f"swept-{backend.replace(':', '-')}" for backend in backends.split(",")]
    once = rsg_harness(
        "run", "--model", tiny_model, "--backend", "mlx-q3", "--backend-arg", "group_size=32", *ARGUMENTS,
        "--output", "once",
    )  # fmt: skip
    assert once.returncode == 0, once.stderr
    assert list(read_samples(tmp_path / "once")) == list(read_samples(directories[2]))

    written = [(directory / RESULTS).stat().st_mtime_ns for directory in directories]
    (directories[2] / RESULTS).unlink()
    again = rsg_harness("sweep", *arguments, "--resume")
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[2] == done.stdout.splitlines()[2]
    assert [(directory / RESULTS).stat().st_mtime_ns for directory in directories[:2]] == written[:2]
    assert (directories[2] / RESULTS).exists()


@pytest.mark.slow
def test_lm_evals_tasks_and_the_divergence_stand_beside_the_others(
    rsg_harness: Command, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_directories", [])
    own = write_lm_eval_tasks(tmp_path / "own")
    (tmp_path / "corpus.txt").write_text("Ёж ушёл в лес до рассвета.\n\nПоезд опоздал на час.\n", encoding="utf-8")
    asked = ("--include-path", own, "--tasks", "terra,own_choice,own_last", "--limit", "4", "--model", tiny_model)
    swept = ("sweep", *asked, "--backends", "torch,mlx-q4:group_size=32", "--corpus", "corpus.txt", "--output", "swept")
    done = rsg_harness(*swept)
    assert done.returncode == 0, done.stderr
    assert "KL, nats" in done.stdout
    assert "own_choice" in done.stdout
    record = read_divergence(tmp_path / "results" / "divergence" / "swept-torch" / DIVERGENCE)
    assert [one.backend for one in record.backends] == ["torch", "mlx-q4:group_size=32"]
    assert f"{record.backends[1].kl.value:.5f}" in done.stdout
    again = rsg_harness(*swept, "--resume")
    assert again.returncode == 0, again.stderr
    assert again.stdout == done.stdout


def test_what_cannot_be_swept_is_refused_before_anything_runs(
    rsg_harness: Command, tiny_model: Path, tmp_path: Path
) -> None:
    def refusal(*arguments: str) -> str:
        done = rsg_harness("sweep", "--model", tiny_model, *ARGUMENTS, "--output", "swept", *arguments)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr.splitlines()[-1]

    assert "mlx-q4" in refusal("--backends", "torch,mlx-q44")
    assert "once" in refusal("--backends", "torch,torch")
    assert "none" in refusal("--backends", ",")
    assert "group_size" in refusal("--backends", "torch,mlx-q4:groupsize=32")
    assert "hidden" in refusal("--split", "test")
    assert not list(tmp_path.glob("swept*"))
