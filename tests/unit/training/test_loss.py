"""The loss against torch's own losses, values and gradients."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from harness.scoring.encoding import ScoredSequence
from harness.scoring.packing import pack
from harness.training.examples import Example
from harness.training.loss import batch_loss, batch_targets, question_losses, task_weights
from harness.training.recipe import Recipe

CPU = torch.device("cpu")


def random(*shape: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def losses_and_gradient(scores: torch.Tensor, sizes: list[int], right: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Losses of questions with `sizes` choices each, and the gradient of a weighted sum of them."""
    scores = scores.clone().requires_grad_()
    questions = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    losses = question_losses(scores, questions, right, len(sizes))
    (gradient,) = torch.autograd.grad(weighted_sum(losses), scores)
    return losses.detach(), gradient


def weighted_sum(losses: torch.Tensor) -> torch.Tensor:
    """So that a gradient put to the wrong question shows."""
    return (losses * torch.arange(1, len(losses) + 1)).sum()


# --- a question's loss ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choices", [2, 3, 7])
def test_one_right_choice_of_several_is_cross_entropy(choices):
    scores = random(20, choices).requires_grad_()
    labels = torch.arange(20) % choices
    expected = functional.cross_entropy(scores, labels, reduction="none")
    (expected_gradient,) = torch.autograd.grad(weighted_sum(expected), scores)
    right = functional.one_hot(labels, choices).bool().flatten()
    losses, gradient = losses_and_gradient(scores.detach().flatten(), [choices] * 20, right)
    torch.testing.assert_close(losses, expected.detach())
    torch.testing.assert_close(gradient, expected_gradient.flatten())


def test_a_choice_against_the_score_zero_is_binary_cross_entropy():
    scores = random(20).requires_grad_()
    labels = torch.arange(20) % 3 % 2
    expected = functional.binary_cross_entropy_with_logits(scores, labels.float(), reduction="none")
    (expected_gradient,) = torch.autograd.grad(weighted_sum(expected), scores)
    pairs = torch.stack([torch.zeros(20), scores.detach()], dim=1).flatten()
    right = torch.stack([labels == 0, labels == 1], dim=1).flatten()
    losses, gradient = losses_and_gradient(pairs, [2] * 20, right)
    torch.testing.assert_close(losses, expected.detach())
    torch.testing.assert_close(gradient[1::2], expected_gradient)


