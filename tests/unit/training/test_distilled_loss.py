"""The loss with soft labels against a direct computation, question by question."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from harness.training.loss import distilled_losses, question_losses
from harness.training.recipe import DistillationRecipe

SIZES = [2, 3, 5, 2]


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores, questions, right answers and soft labels; the last question has none of these."""
    generator = torch.Generator().manual_seed(seed)
    questions = torch.repeat_interleave(torch.arange(len(SIZES)), torch.tensor(SIZES))
    scores = 3 * torch.randn(sum(SIZES), generator=generator)
    right = torch.zeros(sum(SIZES), dtype=torch.bool)
    right[torch.tensor([0, *np.cumsum(SIZES)[:-1]])] = True
    parts = [softmax(2 * torch.randn(size, generator=generator), 0) for size in SIZES]
    parts[1][1] = 0  # a choice that the teacher rules out
    parts[1] /= parts[1].sum()
    return scores, questions, right, torch.cat([*parts[:-1], torch.zeros(SIZES[-1])])


@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0.5, 8))
def test_each_question_has_the_loss_of_hinton_and_others(seed: int, weight: float, temperature: float) -> None:
    scores, questions, right, soft = batch(seed)
    plain = question_losses(scores, questions, right, len(SIZES))
    recipe = DistillationRecipe(weight=weight, temperature=temperature)
    found = distilled_losses(plain, scores, soft, questions, recipe)
    for number, (logits, teacher) in enumerate(zip(scores.split(SIZES), soft.split(SIZES), strict=True)):
        expected = cross_entropy(logits[None], torch.tensor([0]))
        if teacher.sum():
            softened = softmax(torch.log(teacher) / temperature, 0)
            divergence = kl_div(log_softmax(logits / temperature, 0), softened, reduction="sum")
            expected = (1 - weight) * expected + weight * temperature**2 * divergence
        assert found[number] == pytest.approx(float(expected), rel=1e-4, abs=1e-5)


def test_a_certain_teacher_without_softening_is_a_label() -> None:
    scores, questions, right, _ = batch(1)
    plain = question_losses(scores, questions, right, len(SIZES))
    found = distilled_losses(plain, scores, right.float(), questions, DistillationRecipe(weight=1, temperature=1))
    torch.testing.assert_close(found, plain)


def test_without_weight_and_without_labels_nothing_changes() -> None:
    scores, questions, right, soft = batch(2)
    plain = question_losses(scores, questions, right, len(SIZES))
    for labels, weight in ((soft, 0.0), (torch.zeros_like(soft), 1.0)):
        found = distilled_losses(plain, scores, labels, questions, DistillationRecipe(weight=weight))
        torch.testing.assert_close(found, plain)


def test_the_gradient_is_finite_and_vanishes_where_the_student_says_what_the_teacher_says() -> None:
    _, questions, right, soft = batch(3)
    scores = torch.log(soft.clamp_min(1e-20)).requires_grad_()
    plain = question_losses(scores, questions, right, len(SIZES))
    labelled = DistillationRecipe(weight=1, temperature=1)
    distilled_losses(plain, scores, soft, questions, labelled)[: len(SIZES) - 1].sum().backward()
    assert scores.grad is not None
    torch.testing.assert_close(scores.grad, torch.zeros_like(scores), atol=1e-6, rtol=0)
    steep = torch.tensor([1e4, -1e4], requires_grad=True)
    pair = torch.zeros(2, dtype=torch.int64)
    loss = question_losses(steep, pair, torch.tensor([True, False]), 1)
    distilled_losses(loss, steep, torch.tensor([0.0, 1.0]), pair, DistillationRecipe()).sum().backward()
    assert torch.isfinite(steep.grad).all()  # type: ignore[arg-type]
