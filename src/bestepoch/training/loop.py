"""One epoch of training and one pass of evaluation. Knows neither Hydra nor a tracker."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bestepoch.components.data.augment import Augment
from bestepoch.training.loss import Objective

if TYPE_CHECKING:
    from bestepoch.training.cuda_graph import CUDAGraphStep

OnStepEnd = Callable[[int, "float | Tensor", float], None]
SwitchSection = Callable[[str], None]


class NonFiniteLoss(Exception):
    """The loss became NaN or infinite. On the CPU the update it belongs to was not made."""

    def __init__(self, iteration: int, lr: float, loss: float) -> None:
        super().__init__(
            f"The loss is {loss} at iteration {iteration:,} (learning rate {lr:.3g}); training stopped there."
        )


def train_epoch(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    batches: Iterable[Tensor],
    augment: Augment,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    lr_at: Callable[[int], float],
    first_iteration: int,
    on_step_end: OnStepEnd,
    switch_section: SwitchSection = lambda _: None,
    graph: CUDAGraphStep | None = None,
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
    context = objective.context

    def forward_backward(index: Tensor, augment: Augment) -> Tensor:
        part = context.shard(index)
        inputs, targets = augment(images[part], part), labels[part]
        switch_section("forward_backward")
        loss = objective(network(inputs), targets, len(index))
        total = context.all_reduce_mean(loss)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        return total.detach()

    network.train()
    switch_section("data")
    for iteration, index in enumerate(batches, first_iteration):
        if graph is None:
            loss = forward_backward(index, augment)
        else:
            switch_section("forward_backward")  # a replayed batch does not come by there, and it is what is waited for
            loss = graph(forward_backward, index, augment)
        lr = lr_at(iteration)
        value: float | Tensor = loss.item() if loss.device.type == "cpu" else loss
        if isinstance(value, float) and not math.isfinite(value):
            raise NonFiniteLoss(iteration, lr, value)
        switch_section("optimizer")
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        switch_section("tracking")
        on_step_end(iteration, value, lr)
        switch_section("data")
