"""Tasks in lm-eval's own format: the same figures as from lm-eval's own model and command."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

import harness
from harness.evaluation.language_model import PlannedModel
from harness.models.resolve import embedded_version, find_model, provide
from harness.quiet import quiet_libraries
from harness.tasks.lm_eval_index import task_manager
from tests.lm_eval_layouts import LAYOUTS, write_layouts
from tests.lm_eval_tasks import TASKS, TEXTS, write_lm_eval_tasks
from tests.tiny_gemma import CHAT_TEMPLATE, make_tiny_gemma

# Sampled answers differ by library.
ALIKE = [name for name in TASKS if name != "own_votes"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a context shorter than the long texts, and a chat template."""
    directory = make_tiny_gemma(tmp_path_factory.mktemp("gemma"), num_hidden_layers=4, max_position_embeddings=256)
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    return directory


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


def assert_same(mine: dict[str, Any], other: dict[str, Any], names: Iterable[str]) -> None:
    """The same documents, requests, log-probabilities to 1e-3 (long texts: 2e-5 of it), texts and metrics."""
    for name in names:
        for one, two in zip(mine["samples"][name], other["samples"][name], strict=True):
            assert one["doc_hash"] == two["doc_hash"]
            assert one["arguments"] == two["arguments"]
            for answer, expected in zip(flat(one["filtered_resps"]), flat(two["filtered_resps"]), strict=True):
                assert answer == (
                    expected if isinstance(expected, str) else pytest.approx(expected, rel=2e-5, abs=1e-3)
                ), name
        for key, value in other["results"][name].items():
            if isinstance(value, float):
                # What comes from counts is equal; what comes from log-probabilities is as near as they are.
                counted = key.startswith(("acc", "exact_match", "mcc", "f1")) and name != "truthfulqa_mc2"
                assert mine["results"][name][key] == pytest.approx(value, rel=0 if counted else 1e-4, abs=1e-6), key


def flat(answers: Iterable[Any]) -> list[Any]:
    """Log-probabilities and flags as numbers one after the other, texts as they are."""
    parts = [part for answer in answers for part in (answer if isinstance(answer, list | tuple) else [answer])]
    return [part if isinstance(part, str) else float(part) for part in parts]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"system_instruction": "Отвечай кратко."},
        {"num_fewshot": 1},
        {"num_fewshot": 1, "apply_chat_template": True, "fewshot_as_multiturn": True, "system_instruction": "Кратко."},
    ],
)
def test_simple_evaluate_gives_the_figures_of_lm_evals_own_model(
    ours: PlannedModel, theirs: HFLM, manager: TaskManager, options: dict[str, Any]
) -> None:
    names = [name for name in ALIKE if name != "own_text"]
    mine, other = (evaluated(model, manager, names, **options) for model in (ours, theirs))
    assert_same(mine, other, names)


@pytest.mark.slow
def test_lm_evals_own_files_give_the_figures_of_its_own_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RSG_HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(write_layouts(tmp_path / "datasets"))
    # With other seeds a random model writes broken UTF-8, in which lm-eval overlooks a stop character.
    model = str(make_tiny_gemma(tmp_path / "gemma", seed=1, num_hidden_layers=4, max_position_embeddings=4096))
    manager = task_manager([])
    mine = evaluated(
        harness.open_model(model, backend="torch-cpu", dtype="float32").lm(batch_tokens=1024), manager, list(LAYOUTS)
    )
    with quiet_libraries():
        plain = HFLM(model, dtype="float32", device="cpu", batch_size=4)
        single_bos = HFLM(model, dtype="float32", device="cpu", batch_size=4, add_bos_token=False)
    others = [name for name in LAYOUTS if name != "wikitext"]
    assert_same(mine, evaluated(plain, manager, others), others)
    assert_same(mine, evaluated(single_bos, manager, ["wikitext"]), ["wikitext"])
    kinds = {mine["configs"][name]["output_type"] for name in LAYOUTS}
    assert kinds == {"multiple_choice", "loglikelihood", "loglikelihood_rolling", "generate_until"}


@pytest.mark.slow
def test_the_embedded_model_gives_the_figures_of_lm_evals_own_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if embedded_version() is None:
        pytest.skip("the package of the embedded model is not installed")
    path = provide(find_model("embedded")).path
    monkeypatch.chdir(write_layouts(tmp_path / "datasets"))
    names = ["xnli_ru", "lambada_openai", "wikitext"]
    mine = evaluated(harness.open_model("embedded", backend="torch-cpu", dtype="float32").lm(), task_manager([]), names)
    with quiet_libraries():
        plain: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = HFLM(plain, tokenizer=tokenizer, batch_size=4)
        single_bos = HFLM(plain, tokenizer=tokenizer, batch_size=4, add_bos_token=False)
    assert_same(mine, evaluated(model, task_manager([]), names[:2]), names[:2])
    assert_same(mine, evaluated(single_bos, task_manager([]), ["wikitext"]), ["wikitext"])


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
