"""Prompts of instruction-tuned models: one BOS, the answer begins as without a template."""

from __future__ import annotations

from pathlib import Path

import pytest
from lm_eval.tasks import TaskManager

from adapters.text import load_tokenizer
from harness.errors import UserError
from harness.evaluation.language_model import PlannedModel
from harness.models.chat import chat_template
from harness.models.open import open_model
from harness.models.options import ModelOptions
from harness.tasks.prompts import TASK_DIR
from tests.tiny_gemma import CHAT_TEMPLATE, make_tiny_gemma


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> PlannedModel:
    directory: Path = make_tiny_gemma(tmp_path_factory.mktemp("chat"), max_position_embeddings=4096)
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    return PlannedModel(open_model(ModelOptions(model=str(directory), backend="torch-cpu", dtype="float32")), 512)


@pytest.mark.parametrize("shots", [0, 2])
def test_a_chat_prompt_has_one_bos_and_a_space_before_the_choice(chat_model: PlannedModel, shots: int) -> None:
    manager = TaskManager(
        include_path=str(TASK_DIR / "rsg"), include_defaults=False, metadata={"data": "mini", "num_fewshot": shots}
    )
    task = manager.load(["rsg_terra"])["tasks"]["rsg_terra"]
    task.set_config("num_fewshot", shots)
    task.set_fewshot_seed(1)
    task.build_all_requests(
        apply_chat_template=True, fewshot_as_multiturn=True, chat_template=chat_model.apply_chat_template
    )
    tokenizer = chat_model.opened.tokenizer
    for instance in task.instances:
        context, continuation = instance.args
        assert continuation in (" да", " нет")
        assert context.endswith("<start_of_turn>model\nОтвет:")
        assert context.count("<start_of_turn>user") == shots + 1
        ids = chat_model.encoder.encode(context + continuation)
        assert ids.count(tokenizer.bos_token_id) == 1
        assert tokenizer.convert_ids_to_tokens(ids[-1]) in ("▁да", "▁нет")


def test_auto_uses_the_template_where_there_is_one(chat_model: PlannedModel, tmp_path: Path) -> None:
    assert chat_model.opened.template.applied
    assert not chat_template(chat_model.opened.tokenizer, "off").applied
    base = load_tokenizer(make_tiny_gemma(tmp_path))
    assert not chat_template(base).applied
    with pytest.raises(UserError, match="no chat template"):
        chat_template(base, "on")
