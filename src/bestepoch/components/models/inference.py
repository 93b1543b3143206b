"""Logits of a network and per-example losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

if TYPE_CHECKING:
    pass


@torch.inference_mode()
def predict(network: nn.Module, images: Tensor, batch_size: int | None = None) -> Tensor:
    """Logits (n, classes), in evaluation mode, on the device of the network."""
    network.eval()
    device = next(network.parameters()).device
    if batch_size is None:
        batch_size = 200 if device.type == "cpu" else 2000  # what a processor's caches hold is done twice as fast
    return torch.cat([network(part.to(device)) for part in torch.split(images, batch_size)])


@dataclass(frozen=True)
class ExampleResults:
    """How each image fared, (n,) each and on the CPU.

    Losses are cross-entropy in nats, with the label smoothing of training and without penalties; an image is correct
    when its class is the most likely one, which is ``predicted``.
    """

    losses: Tensor
    correct: Tensor
    predicted: Tensor

    @property
    def loss(self) -> float:
        """The mean, in nats."""
        return self.losses.mean().item()

    @property
    def accuracy(self) -> float:
        """The share of correct ones, 0 to 1."""
        return self.correct.double().mean().item()


def concat(parts: list[ExampleResults]) -> ExampleResults:
    """What the processes found, each of its part."""
    if len(parts) == 1:
        return parts[0]
    columns = zip(*((part.losses, part.correct, part.predicted) for part in parts), strict=True)
    return ExampleResults(*(torch.cat(column) for column in columns))


def score_examples(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> ExampleResults:
    """(n, classes) logits against (n,) labels.

    A network that was trained to be less than sure scores badly by plain cross-entropy, and by how much it does so says
    nothing of its errors: the epoch that is best by it is another than the one with the fewest.
    """
    labels = labels.to(logits.device)
    losses = cross_entropy(logits.double(), labels, reduction="none", label_smoothing=label_smoothing)
    predicted = logits.argmax(1)
    return ExampleResults(losses.cpu(), (predicted == labels).cpu(), predicted.cpu())


def smoothed_ce_floor(label_smoothing: float, classes: int) -> float:
    """What no network can be below, in nats an image: the entropy of the smoothed target; 0 without smoothing."""
    shares = torch.full((classes,), label_smoothing / classes, dtype=torch.float64)
    shares[0] += 1 - label_smoothing
    return float(-torch.special.xlogy(shares, shares).sum())