@given(data=st.data(), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_candidates_of_any_number_and_several_right_ones(data, sizes, seed):
    """−log of the summed probability of the right ones, question by question."""
    right = [
        data.draw(st.lists(st.booleans(), min_size=size, max_size=size).filter(any), label="right") for size in sizes
    ]
    scores = random(sum(sizes), seed=seed)
    parts = [part.requires_grad_() for part in scores.clone().split(sizes)]
    expected = torch.stack(
        [-part.softmax(0)[torch.tensor(mask)].sum().log() for part, mask in zip(parts, right, strict=True)]
    )
    expected_gradient = torch.cat(torch.autograd.grad(weighted_sum(expected), parts))
    losses, gradient = losses_and_gradient(scores, sizes, torch.tensor(list(itertools.chain(*right))))
    torch.testing.assert_close(losses, expected.detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-5, rtol=1e-4)


def test_a_question_whose_choices_are_all_right_has_no_loss():
    losses, gradient = losses_and_gradient(random(5), [2, 3], torch.tensor([True, True, True, False, False]))
    assert losses[0] == 0
    assert gradient[:2].tolist() == pytest.approx([0, 0], abs=1e-6)
    assert losses[1] > 0


@pytest.mark.parametrize("level", [-5000.0, 0.0, 5000.0])
def test_large_scores_neither_overflow_nor_vanish(level):
    scores = torch.tensor([1000.0, 0.0, -3.0, 0.0]) + level
    losses, gradient = losses_and_gradient(scores, [2, 2], torch.tensor([False, True, False, True]))
    # float32 tells 5000 from 5000.0005
    assert losses.tolist() == pytest.approx([1000, np.log1p(np.exp(-3))], abs=1e-3)
    assert gradient.tolist() == pytest.approx([1, -1, 2 * 0.0474259, 2 * -0.0474259], abs=1e-5)


def example(right: list[list[bool]]) -> Example:
    """An example of questions with their choices, right or not."""
    flat = [choice for question in right for choice in question]
    packed = pack([ScoredSequence((2, 5, number), 2) for number in range(len(flat))])
    numbers = [number for number, question in enumerate(right) for _ in question]
    return Example("muserc", (), packed, np.array(numbers, dtype=np.int64), np.array(flat, dtype=bool))


def test_questions_are_counted_on_over_the_examples_of_a_batch():
    batch = [example([[True, False], [False, True]]), example([[False, False, True]]), example([[True, False]])]
    questions, right, count = batch_targets(batch, CPU)
    assert questions.tolist() == [0, 0, 1, 1, 2, 2, 2, 3, 3]
    assert right.tolist() == [True, False, False, True, False, False, True, True, False]
    assert count == 4


# --- a batch's loss ---------------------------------------------------------------------------------------------------


def test_class_weights_weigh_as_in_torch():
    scores = random(30, 3)
    labels = torch.arange(30) % 7 % 3
    weights = (0.5, 2.0, 3.5)
    losses = functional.cross_entropy(scores, labels, reduction="none")
    expected = functional.cross_entropy(scores, labels, weight=torch.tensor(weights), reduction="none").mean()
    torch.testing.assert_close(batch_loss(losses, labels, weights, 1.0, None), expected)
    torch.testing.assert_close(batch_loss(losses, labels, weights, 0.25, None), 0.25 * expected)


def test_class_weights_count_in_a_batch_of_one_label_too():
    losses = random(4).abs()
    alike = batch_loss(losses, torch.ones(4, dtype=torch.long), (1.0, 3.0), 1.0, None)
    torch.testing.assert_close(alike, 3 * losses.mean())


def test_without_class_weights_the_loss_is_the_weighted_mean_over_questions():
    losses = torch.tensor([1.0, 2.0, 6.0])
    assert batch_loss(losses, None, None, 1.0, None) == 3
    assert batch_loss(losses, torch.tensor([-1, -1, -1]), None, 0.5, None) == 1.5


@pytest.mark.parametrize("log_variance", [-1.0, 0.0, 0.7])
def test_a_learned_variance_scales_the_loss_and_pays_for_it(log_variance):
    s = torch.tensor(log_variance, requires_grad=True)
    losses = torch.tensor([1.0, 2.0, 6.0], requires_grad=True)
    loss = batch_loss(losses, None, None, 1.0, s)
    assert loss.item() == pytest.approx(3 * np.exp(-log_variance) + log_variance / 2)
    by_losses, by_s = torch.autograd.grad(loss, (losses, s))
    assert by_losses.tolist() == pytest.approx([np.exp(-log_variance) / 3] * 3)
    assert by_s.item() == pytest.approx(-3 * np.exp(-log_variance) + 0.5)


def test_class_weights_and_a_learned_variance_go_together():
    losses, labels = torch.tensor([1.0, 2.0]), torch.tensor([0, 1])
    mean = (1 * 1 + 2 * 3) / 2
    loss = batch_loss(losses, labels, (1.0, 3.0), 2.0, torch.tensor(0.4))
    assert loss.item() == pytest.approx(2 * (np.exp(-0.4) * mean + 0.2))


# --- tasks' weights ---------------------------------------------------------------------------------------------------

DOCUMENTS = {"terra": 400, "rcb": 100, "russe": 2500}


def recipe(**loss: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "model": "embedded",
            "frozen_layers": 0,
            "tasks": {"terra": {"weight": 3.0}, "rcb": {}, "russe": {"weight": 0.5}},
            "steps": 1,
            "learning_rate": 1.0,
            "heads_learning_rate": 1.0,
            "loss": loss,
        }
    )


def test_fixed_weights_are_the_recipes():
    assert task_weights(recipe(weights="fixed"), DOCUMENTS) == {"terra": 3.0, "rcb": 1.0, "russe": 0.5}


def test_weights_to_be_learned_start_equal():
    assert task_weights(recipe(weights="uncertainty"), DOCUMENTS) == {"terra": 1.0, "rcb": 1.0, "russe": 1.0}


@pytest.mark.parametrize("temperature", [1, 2, 5.5])
def test_weights_by_size_follow_the_temperature_and_have_a_mean_of_one(temperature):
    weights = task_weights(recipe(weights="size", temperature=temperature), DOCUMENTS)
    assert sum(weights.values()) / 3 == pytest.approx(1)
    assert weights["terra"] / weights["rcb"] == pytest.approx(4 ** (1 / temperature))
    assert weights["russe"] / weights["rcb"] == pytest.approx(25 ** (1 / temperature))
