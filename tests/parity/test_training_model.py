"""The training model against plain transformers: scores, losses, gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from adapters.text import load_tokenizer
from harness.data import cached_split
from harness.errors import UserError
from harness.models.chat import Template
from harness.models.heads import HeadLayout, make_layout
from harness.scoring.encoding import TextEncoder, encode_pairs
from harness.scoring.packing import pack, stack
from harness.tasks import HeadKind, get_task
from harness.tasks.prompts import choose
from harness.tasks.rendering import load_tasks
from harness.training.check import check_packing, compile_and_check
from harness.training.examples import Encoding, Example, make_examples
from harness.training.loss import batch_targets, question_losses
from harness.training.model import MultitaskModel, build_model, check_trainable, make_inputs
from harness.training.recipe import LoraRecipe, Recipe, TaskRecipe
from harness.training.split import decoder_layers
from tests.tiny_gemma import make_tiny_gemma
from tests.tiny_models import ARCHITECTURES, make_tiny_gemma_with_vision, make_tiny_model

CPU = torch.device("cpu")
WINDOW = 16  # of the tiny model: every prompt is longer
KINDS: dict[str, HeadKind] = {
    "terra": "classification",
    "muserc": "sigmoid",
    "parus": "ranking",
    "danetqa": "likelihood",
    "rucos": "ranking",
    "russe": "pair",
}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_gemma(tmp_path_factory.mktemp("models") / "tiny", max_position_embeddings=4096)


@pytest.fixture(scope="module")
def layout() -> HeadLayout:
    return make_layout(KINDS)


@pytest.fixture(scope="module")
def examples(model_dir: Path, layout: HeadLayout) -> dict[str, list[Example]]:
    """Two documents a task from the mini set."""
    tokenizer = load_tokenizer(model_dir)
    encoding = Encoding(TextEncoder(tokenizer), Template(tokenizer, applied=False), layout, max_tokens=4096)
    tasks = load_tasks(choose(list(KINDS), "russe=texts"), data="mini", split="validation")
    found = {}
    for name in KINDS:
        rows = [document.row() for document in cached_split(name, "train", "mini").documents]
        found[name] = make_examples(get_task(name), tasks[f"rsg_{name}"], rows, encoding)[:2]
    return found


def recipe_of(**changes: Any) -> Recipe:
    """A recipe for one step on all kinds of heads."""
    tasks = {task: TaskRecipe(head=kind) for task, kind in KINDS.items()}
    return Recipe(
        **{"model": "tiny", "tasks": tasks, "steps": 1, "learning_rate": 1e-3, "heads_learning_rate": 1e-3, **changes}
    )


@pytest.fixture
def model(model_dir: Path, layout: HeadLayout) -> MultitaskModel:
    """Three of eight layers frozen, LoRA above with weights that do something, in float32."""
    recipe = recipe_of(frozen_layers=3, lora=LoraRecipe(rank=4, alpha=8))
    built, _ = build_model(recipe, model_dir, layout, CPU, torch.float32)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return built


def sequences_of(example: Example) -> Iterator[tuple[list[int], list[tuple[int, int]]]]:
    """Each choice's own tokens, and (position, token or row) of what it predicts, read back from the packing."""
    packed = example.packed
    for choice in range(packed.sequences):
        predictions = packed.predictions[packed.predictions[:, 2] == choice]
        last = max(predictions[:, 0], key=lambda index: packed.positions[index])
        branch = [index for index in range(last + 1) if packed.subtree_end[index] > last]
        assert [packed.positions[index] for index in branch] == list(range(len(branch)))
        places = [(int(packed.positions[index]), int(token)) for index, token, _ in predictions]
        yield [int(packed.tokens[index]) for index in branch], places


def plain_scores(model: MultitaskModel, example: Example) -> torch.Tensor:
    """Scores of all choices by transformers' own forward pass, one sequence at a time; a pair head's by definition."""
    text_model = model.language_model.model
    ours = text_model.config._attn_implementation
    text_model.config._attn_implementation = "eager"
    weight, bias = model.heads()
    scores = []
    try:
        for tokens, places in sequences_of(example):
            states = text_model(input_ids=torch.tensor([tokens]), use_cache=False).last_hidden_state[0]
            if model.layout.kinds[example.task] == "likelihood":
                logprobs = functional.log_softmax(model.language_model.lm_head(states), dim=-1)
                scores.append(torch.stack([logprobs[position, token] for position, token in places]).sum())
            else:
                [(position, row)] = places
                scores.append(states[position] @ weight[row] + bias[row])
    finally:
        text_model.config._attn_implementation = ours
    if model.layout.kinds[example.task] != "pair":
        return torch.stack(scores)
    choices = []
    for texts in torch.stack(scores).split(2 * len(model.layout.rows_of(example.task))):
        (near, *features), (other_near, *other_features) = texts.chunk(2)
        distance = sum((one - other) ** 2 for one, other in zip(features, other_features, strict=True))
        choices += [torch.zeros(()), near + other_near - distance]
    return torch.stack(choices)


