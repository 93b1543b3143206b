"""Score logits against labels: per-example losses and accuracy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


@dataclass(frozen=True)
class ExampleResults:
    """Per-example results; each field is a CPU tensor of shape ``(N,)``.

    Attributes:
        losses: plain cross-entropy in nats, float64, so that losses compare whatever the training minimised.
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


def score_examples(logits: Tensor, labels: Tensor) -> ExampleResults:
    """Score logits ``(N, C)`` against labels ``(N,)``."""
    labels = labels.to(logits.device)
    losses = cross_entropy(logits.double(), labels, reduction="none")
    predicted = logits.argmax(1)
    return ExampleResults(losses.cpu(), (predicted == labels).cpu(), predicted.cpu())
