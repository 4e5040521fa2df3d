"""Our model against lm-eval's own `hf` model and a plain forward pass: the same documents, the same figures."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.evaluation.language_model import PlannedModel
from harness.models.open import open_model
from harness.models.options import ModelOptions
from harness.models.resolve import embedded_version, find_model, provide
from harness.quiet import quiet_libraries
from harness.tasks import RUSSIAN_SUPERGLUE
from harness.tasks.prompts import GROUPS, TASK_DIR
from tests.byte_level import LLAMA3, QWEN, byte_level_tokenizer
from tests.russian_tokenizer import mini_texts
from tests.tiny_gemma import make_tiny_gemma
from tests.tiny_models import ARCHITECTURES, make_tiny_gemma_with_vision, make_tiny_model

TOLERANCE = 1e-3  # natural logarithms, float32
DOCUMENTS = 4  # of a task: answers of MuSeRC, queries of RuCoS
SEED = 1234


@dataclass(frozen=True)
class Answered:
    """One request group of one document: what was asked and what the model answered."""

    task: str
    arguments: list[tuple[str, Any]]
    responses: list[Any]  # (log-probability, greedy) of every choice, or the text
    prediction: Any


def answered(lm: Any, names: Sequence[str], num_fewshot: int, data: str, **which: Any) -> list[Answered]:
    """Runs lm-eval on tasks.

    Args:
        lm: lm-eval's model.
        names: full names of tasks.
        num_fewshot: examples shown.
        data: as for --data.
        which: lm-eval's `limit` or `samples`.
    """
    with quiet_libraries():
        manager = TaskManager(
            include_path=[str(TASK_DIR / group) for group in GROUPS],
            include_defaults=False,
            metadata={"data": data, "seed": SEED, "num_fewshot": num_fewshot},
        )
        loaded = manager.load(list(names))
        for task in loaded["tasks"].values():
            task.set_config("num_fewshot", num_fewshot)
            task.set_fewshot_seed(SEED)
        results = evaluate(lm=lm, task_dict=loaded, bootstrap_iters=0, **which)
    assert results is not None
    return [
        Answered(
            name,
            [tuple(arguments.values()) for arguments in sample["arguments"].values()]
            if isinstance(sample["arguments"], dict)
            else list(sample["arguments"]),
            sample["filtered_resps"],
            sample["rsg"].prediction,
        )
        for name in names
        for sample in results["samples"][name]
    ]


def largest_difference(ours: Sequence[Answered], theirs: Sequence[Answered]) -> float:
    """Over the log-probabilities; everything else must be equal."""
    assert len(ours) == len(theirs) > 0
    largest = 0.0
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.arguments == other.arguments
        assert mine.prediction == other.prediction
        assert [greedy for _, greedy in mine.responses] == [bool(greedy) for _, greedy in other.responses]
        differences = [abs(a - b) for (a, _), (b, _) in zip(mine.responses, other.responses, strict=True)]
        largest = max(largest, *differences)
    return largest


# --- a tiny model, all nine tasks -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Its tokens are nearly letters, so the prompts are long; two end tokens as in the instruction-tuned models.
    return make_tiny_gemma(
        tmp_path_factory.mktemp("gemma"), num_hidden_layers=4, max_position_embeddings=8192, eos_token_id=[1, 5]
    )


@pytest.fixture(scope="module")
def tiny_ours(tiny: Path) -> PlannedModel:
    opened = open_model(ModelOptions(model=str(tiny), backend="torch-cpu", dtype="float32"))
    return PlannedModel(opened, batch_tokens=1024)


@pytest.fixture(scope="module")
def tiny_theirs(tiny: Path) -> HFLM:
    with quiet_libraries():
        return HFLM(pretrained=str(tiny), dtype="float32", device="cpu", batch_size=4)


def test_both_read_the_same_tokens(tiny_ours, tiny_theirs):
    """lm-eval loads the tokenizer by AutoTokenizer, we from tokenizer.json."""
    for text in ("Текст: «Ёж», 12 км.\n\nОтвет:", " да", "да нет  Да", "🦔"):
        assert tiny_ours.encoder.encode(text) == tiny_theirs.tok_encode(text, add_special_tokens=True)


@pytest.mark.parametrize("num_fewshot", [0, 2])
def test_a_tiny_model_gives_the_log_probabilities_of_lm_eval_on_all_nine_tasks(tiny_ours, tiny_theirs, num_fewshot):
    names = [f"rsg_{task}" for task in RUSSIAN_SUPERGLUE]
    ours = answered(tiny_ours, names, num_fewshot, "mini", limit=DOCUMENTS)
    theirs = answered(tiny_theirs, names, num_fewshot, "mini", limit=DOCUMENTS)
    difference = largest_difference(ours, theirs)
    print(f"{num_fewshot}-shot: {len(ours)} documents, largest difference {difference:.1e}")
    assert difference < TOLERANCE
    assert not any(tiny_ours.truncated.values())


@pytest.mark.parametrize("num_fewshot", [0, 2])
def test_a_tiny_model_writes_the_texts_of_lm_eval_on_all_nine_tasks(tiny_ours, tiny_theirs, num_fewshot):
    names = [f"rsg_gen_{task}" for task in RUSSIAN_SUPERGLUE]
    ours = answered(tiny_ours, names, num_fewshot, "mini", limit=DOCUMENTS)
    theirs = answered(tiny_theirs, names, num_fewshot, "mini", limit=DOCUMENTS)
    assert [one.arguments for one in ours] == [one.arguments for one in theirs]
    assert [one.responses for one in ours] == [one.responses for one in theirs]
    assert [one.prediction for one in ours] == [one.prediction for one in theirs]
    assert len({one.responses[0] for one in ours}) > 1


# --- tiny models of other architectures, all nine tasks ---------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "gemma3 with pictures"])
def test_other_architectures_give_the_log_probabilities_of_lm_eval_on_all_nine_tasks(architecture, tmp_path):
    make = functools.partial(make_tiny_model, architecture) if architecture in ARCHITECTURES else None
    directory = str((make or make_tiny_gemma_with_vision)(tmp_path / "model"))
    opened = open_model(ModelOptions(model=directory, backend="torch-cpu", dtype="float32"))
    with quiet_libraries():
        plain = HFLM(directory, tokenizer=opened.tokenizer, dtype="float32", device="cpu", batch_size=4)
    names = [f"rsg_{task}" for task in RUSSIAN_SUPERGLUE]
    ours = answered(PlannedModel(opened, batch_tokens=1024), names, 0, "mini", limit=DOCUMENTS)
    theirs = answered(plain, names, 0, "mini", limit=DOCUMENTS)
    assert largest_difference(ours, theirs) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "pattern"), [("qwen3", QWEN), ("llama", LLAMA3), ("gpt2", None)])
def test_byte_level_tokenizers_without_bos_give_the_log_probabilities_of_lm_eval(architecture, pattern, tmp_path):
    tokenizer = byte_level_tokenizer(pattern, mini_texts())
    model_dir = make_tiny_model(architecture, tmp_path / architecture, vocab_size=len(tokenizer))
    for file in model_dir.glob("*token*"):
        file.unlink()
    tokenizer.save_pretrained(model_dir)
    opened = open_model(ModelOptions(model=str(model_dir), backend="torch-cpu", dtype="float32"))
    with quiet_libraries():
        plain = HFLM(str(model_dir), tokenizer=opened.tokenizer, dtype="float32", device="cpu", batch_size=4)
    names = [f"rsg_{task}" for task in RUSSIAN_SUPERGLUE]
    ours = answered(PlannedModel(opened, batch_tokens=1024), names, 0, "mini", limit=DOCUMENTS)
    theirs = answered(plain, names, 0, "mini", limit=DOCUMENTS)
    assert largest_difference(ours, theirs) < TOLERANCE


# --- the real model, real documents -----------------------------------------------------------------------------------

REAL_DOCUMENTS = 3
CANDIDATES = 100  # documents of a task that the shortest are taken from
REAL_TASKS = tuple(task for task in RUSSIAN_SUPERGLUE if task != "rucos")  # RuCoS passages are too long for a test


@pytest.fixture(scope="module")
def real_data() -> str:
    directory = os.environ.get("RSG_DATA")
    if not directory:
        pytest.skip("RSG_DATA does not name the official data")
    return str(Path(directory).resolve())


@pytest.fixture(scope="module")
def real_model(real_data: str) -> Path:
    if embedded_version() is None:
        pytest.skip("the package of the embedded model is not installed")
    return provide(find_model("embedded")).path


def short_documents(name: str, data: str) -> list[int]:
    """Numbers of the documents with the shortest prompts among the first ones."""
    with quiet_libraries():
        manager = TaskManager(
            include_path=[str(TASK_DIR / "rsg")], include_defaults=False, metadata={"data": data, "num_fewshot": 0}
        )
        task: Any = manager.load([name])["tasks"][name]
    lengths = [len(task.doc_to_text(doc)) for doc in task.eval_docs.select(range(CANDIDATES))]
    return sorted(np.argsort(lengths, kind="stable")[:REAL_DOCUMENTS].tolist())


def plain_responses(model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
    """log P(continuation | context) of one document's choices, by forward passes over whole texts without a cache."""
    tables: dict[tuple[int, ...], torch.Tensor] = {}  # what the model reads -> log-probabilities at every position
    responses = []
    for context, continuation in pairs:
        bare = context.rstrip()
        whole = tokenizer(context + continuation).input_ids
        start = len(tokenizer(bare).input_ids)
        assert whole[0] == tokenizer.bos_token_id != whole[1]
        read = tuple(whole[:-1])
        if read not in tables:
            with torch.no_grad():
                tables[read] = model(torch.tensor([read]), use_cache=False).logits[0].log_softmax(-1)
        rows = [tables[read][place - 1] for place in range(start, len(whole))]
        logprob = sum(row[token].item() for row, token in zip(rows, whole[start:], strict=True))
        greedy = all(row.argmax().item() == token for row, token in zip(rows, whole[start:], strict=True))
        responses.append((logprob, greedy))
    return responses