def packed_scores(model: MultitaskModel, batch: list[Example]) -> torch.Tensor:
    inputs = make_inputs([example.packed for example in batch], model.windows, CPU)
    return model(inputs, model.lower(inputs), batch[0].task)


def mean_loss(scores: torch.Tensor, batch: list[Example]) -> torch.Tensor:
    questions, right, count = batch_targets(batch, CPU)
    return question_losses(scores, questions, right, count).mean()


def gradients(model: MultitaskModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {name: value for name, value in zip(parameters, found, strict=True) if value is not None}


def assert_same_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    # A ranking head's bias moves all candidates alike: terms of up to 1 cancel, and what remains is their rounding.
    for name, gradient in expected.items():
        scale = float(gradient.abs().max())
        np.testing.assert_allclose(found[name], gradient, atol=2e-4 * scale + 1e-6, err_msg=name)


@pytest.mark.parametrize("task", KINDS)
def test_a_packed_batch_scores_as_every_sequence_alone(
    model: MultitaskModel, examples: dict[str, list[Example]], task: str
) -> None:
    batch = examples[task]
    assert max(len(example.packed) for example in batch) > 2 * WINDOW
    with torch.no_grad():
        expected = torch.cat([plain_scores(model, example) for example in batch])
        found = packed_scores(model, batch)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("task", KINDS)
def test_the_loss_and_its_gradients_are_those_of_the_sequences_alone(
    model: MultitaskModel, examples: dict[str, list[Example]], task: str
) -> None:
    batch = examples[task]
    expected = mean_loss(torch.cat([plain_scores(model, example) for example in batch]), batch)
    found = mean_loss(packed_scores(model, batch), batch)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)
    wanted = gradients(model, expected)
    assert any("lora_A" in name for name in wanted)
    assert_same_gradients(gradients(model, found), wanted)


@pytest.mark.slow  # torch.compile takes most of a minute
def test_compiled_layers_compute_the_same_and_one_graph_serves_every_length(
    model: MultitaskModel, examples: dict[str, list[Example]]
) -> None:
    tasks = ("terra", "danetqa", "russe")
    expected = {task: packed_scores(model, examples[task]) for task in tasks}
    wanted = {task: gradients(model, mean_loss(expected[task], examples[task])) for task in tasks}
    torch._dynamo.reset()  # what other tests of this process have compiled would serve as well
    torch._dynamo.utils.counters.clear()
    model.compile_layers()
    graphs = []
    for task in tasks:
        found = packed_scores(model, examples[task])
        torch.testing.assert_close(found, expected[task], atol=2e-4, rtol=1e-4)
        assert_same_gradients(gradients(model, mean_loss(found, examples[task])), wanted[task])
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] > 0
    assert graphs == [graphs[0]] * len(tasks)


def test_packing_shares_the_passage(examples: dict[str, list[Example]]) -> None:
    for task in ("muserc", "rucos"):
        for example in examples[task]:
            alone = sum(len(tokens) for tokens, _ in sequences_of(example))
            assert len(example.packed) < alone / 2, task


def test_frozen_layers_get_no_gradient(model: MultitaskModel, examples: dict[str, list[Example]]) -> None:
    found = gradients(model, mean_loss(packed_scores(model, examples["terra"]), examples["terra"]))
    numbers = {int(name.split("layers.")[1].split(".")[0]) for name in found if "layers." in name}
    assert numbers == set(range(3, 8))


def test_a_token_sees_its_own_branch_within_the_window_and_nothing_else(examples: dict[str, list[Example]]) -> None:
    [batch] = [stack([example.packed for example in examples["muserc"]])]
    packed = examples["muserc"][0].packed
    for window in (None, WINDOW):
        mask = batch.mask(window)[0, 0]
        for tokens, places in sequences_of(examples["muserc"][0]):
            position, row = places[0]
            [query] = [i for i, t, _ in packed.predictions.tolist() if packed.positions[i] == position and t == row][:1]
            seen = np.flatnonzero(mask[query])
            first = 0 if window is None else max(0, position + 1 - window)
            assert list(packed.positions[seen]) == list(range(first, position + 1))
            if window is None and query == packed.predictions[0, 0]:
                assert list(packed.tokens[seen]) == tokens[: position + 1]


