"""Train each option of the menus in this process, and note what it did."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

import live
from bestepoch.base.config.schema import Config
from bestepoch.components.data.augment import Augment
from bestepoch.components.data.order import epoch_permutation
from bestepoch.components.data.split import Split
from bestepoch.components.models import inference, networks, scoring
from bestepoch.components.schedules.learning_rate import learning_rate
from bestepoch.components.schedules.plan import TrainingPlan
from bestepoch.training import loop, optimizers
from bestepoch.training.loop import EpochData, Learner
from bestepoch.training.loss import Objective

CHECKOUT = live.CHECKOUT

CPU = torch.device("cpu")


def entries(menu: str) -> list[str]:
    return sorted(path.stem for path in (CHECKOUT / "conf" / menu).glob("*.yaml"))


EPOCHS, BATCH = 4, 25


@dataclasses.dataclass
class Noted:
    """The losses and rates of all updates so far."""

    losses: list[float]
    rates: list[float]

    def on_step_end(self, iteration: int, loss: Any, lr: float, grad_norm: Any) -> None:
        assert iteration == len(self.losses) + 1
        self.losses.append(loss)
        self.rates.append(lr)

    def switch_section(self, section: str) -> None:
        pass


def train(
    settings: Config, sample: Split, digits: tuple[Tensor, Tensor], epochs: int = EPOCHS
) -> tuple[list[float], list[float], float, float]:
    """The losses and rates of all iterations, and loss and accuracy on the same images at the end."""
    images, labels = digits
    plan = TrainingPlan(len(images), BATCH, epochs * len(images) // BATCH)
    torch.manual_seed(settings.seed)
    network = networks.build_network(
        settings.model, sample.shape, sample.classes, sample.values["pixel_mean"], sample.values["pixel_std"]
    )
    optimizer = optimizers.build_optimizer(settings.optimizer, network)
    weights = tuple(p for p in network.parameters() if p.ndim > 1)
    objective = Objective(settings.loss.label_smoothing, settings.optimizer.l1, weights)
    losses: list[float] = []
    rates: list[float] = []
    history: list[float] = []

    def rate(iteration: int) -> float:
        return learning_rate(settings.scheduler, settings.optimizer.lr, plan, iteration, history)

    for epoch in range(1, epochs + 1):
        batches = torch.split(epoch_permutation(settings.seed, epoch, len(images)), BATCH)
        augment = Augment(settings.augment, settings.seed, epoch, len(images), CPU)
        data = EpochData(images, labels, batches, augment)
        loop.train_epoch(Learner(network, objective, optimizer), data, rate, len(losses) + 1, Noted(losses, rates))
        history.append(scoring.score_examples(inference.predict(network, images), labels).loss)
    fared = scoring.score_examples(inference.predict(network, images), labels)
    assert len(losses) == plan.iterations
    return losses, rates, fared.loss, fared.accuracy
