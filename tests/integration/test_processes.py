"""A run that two processes share gives the record of one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.records.run import read_run, read_samples
from tests.integration.command import IN_TWO_PROCESSES, Command

TASKS = ("--tasks", "lidirus,parus,muserc,terra,rucos,gen_terra", "--limit", "12", "--batch-tokens", "512")


def launch(environment: dict[str, str], directory: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [*IN_TWO_PROCESSES, "run", *map(str, arguments)]
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=240)


@pytest.mark.slow
def test_two_processes_give_the_record_of_one(
    rsg_harness: Command, environment: dict[str, str], float32_model: Path, tmp_path: Path
) -> None:
    model = ("--model", float32_model, "--dtype", "float32", *TASKS)
    alone = rsg_harness("run", *model, "--output", "alone")
    assert alone.returncode == 0, alone.stderr
    shared = launch(environment, tmp_path, *model, "--output", tmp_path / "shared")
    assert shared.returncode == 0, shared.stderr
    assert shared.stdout.count("score × 100") == 1

    one, two = read_run(tmp_path / "alone"), read_run(tmp_path / "shared")
    assert (one.processes, two.processes) == (1, 2)
    assert one.settings_sha256 == two.settings_sha256
    assert one.tasks == two.tasks
    assert (one.tokens.computed, one.tokens.shared) == (two.tokens.computed, two.tokens.shared)
    for before, after in zip(read_samples(tmp_path / "alone"), read_samples(tmp_path / "shared"), strict=True):
        assert before.model_copy(update={"scores": []}) == after.model_copy(update={"scores": []})
        assert after.scores == pytest.approx(before.scores, abs=1e-4)
    assert not list((tmp_path / "shared").glob("progress*"))


def test_what_the_user_can_mend_is_said_once_and_ends_both(
    environment: dict[str, str], float32_model: Path, tmp_path: Path
) -> None:
    done = launch(environment, tmp_path, "--model", float32_model, "--tasks", "tera")
    assert done.returncode != 0
    assert "unknown task 'tera'" in done.stderr


def test_work_in_a_process_does_not_run_the_users_script_again(environment: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from harness.processes import run_in_subprocess\n"
        "print('once')\n"
        "print(run_in_subprocess(Path, 'made elsewhere'))\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=240, check=True
    )
    assert done.stdout == "once\nmade elsewhere\n"
