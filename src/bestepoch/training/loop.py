"""One epoch of updates. Knows neither Hydra nor a tracker."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from bestepoch.components.data.augment import Augment
from bestepoch.training.loss import Objective

if TYPE_CHECKING:
    from bestepoch.training.cuda_graph import CUDAGraphStep


class NonFiniteLoss(Exception):
    """The loss became NaN or infinite. On the CPU, the update that it belongs to was not made."""

    def __init__(self, iteration: int, lr: float, loss: float) -> None:
        super().__init__(
            f"The loss is {loss} at iteration {iteration:,} (learning rate {lr:.3g}); training stopped there."
        )


Scalar = float | Tensor


class StepCallback(Protocol):
    """What `train_epoch` calls."""

    def on_step_end(self, iteration: int, loss: Scalar, lr: float, grad_norm: Scalar | None) -> None:
        """Record an update; on a GPU, scalars are tensors that stay there, so that nothing waits for them."""

    def switch_section(self, section: str) -> None:
        """Count the time from now on as data, forward_backward, optimizer or tracking."""


@dataclass(frozen=True)
class Learner:
    """The network as training calls it, and what updates it.

    Args:
        network: maps images `(N, H, W)` to logits `(N, classes)`.
        objective: maps logits and labels to the scalar that an update minimises.
        optimizer: updates the weights of the network.
        graph: replays a step on a GPU; None computes each step operation by operation.
        grad_norm: whether to compute the L2 norm of the objective's gradient in all weights at each update.
    """

    network: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    graph: CUDAGraphStep | None = None
    grad_norm: bool = False


@dataclass(frozen=True)
class EpochData:
    """The training data of one epoch, on the device.

    Args:
        images: all training images, uint8 `(num_images, H, W)`.
        labels: their labels, int64 `(num_images,)`.
        batches: indices into ``images``, an int64 tensor for each update. Each process trains on its shard of a batch.
        augment: varies the images of a batch.
    """

    images: Tensor
    labels: Tensor
    batches: Iterable[Tensor]
    augment: Augment


def train_epoch(
    learner: Learner, data: EpochData, lr_at: Callable[[int], float], first_iteration: int, callback: StepCallback
) -> None:
    """Make one update for each batch.

    Args:
        learner: the network and what updates it.
        data: the images and batches.
        lr_at: gives the learning rate of an update by its iteration.
        first_iteration: the iteration of the first update.
        callback: is called after each update, and whenever the kind of work changes.

    Raises:
        NonFiniteLoss: on the CPU, before the update that would spoil the weights.
    """
    network, objective, optimizer, graph = learner.network, learner.objective, learner.optimizer, learner.graph
    context = objective.context
    weights = tuple(network.parameters()) if learner.grad_norm else ()

    def forward_backward(index: Tensor, augment: Augment) -> Tensor:
        shard = context.shard(index)
        inputs, targets = augment(data.images[shard], shard), data.labels[shard]
        callback.switch_section("forward_backward")
        loss = objective(network(inputs), targets, len(index))
        mean_loss = context.all_reduce_mean(loss).detach()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if not weights:
            return mean_loss.unsqueeze(0)
        norm = get_total_norm([weight.grad for weight in weights if weight.grad is not None])
        return torch.stack([mean_loss, norm])

    network.train()
    callback.switch_section("data")
    for iteration, index in enumerate(data.batches, first_iteration):
        if graph is None:
            scalars = forward_backward(index, data.augment)
        else:
            callback.switch_section("forward_backward")  # a replayed step does not call it
            scalars = graph(forward_backward, index, data.augment)
        lr = lr_at(iteration)
        values: Sequence[Scalar] = scalars.tolist() if scalars.device.type == "cpu" else scalars.unbind()
        loss, grad_norm = values[0], values[1] if weights else None
        if isinstance(loss, float) and not math.isfinite(loss):
            raise NonFiniteLoss(iteration, lr, loss)
        callback.switch_section("optimizer")
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        callback.switch_section("tracking")
        callback.on_step_end(iteration, loss, lr, grad_norm)
        callback.switch_section("data")


def require_finite(losses: list[float], begin: int, lr_at: Callable[[int], float]) -> list[float]:
    """Return the losses of the iterations after ``begin``.

    Raises:
        NonFiniteLoss: names the first update whose loss is NaN or infinite.
    """
    for iteration, loss in enumerate(losses, begin + 1):
        if not math.isfinite(loss):
            raise NonFiniteLoss(iteration, lr_at(iteration), loss)
    return losses


def mean_loss(losses: list[float], batches: Sequence[Sized]) -> float:
    """Return the mean over images: a smaller last batch counts for its number of images."""
    sizes = [len(batch) for batch in batches]
    return math.fsum(loss * n for loss, n in zip(losses, sizes, strict=True)) / sum(sizes)
