"""Adapted models against plain transformers and against the models that they were made of."""

from __future__ import annotations

import functools
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import Gemma3ForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

from adapters.architecture import Logits
from harness.adaptation import tokenizer_file
from harness.adaptation.likelihood import measure_texts
from harness.adaptation.merges import learn_merges
from harness.adaptation.model_files import write_model
from harness.adaptation.new_rows import start_rows
from harness.adaptation.options import Pretraining
from harness.adaptation.pretrain import Rows, pretrain
from harness.errors import UserError
from tests.russian_tokenizer import make_russian_gemma, mini_texts
from tests.tiny_models import make_tiny_model

NEW = 60


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_russian_gemma(tmp_path_factory.mktemp("models") / "whole", dtype="float32")


@pytest.fixture(scope="module")
def kept(source: Path) -> list[int]:
    """Return the rows that some of the texts use, and those that they are derived from."""
    tokenizer = tokenizer_file.read_tokenizer(source)
    encoded = Tokenizer.from_file(str(source / "tokenizer.json")).encode_batch(list(mini_texts()[:40]))
    used = {number for encoding in encoded for number in encoding.ids}
    return sorted(tokenizer_file.with_derivations(tokenizer, used | tokenizer_file.always_kept(tokenizer)))


@pytest.fixture(scope="module")
def pruned(source: Path, kept: list[int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("pruned")
    write_model(source, target, tokenizer_file.pruned(tokenizer_file.read_tokenizer(source), kept), kept)
    return target


@pytest.fixture(scope="module")
def extended(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("extended")
    tokenizer = tokenizer_file.read_tokenizer(source)
    merges = learn_merges(Tokenizer.from_file(str(source / "tokenizer.json")), mini_texts(), NEW)
    rows = range(tokenizer_file.size(tokenizer))
    make_new = functools.partial(start_rows, tokenizer=tokenizer, merges=merges)
    write_model(source, target, tokenizer_file.extended(tokenizer, merges), rows, make_new)
    return target


@torch.no_grad()
def hidden_and_logits(model_dir: Path, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    model = Gemma3ForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    output = model(torch.tensor([ids]), output_hidden_states=True)
    return output.hidden_states[-1][0], output.logits[0]


def test_kept_tokens_keep_their_hidden_states_and_logits(source: Path, pruned: Path, kept: list[int]) -> None:
    before, after = (PreTrainedTokenizerFast.from_pretrained(path) for path in (source, pruned))
    compared = 0
    for text in mini_texts()[:40:8]:
        old_ids, new_ids = before(text).input_ids, after(text).input_ids
        assert [kept[number] for number in new_ids] == old_ids
        old_states, old_logits = hidden_and_logits(source, old_ids)
        new_states, new_logits = hidden_and_logits(pruned, new_ids)
        torch.testing.assert_close(new_states, old_states, rtol=0, atol=0)
        torch.testing.assert_close(new_logits, old_logits[:, kept], rtol=0, atol=2e-5)
        compared += new_logits.numel()
    assert len(kept) < 0.9 * old_logits.shape[1]
    assert compared > 10_000


def test_new_rows_stand_behind_the_old_ones(source: Path, extended: Path) -> None:
    old = Gemma3ForCausalLM.from_pretrained(source).get_input_embeddings().weight
    model = Gemma3ForCausalLM.from_pretrained(extended)
    new = model.get_input_embeddings().weight
    assert new.shape == (len(old) + NEW, old.shape[1])
    assert model.get_output_embeddings().weight is new
    torch.testing.assert_close(new[: len(old)], old, rtol=0, atol=0)
    tokenizer = tokenizer_file.read_tokenizer(source)
    merges = learn_merges(Tokenizer.from_file(str(source / "tokenizer.json")), mini_texts(), NEW)
    torch.testing.assert_close(new[len(old) :], start_rows(old.detach(), tokenizer, merges))
    ids = json.loads((extended / "tokenizer.json").read_text())["model"]["vocab"]
    assert ids["".join(merges[0])] == len(old)


@pytest.mark.parametrize("prunes", [True, False])
def test_a_token_without_a_row_gets_one_that_nobody_reads(
    source: Path, kept: list[int], tmp_path: Path, prunes: bool
) -> None:
    """Gemma-3's token for images is such a one: its id is past the last row of the text models."""
    tokenizer = tokenizer_file.read_tokenizer(source)
    rows = tokenizer_file.size(tokenizer)
    image = {**tokenizer["added_tokens"][0], "id": rows, "content": "<image_soft_token>"}
    tokenizer["added_tokens"].append(image)
    ids = [*(kept if prunes else range(rows)), rows]
    write_model(source, tmp_path, tokenizer_file.pruned(tokenizer, ids), ids)
    old, new = (Gemma3ForCausalLM.from_pretrained(path).get_input_embeddings().weight for path in (source, tmp_path))
    torch.testing.assert_close(new[:-1], old[ids[:-1]], rtol=0, atol=0)
    assert not new[-1].any()
    assert PreTrainedTokenizerFast.from_pretrained(tmp_path)("<image_soft_token>").input_ids[-1] == len(ids) - 1


def test_bits_a_character_are_those_of_a_plain_forward_pass(extended: Path) -> None:
    texts = mini_texts()[:6]
    found = measure_texts(extended, texts, "texts", dtype="float32")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(extended)
    nats = tokens = 0
    for text in texts:
        ids = tokenizer(text).input_ids
        _, logits = hidden_and_logits(extended, ids)
        nats -= logits.log_softmax(-1)[range(len(ids) - 1), ids[1:]].sum().item()
        tokens += len(ids) - 1
    assert found.bits_per_character == pytest.approx(nats / math.log(2) / sum(map(len, texts)), rel=1e-5)
    assert found.tokens_per_word == pytest.approx(tokens / sum(len(text.split()) for text in texts))


def test_the_loss_and_its_gradient_are_those_of_transformers(source: Path, extended: Path) -> None:
    model = Gemma3ForCausalLM.from_pretrained(extended, dtype=torch.float32)
    first = tokenizer_file.size(json.loads((source / "tokenizer.json").read_text()))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(extended)
    flat = [token for text in mini_texts() for token in tokenizer(text).input_ids]
    tokens = torch.tensor(flat[: 4 * 96]).reshape(4, 96)
    assert (tokens >= first).any()
    rows = Rows(model, Logits(), first, torch.float32)
    loss = rows.loss(tokens)
    loss.backward()
    reference = Gemma3ForCausalLM.from_pretrained(extended, dtype=torch.float32)
    # Its mean is over the same predictions: every token of a row but the first.
    expected = reference(tokens, labels=tokens).loss
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    gradient = reference.get_input_embeddings().weight.grad[first:]
    torch.testing.assert_close(rows.rows.grad, gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("plan", [Pretraining(row_steps=6, batch_tokens=512), Pretraining(4, 4, batch_tokens=512)])
def test_pretraining_lowers_the_loss_and_leaves_old_rows_alone(
    source: Path, extended: Path, tmp_path: Path, plan: Pretraining
) -> None:
    model_dir = tmp_path / "model"
    shutil.copytree(extended, model_dir)
    first = tokenizer_file.size(json.loads((source / "tokenizer.json").read_text()))
    pretrain(model_dir, first, mini_texts(), plan, tmp_path / "work")
    before, after = (Gemma3ForCausalLM.from_pretrained(path).state_dict() for path in (extended, model_dir))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    embedding = {"model.embed_tokens.weight", "lm_head.weight"}
    layers = {name for name in before if name.endswith("_proj.weight")}
    assert changed == (embedding | layers if plan.lora_steps else embedding)
    old, new = (state["model.embed_tokens.weight"] for state in (before, after))
    assert torch.equal(old[:first], new[:first])
    texts = mini_texts()[:40]
    bits = [measure_texts(path, texts, "texts").bits_per_character for path in (extended, model_dir)]
    assert bits[1] < bits[0]


def test_a_token_without_a_row_that_is_an_added_one_alone_is_kept(source: Path, kept: list[int]) -> None:
    tokenizer = tokenizer_file.read_tokenizer(source)
    rows = tokenizer_file.size(tokenizer)
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": rows, "content": "<image_soft_token>"})
    ids = tokenizer_file.with_derivations(tokenizer, {*kept, *tokenizer_file.always_kept(tokenizer)})
    assert ids == {*kept, rows}


def test_both_matrices_of_a_model_with_separate_output_rows_are_pruned(
    source: Path, kept: list[int], tmp_path: Path
) -> None:
    tokenizer = tokenizer_file.read_tokenizer(source)
    make_tiny_model("llama", tmp_path / "llama", vocab_size=tokenizer_file.size(tokenizer), tie_word_embeddings=False)
    (tmp_path / "pruned").mkdir()
    write_model(tmp_path / "llama", tmp_path / "pruned", tokenizer_file.pruned(tokenizer, kept), kept)
    ids = list(range(40))
    old, new = (
        LlamaForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32)(
            torch.tensor([[kept[number] for number in ids] if name == "llama" else ids])
        ).logits
        for name in ("llama", "pruned")
    )
    torch.testing.assert_close(new, old[..., kept], rtol=0, atol=2e-5)


def test_a_vocabulary_matrix_in_every_layer_is_refused(source: Path, kept: list[int], tmp_path: Path) -> None:
    tokenizer = tokenizer_file.read_tokenizer(source)
    size = tokenizer_file.size(tokenizer)
    model_dir = make_tiny_model("gemma4_text", tmp_path, vocab_size=size, vocab_size_per_layer_input=size)
    with pytest.raises(UserError, match="embed_tokens_per_layer"):
        write_model(model_dir, tmp_path / "out", tokenizer_file.pruned(tokenizer, kept), kept)
