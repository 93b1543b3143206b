"""The objective that an update minimises."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn.functional import cross_entropy

from bestepoch.training.distributed import DistributedContext

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Objective:
    """What an update minimises: cross-entropy with label smoothing, plus ``l1`` times the sum of |weight|."""

    label_smoothing: float
    l1: float
    weights: tuple[Tensor, ...]
    context: DistributedContext = field(default_factory=DistributedContext)

    def __call__(self, logits: Tensor, labels: Tensor, batch: int | None = None) -> Tensor:
        """(n, classes) and (n,) to a scalar, in nats an image.

        Args:
            batch: images in the batch that these are this process's part of, which may be none; the mean over the
                processes is the batch's own loss.
        """
        if self.context.size == 1:
            loss = cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        else:
            loss = cross_entropy(logits, labels, label_smoothing=self.label_smoothing, reduction="sum")
            loss = loss * (self.context.size / (batch or len(labels)))
        if self.l1:
            loss = loss + self.l1 * sum(w.abs().sum() for w in self.weights)
        return loss