def test_heads_started_from_verbalizers_rank_labels_as_the_language_model_does(
    model: MultitaskModel, examples: dict[str, list[Example]], model_dir: Path
) -> None:
    tokenizer: Any = load_tokenizer(model_dir)
    words = [tokenizer(f" {word}", add_special_tokens=False).input_ids for word in ("да", "нет")]
    assert all(len(word) == 1 for word in words)
    with torch.no_grad():
        model.head_weight.zero_()
        model.head_bias.zero_()
        model.start_from_verbalizers("terra", words)
        model.start_from_verbalizers("muserc", words[::-1])
        for task, order in (("terra", words), ("muserc", words[::-1])):
            example = examples[task][0]
            scores = packed_scores(model, [example])
            [(tokens, places), *_] = sequences_of(example)
            states = model.language_model.model(input_ids=torch.tensor([tokens]), use_cache=False).last_hidden_state
            logits = model.language_model.lm_head(states)[0, places[0][0]]
            torch.testing.assert_close(
                scores[1] - scores[0], logits[order[1][0]] - logits[order[0][0]], atol=2e-4, rtol=1e-4
            )


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "gemma3 with pictures"])
def test_every_architecture_is_trained_on_packed_questions_or_refused(
    architecture: str, layout: HeadLayout, tmp_path: Path
) -> None:
    """Split at no, some and all layers, with LoRA and without; the check compares it with transformers' own pass."""
    directory = (
        make_tiny_model(architecture, tmp_path)
        if architecture in ARCHITECTURES
        else make_tiny_gemma_with_vision(tmp_path)
    )
    encoder = TextEncoder(load_tokenizer(directory))
    for frozen, lora in ((0, LoraRecipe(rank=2)), (2, LoraRecipe(rank=2)), (2, None), (4, None)):
        recipe = recipe_of(frozen_layers=frozen, lora=lora)
        if architecture in ("bloom", "mamba", "qwen3_next"):
            with pytest.raises(UserError, match="packed into one row"):
                build_model(recipe, directory, layout, CPU, torch.float32)
            continue
        built, wrapper = build_model(recipe, directory, layout, CPU, torch.float32)
        check_packing(built, encoder, torch.float32)
        assert (wrapper is None) == (lora is None)
        _, layers = decoder_layers(built.language_model.get_decoder())
        changed = {
            (number, "lora_" in name)
            for number, layer in enumerate(layers)
            for name, value in layer.named_parameters()
            if value.requires_grad
        }
        assert changed == {(number, lora is not None) for number in range(frozen, len(layers))}


def test_what_cannot_be_split_is_refused_with_the_difference(model: MultitaskModel, model_dir: Path) -> None:
    model.windows = dict.fromkeys(model.windows, 4)
    with pytest.raises(UserError, match=r"differ by \d+\.\d+ nats"):
        check_packing(model, TextEncoder(load_tokenizer(model_dir)), torch.float32)


def test_compiled_layers_with_other_gradients_are_refused(
    model: MultitaskModel, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As PyTorch 2.13 compiles Falcon: the same states, other gradients."""

    def compile_wrongly(forward: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
        def compiled(states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            found = forward(states, *args, **kwargs)
            return found.detach() + (found - found.detach()) / 2

        return compiled

    monkeypatch.setattr(torch, "compile", compile_wrongly)
    with pytest.raises(UserError, match=r"changes the gradients of this model by \d+%") as caught:
        compile_and_check(model, TextEncoder(load_tokenizer(model_dir)), torch.float32)
    assert "compile: false" in caught.value.hint


def test_dropout_never_reaches_what_is_frozen(layout: HeadLayout, tmp_path: Path) -> None:
    """GPT-2's embeddings and layers have dropout; the kept output of frozen layers must not depend on it."""
    model_dir = make_tiny_model("gpt2", tmp_path, resid_pdrop=0.5, embd_pdrop=0.5)
    built, _ = build_model(recipe_of(frozen_layers=2, lora=None), model_dir, layout, CPU, torch.float32)
    sequences = encode_pairs(TextEncoder(load_tokenizer(model_dir)), [("Река", " замёрзла")], 64)
    inputs = make_inputs([pack(sequences)], built.windows, CPU)
    lower = built.eval().lower(inputs)
    assert lower is not None
    built.train()
    torch.testing.assert_close(built.lower(inputs), lower, rtol=0, atol=0)
    once, again = (built.read_states(inputs, lower) for _ in range(2))
    assert not torch.equal(once, again)  # the layers above have theirs


def test_lora_on_projections_that_the_model_has_not_names_the_nearest(layout: HeadLayout, tmp_path: Path) -> None:
    recipe = recipe_of(frozen_layers=2, lora=LoraRecipe(targets=("q_proj", "o_prj")))
    with pytest.raises(UserError, match="'o_prj'") as caught:
        check_trainable(recipe, make_tiny_model("llama", tmp_path))
    assert caught.value.hint.startswith("did you mean o_proj")