@pytest.mark.slow
def test_the_real_model_agrees_on_real_documents(real_model, real_data):
    started = time.monotonic()
    names = [f"rsg_{task}" for task in REAL_TASKS]
    chosen = {name: short_documents(name, real_data) for name in names}
    opened = open_model(ModelOptions(model="embedded", backend="torch-cpu", dtype="float32"))
    ours = answered(PlannedModel(opened), names, 0, real_data, samples=chosen)
    del opened
    assert len(ours) == REAL_DOCUMENTS * len(REAL_TASKS)

    model: Any = AutoModelForCausalLM.from_pretrained(real_model, dtype=torch.float32, attn_implementation="eager")
    tokenizer = AutoTokenizer.from_pretrained(real_model)
    plain = []
    for one in ours:
        responses = plain_responses(model.eval(), tokenizer, one.arguments)
        best = int(np.argmax([logprob for logprob, _ in responses]))
        plain.append(Answered(one.task, one.arguments, responses, best))
    to_plain = largest_difference(ours, plain)

    with quiet_libraries():
        hugging_face = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2)
    theirs = answered(hugging_face, names, 0, real_data, samples=chosen)
    to_lm_eval = largest_difference(ours, theirs)
    print(
        f"{len(ours)} documents: largest difference from a plain forward pass {to_plain:.1e}, "
        f"from lm-eval's model {to_lm_eval:.1e}; {time.monotonic() - started:.0f} s"
    )
    assert max(to_plain, to_lm_eval) <= TOLERANCE
