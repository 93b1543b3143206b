"""The training loss."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor
from torch.nn.functional import cross_entropy

from bestepoch.training.distributed import DistributedContext


@dataclass(frozen=True)
class Objective:
    """Cross-entropy with label smoothing, plus ``l1`` times the sum of the absolute ``weights``."""

    label_smoothing: float
    l1: float
    weights: tuple[Tensor, ...]
    context: DistributedContext = field(default_factory=DistributedContext)

    def __call__(self, logits: Tensor, labels: Tensor, batch: int | None = None) -> Tensor:
        """Return the loss as a scalar tensor, in nats per image.

        With several processes, the mean of their return values is the loss of the whole batch.

        Args:
            logits: Shape ``(N, classes)``; ``N`` may be 0 on some of several processes.
            labels: Shape ``(N,)``.
            batch: Number of images in the whole batch, over all processes. Default: ``N``.
        """
        if self.context.size == 1:
            loss = cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        else:
            loss = cross_entropy(logits, labels, label_smoothing=self.label_smoothing, reduction="sum")
            loss = loss * (self.context.size / (batch or len(labels)))
        if self.l1:
            loss = loss + self.l1 * sum(w.abs().sum() for w in self.weights)
        return loss
