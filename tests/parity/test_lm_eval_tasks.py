"""Tasks in lm-eval's own format: the same figures as from lm-eval's own model and command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

import harness
from harness.evaluation.language_model import PlannedModel
from harness.quiet import quiet_libraries
from tests.lm_eval_tasks import TASKS, TEXTS, write_lm_eval_tasks
from tests.tiny_gemma import make_tiny_gemma

# Sampled answers differ by library.
ALIKE = [name for name in TASKS if name != "own_votes"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a context shorter than the long texts."""
    return make_tiny_gemma(tmp_path_factory.mktemp("gemma"), num_hidden_layers=4, max_position_embeddings=256)


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> TaskManager:
    directory = write_lm_eval_tasks(tmp_path_factory.mktemp("tasks"))
    return TaskManager(include_path=str(directory), include_defaults=False)


def evaluated(model: Any, manager: TaskManager, names: list[str], **options: Any) -> dict[str, Any]:
    with quiet_libraries():
        found = simple_evaluate(model, tasks=names, task_manager=manager, bootstrap_iters=0, **options)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def ours(tiny: Path) -> PlannedModel:
    return harness.open_model(str(tiny), backend="torch-cpu", dtype="float32").lm(batch_tokens=512)


@pytest.fixture(scope="module")
def theirs(tiny: Path) -> HFLM:
    with quiet_libraries():
        return HFLM(str(tiny), dtype="float32", device="cpu", batch_size=4)


@pytest.mark.parametrize("options", [{}, {"system_instruction": "Отвечай кратко."}, {"num_fewshot": 1}])
def test_simple_evaluate_gives_the_figures_of_lm_evals_own_model(
    ours: PlannedModel, theirs: HFLM, manager: TaskManager, options: dict[str, Any]
) -> None:
    names = [name for name in ALIKE if name != "own_text"]
    mine, other = (evaluated(model, manager, names, **options) for model in (ours, theirs))
    for name in names:
        for key, value in other["results"][name].items():
            if isinstance(value, float):
                assert mine["results"][name][key] == pytest.approx(value, rel=1e-3), (name, key)
        for one, two in zip(mine["samples"][name], other["samples"][name], strict=True):
            assert one["doc_hash"] == two["doc_hash"]
            assert one["arguments"] == two["arguments"]
            if name == "own_writing":
                assert one["filtered_resps"] == two["filtered_resps"]
            else:
                for (logprob, greedy), (expected, greedily) in zip(
                    one["filtered_resps"], two["filtered_resps"], strict=True
                ):
                    assert logprob == pytest.approx(expected, abs=1e-3)
                    assert greedy == bool(greedily)


def test_rolling_windows_are_lm_evals(ours: PlannedModel, tiny: Path, manager: TaskManager) -> None:
    # Without its second BOS, which it would predict after the first.
    with quiet_libraries():
        plain = HFLM(str(tiny), dtype="float32", device="cpu", batch_size=4, add_bos_token=False)
    longest = max(len(ours.encoder.encode_bare((text + " ") * 24)) for text in TEXTS)
    assert longest > 2 * 256  # at least three windows
    mine, other = (evaluated(model, manager, ["own_text"]) for model in (ours, plain))
    for one, two in zip(mine["samples"]["own_text"], other["samples"]["own_text"], strict=True):
        assert one["filtered_resps"] == pytest.approx(two["filtered_resps"], rel=1e-5)
    for key in ("word_perplexity,none", "byte_perplexity,none", "bits_per_byte,none"):
        assert mine["results"]["own_text"][key] == pytest.approx(other["results"]["own_text"][key], rel=1e-4)
