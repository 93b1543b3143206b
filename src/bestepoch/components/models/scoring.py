"""Score logits against labels: per-example losses, accuracy and the floor of a smoothed loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


@dataclass(frozen=True)
class ExampleResults:
    """Per-example results; each field is a CPU tensor of shape ``(N,)``.

    Attributes:
        losses: cross-entropy in nats, float64, with training's label smoothing and without penalties.
        correct: whether the predicted class is the label, bool.
        predicted: the class with the largest logit, int64.
    """

    losses: Tensor
    correct: Tensor
    predicted: Tensor

    @property
    def loss(self) -> float:
        """Mean loss, in nats."""
        return self.losses.mean().item()

    @property
    def accuracy(self) -> float:
        """Fraction of correct predictions, 0 to 1."""
        return self.correct.double().mean().item()


def concat(parts: list[ExampleResults]) -> ExampleResults:
    """Concatenate the results of all ranks, in the order of ``parts``."""
    if len(parts) == 1:
        return parts[0]
    columns = zip(*((part.losses, part.correct, part.predicted) for part in parts), strict=True)
    return ExampleResults(*(torch.cat(column) for column in columns))


def score_examples(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> ExampleResults:
    """Score logits ``(N, C)`` against labels ``(N,)``.

    ``label_smoothing`` is that of training: plain cross-entropy of a smoothed model is high by design and ranks epochs
    differently from their errors.
    """
    labels = labels.to(logits.device)
    losses = cross_entropy(logits.double(), labels, reduction="none", label_smoothing=label_smoothing)
    predicted = logits.argmax(1)
    return ExampleResults(losses.cpu(), (predicted == labels).cpu(), predicted.cpu())


def smoothed_ce_floor(label_smoothing: float, classes: int) -> float:
    """Return the least possible loss, in nats: the entropy of the smoothed target, 0 without smoothing."""
    target = torch.full((classes,), label_smoothing / classes, dtype=torch.float64)
    target[0] += 1 - label_smoothing
    return float(-torch.special.xlogy(target, target).sum())
