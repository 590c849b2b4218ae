"""Losses of students: what networks learn from a teacher's logits or from stored soft labels."""

import torch
import torch.nn.functional as F
from torch import Tensor


def soften(logits: Tensor, temperature: float) -> Tensor:
    """Probabilities of logits ``(B, classes)`` at a temperature (arXiv 1503.02531)."""
    return torch.softmax(logits / temperature, 1)


def divergence(logits: Tensor, probabilities: Tensor, temperature: float) -> Tensor:
    """Mean Kullback-Leibler divergence of a student's softened probabilities from its teacher's.

    Args:
        logits: of the student, ``(B, classes)`` float32.
        probabilities: of the teacher, ``(B, classes)``; each row's sum is 1, zeros are allowed.
        temperature: divides the student's logits. The result is not multiplied by its square.
    """
    student = torch.log_softmax(logits / temperature, 1)
    return F.kl_div(student, probabilities, reduction="batchmean")


def mix_labels(labels: Tensor, pasted: Tensor, kept: Tensor) -> Tensor:
    """Soft labels of mixed images: both shares of :func:`m3d_fast.augment.cutmix`.

    Args:
        labels: of the images, probabilities ``(B, classes)``.
        pasted: of the boxes, ``(B, classes)``.
        kept: share of each image that is kept, ``()``.
    """
    return torch.lerp(pasted, labels, kept)
