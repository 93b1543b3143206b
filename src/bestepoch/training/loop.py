"""One epoch of training and one pass of evaluation. Knows neither Hydra nor a tracker."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bestepoch.components.data.split import Augment
from bestepoch.training.distributed import World

if TYPE_CHECKING:
    from bestepoch.training.cuda_graph import Graph

After = Callable[[int, "float | Tensor", float], None]
Switch = Callable[[str], None]


class NonFiniteLoss(Exception):
    """The loss became NaN or infinite. On the CPU the update it belongs to was not made."""

    def __init__(self, iteration: int, lr: float, loss: float) -> None:
        super().__init__(
            f"The loss is {loss} at iteration {iteration:,} (learning rate {lr:.3g}); training stopped there."
        )


@dataclass(frozen=True)
class Objective:
    """What an update minimises: cross-entropy with label smoothing, plus ``l1`` times the sum of |weight|."""

    label_smoothing: float
    l1: float
    weights: tuple[Tensor, ...]
    world: World = field(default_factory=World)

    def __call__(self, logits: Tensor, labels: Tensor, batch: int | None = None) -> Tensor:
        """(n, classes) and (n,) to a scalar, in nats an image.

        Args:
            batch: images in the batch that these are this process's part of, which may be none; the mean over the
                processes is the batch's own loss.
        """
        if self.world.size == 1:
            loss = cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        else:
            loss = cross_entropy(logits, labels, label_smoothing=self.label_smoothing, reduction="sum")
            loss = loss * (self.world.size / (batch or len(labels)))
        if self.l1:
            loss = loss + self.l1 * sum(w.abs().sum() for w in self.weights)
        return loss


def train_epoch(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    batches: Iterable[Tensor],
    augment: Augment,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    rate: Callable[[int], float],
    first: int,
    after: After,
    account: Switch = lambda _: None,
    graph: Graph | None = None,
) -> None:
    """Update once for each batch.

    Args:
        images, labels: the whole training set, on the device.
        batches: which of them to take, an index tensor for each update; of several processes each has its part.
        rate: the learning rate of an update, by its number.
        first: the number of the first update.
        after: called with (iteration, loss, learning rate) after each update; on a GPU the loss is a tensor that
            stays there, so that the device is not waited for.
        account: told what time is spent on from now: data, forward_backward, optimizer, tracking (which is `after`).
        graph: where batches are replayed on a GPU; by default each is computed step by step.

    Raises:
        NonFiniteLoss: before the update that would spoil the weights (where the loss is on the CPU).
    """
    world = objective.world

    def forward_backward(index: Tensor, augment: Augment) -> Tensor:
        part = world.part(index)
        inputs, targets = augment(images[part], part), labels[part]
        account("forward_backward")
        loss = objective(network(inputs), targets, len(index))
        total = world.mean(loss)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        return total.detach()

    network.train()
    account("data")
    for iteration, index in enumerate(batches, first):
        if graph is None:
            loss = forward_backward(index, augment)
        else:
            account("forward_backward")  # a replayed batch does not come by there, and it is what is waited for
            loss = graph(forward_backward, index, augment)
        lr = rate(iteration)
        value: float | Tensor = loss.item() if loss.device.type == "cpu" else loss
        if isinstance(value, float) and not math.isfinite(value):
            raise NonFiniteLoss(iteration, lr, value)
        account("optimizer")
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        account("tracking")
        after(iteration, value, lr)
        account("data")


@torch.inference_mode()
def predict(network: nn.Module, images: Tensor, batch_size: int | None = None) -> Tensor:
    """Logits (n, classes), in evaluation mode, on the device of the network."""
    network.eval()
    device = next(network.parameters()).device
    if batch_size is None:
        batch_size = 200 if device.type == "cpu" else 2000  # what a processor's caches hold is done twice as fast
    return torch.cat([network(part.to(device)) for part in torch.split(images, batch_size)])


@dataclass(frozen=True)
class Fared:
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


def join(parts: list[Fared]) -> Fared:
    """What the processes found, each of its part."""
    if len(parts) == 1:
        return parts[0]
    columns = zip(*((part.losses, part.correct, part.predicted) for part in parts), strict=True)
    return Fared(*(torch.cat(column) for column in columns))


def score(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Fared:
    """(n, classes) logits against (n,) labels.

    A network that was trained to be less than sure scores badly by plain cross-entropy, and by how much it does so says
    nothing of its errors: the epoch that is best by it is another than the one with the fewest.
    """
    labels = labels.to(logits.device)
    losses = cross_entropy(logits.double(), labels, reduction="none", label_smoothing=label_smoothing)
    predicted = logits.argmax(1)
    return Fared(losses.cpu(), (predicted == labels).cpu(), predicted.cpu())


def least_loss(label_smoothing: float, classes: int) -> float:
    """What no network can be below, in nats an image: the entropy of the smoothed target; 0 without smoothing."""
    shares = torch.full((classes,), label_smoothing / classes, dtype=torch.float64)
    shares[0] += 1 - label_smoothing
    return float(-torch.special.xlogy(shares, shares).sum())
