"""The loss over all tasks: cross-entropy over each question's choices, weighted by task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from harness.training.examples import Example
from harness.training.recipe import DistillationRecipe, Recipe


def question_losses(scores: torch.Tensor, questions: torch.Tensor, right: torch.Tensor, count: int) -> torch.Tensor:
    """Return −log of the probability that a softmax over the question's choices gives to its right ones.

    For one right choice of several this is cross-entropy; for two choices, one of which scores 0, binary cross-entropy.

    Args:
        scores: float32 [choices].
        questions: The question of each choice, int64 [choices].
        right: bool [choices].
        count: Number of questions.

    Returns:
        float32 [questions].
    """
    return _logsumexp_by(scores, questions, count) - _logsumexp_by(scores[right], questions[right], count)


def _logsumexp_by(scores: torch.Tensor, groups: torch.Tensor, count: int) -> torch.Tensor:
    highest = torch.full((count,), -torch.inf, device=scores.device)
    highest = highest.scatter_reduce(0, groups, scores.detach(), "amax")
    total = torch.zeros(count, device=scores.device).index_add(0, groups, torch.exp(scores - highest[groups]))
    return torch.log(total) + highest


def distilled_losses(
    losses: torch.Tensor,
    scores: torch.Tensor,
    soft: torch.Tensor,
    questions: torch.Tensor,
    distillation: DistillationRecipe,
) -> torch.Tensor:
    """Return the questions' losses, mixed with a teacher's soft labels where they have any.

    The loss is (1 − w) · loss + w · T² · KL(teacher_T ‖ student_T), where p_T is the distribution p softened:
    p ** (1 / T), normalised (Hinton et al. 2015, https://arxiv.org/abs/1503.02531). T² keeps the gradients' size
    whatever T is.

    Args:
        losses: Cross-entropies, float32 [questions].
        scores: float32 [choices].
        soft: The teacher's probabilities, float32 [choices]; zeros in a question without a soft label.
        questions: The question of each choice, int64 [choices].
        distillation: w and T.

    Returns:
        float32 [questions].
    """
    count, temperature, weight = len(losses), distillation.temperature, distillation.weight
    powers = soft ** (1 / temperature)
    totals = torch.zeros_like(losses).index_add(0, questions, powers)
    teacher = powers / totals.clamp_min(torch.finfo(totals.dtype).tiny)[questions]
    softened = scores / temperature
    student = softened - _logsumexp_by(softened, questions, count)[questions]
    parts = torch.xlogy(teacher, teacher) - teacher * student
    divergence = torch.zeros_like(losses).index_add(0, questions, parts)
    return torch.where(totals > 0, (1 - weight) * losses + weight * temperature**2 * divergence, losses)


def batch_soft_labels(examples: Sequence[Example], device: torch.device) -> torch.Tensor | None:
    """Return the teacher's probabilities of a batch's choices, float32 [choices]; None where no document has any."""
    if all(example.soft is None for example in examples):
        return None
    soft = [
        np.zeros(len(example.right), dtype=np.float32) if example.soft is None else example.soft for example in examples
    ]
    return torch.from_numpy(np.concatenate(soft)).to(device)


def batch_targets(examples: Sequence[Example], device: torch.device) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return (question of each choice, whether the choice is right, number of questions) of a batch."""
    questions, count = [], 0
    for example in examples:
        questions.append(example.questions + count)
        count += int(example.questions[-1]) + 1
    right = np.concatenate([example.right for example in examples])
    return torch.from_numpy(np.concatenate(questions)).to(device), torch.from_numpy(right).to(device), count


def task_weights(recipe: Recipe, documents: Mapping[str, int]) -> dict[str, float]:
    """Return the weight of each task's loss before anything is learned.

    Args:
        recipe: Says how they are weighted.
        documents: Number of examples by task.
    """
    if recipe.loss.weights == "fixed":
        return {task: part.weight for task, part in recipe.tasks.items()}
    if recipe.loss.weights == "uncertainty":
        return dict.fromkeys(recipe.tasks, 1.0)
    sizes = {task: documents[task] ** (1 / recipe.loss.temperature) for task in recipe.tasks}
    mean = sum(sizes.values()) / len(sizes)
    return {task: size / mean for task, size in sizes.items()}


def batch_loss(
    losses: torch.Tensor,
    labels: torch.Tensor | None,
    class_weights: Sequence[float] | None,
    weight: float,
    log_variance: torch.Tensor | None,
) -> torch.Tensor:
    """Return a batch's part of the loss: its questions' mean, weighted by class and by task.

    Args:
        losses: float32 [questions].
        labels: int64 [questions], where class weights are given.
        class_weights: Factors of a question's loss by its label.
        weight: Of the task.
        log_variance: The task's learned log σ², with which its part is exp(−s) · loss + s / 2 (Kendall et al. 2018).
    """
    if class_weights is not None and labels is not None:
        # Not divided by the sum of the batch's weights: in a batch of few documents that would undo them.
        mean = (losses * torch.tensor(list(class_weights), device=losses.device)[labels]).mean()
    else:
        mean = losses.mean()
    if log_variance is None:
        return weight * mean
    return weight * (torch.exp(-log_variance) * mean + log_variance / 2)
