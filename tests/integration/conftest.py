from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.tasks.lm_eval_index import lm_eval_tasks
from tests.integration.command import ONE_THREAD, Command, call_here, call_process
from tests.integration.endpoint import Done, Evaluate, given_to
from tests.integration.training import call, write_recipe
from tests.openai_server import OpenAIServer
from tests.tiny_gemma import make_tiny_gemma


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random Gemma-3 with a context long enough for the mini set's character-like tokens."""
    return make_tiny_gemma(tmp_path_factory.mktemp("models") / "tiny-gemma", max_position_embeddings=4096)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """This process's environment with a cache of its own and no data directory."""
    kept = {name: value for name, value in os.environ.items() if name != "RSG_DATA"}
    return {**kept, "RSG_HARNESS_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", **ONE_THREAD}


@pytest.fixture
def rsg_harness(tmp_path: Path, environment: dict[str, str]) -> Command:
    """Runs the command in this process, in a directory of its own."""
    return lambda *arguments: call_here(arguments, tmp_path, environment)


@pytest.fixture
def rsg_process(tmp_path: Path, environment: dict[str, str]) -> Command:
    """Runs the installed command in a process and a directory of its own."""
    return lambda *arguments, **options: call_process(arguments, tmp_path, environment, **options)


@pytest.fixture(scope="session")
def float32_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stored in float32, so that fusing LoRA into it rounds nothing."""
    directory = tmp_path_factory.mktemp("models") / "tiny-float32"
    return make_tiny_gemma(directory, dtype="float32", max_position_embeddings=4096)


@pytest.fixture(scope="session")
def shared_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One cache for all trainings: a run finds what another kept, which must not change its numbers."""
    cache = str(tmp_path_factory.mktemp("cache"))
    return {**os.environ, "RSG_HARNESS_CACHE": cache, "HF_HUB_OFFLINE": "1", **ONE_THREAD}


@pytest.fixture(scope="session")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory, float32_model: Path, shared_environment: dict[str, str]
) -> Path:
    """A checkpoint trained without any disturbance."""
    directory = tmp_path_factory.mktemp("train")
    recipe = write_recipe(directory, float32_model)
    output = directory / "small"
    done = call(shared_environment, "train", "--recipe", recipe, "--output", output)
    assert done.returncode == 0, done.stderr
    assert f"checkpoint: {output}" in done.stdout
    return output


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The index of lm-eval's tasks, which takes ten seconds to make."""
    cache = tmp_path_factory.mktemp("index")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RSG_HARNESS_CACHE", str(cache))
        lm_eval_tasks()
    return cache / "lm-eval"


@pytest.fixture
def evaluate(environment: dict[str, str], tmp_path: Path) -> Evaluate:
    """Runs the command in this process, into tmp_path/out unless told otherwise, with `key` in the environment."""

    def call(server: OpenAIServer | str, *arguments: str | Path, key: str = "") -> Done:
        return call_here(given_to(server, tmp_path, *arguments), tmp_path, {**environment, "OPENAI_API_KEY": key})

    return call
