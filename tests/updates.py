"""Make updates of a fresh network in this process."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import live
from bestepoch.base.config import compose
from bestepoch.base.config.groups import NoAugmentConfig
from bestepoch.components.data.augment import Augment
from bestepoch.components.data.order import epoch_permutation as split_order
from bestepoch.components.data.split import Split, load_part
from bestepoch.components.models import networks
from bestepoch.training import loop
from bestepoch.training.loop import EpochData, Learner
from bestepoch.training.loss import Objective

CHECKOUT = live.CHECKOUT

MODELS = sorted(path.stem for path in (CHECKOUT / "conf/model").glob("*.yaml"))


CPU = torch.device("cpu")


NO_AUGMENT = NoAugmentConfig(name="none")


def digits(sample: Split, part: str, count: int) -> tuple[Tensor, Tensor]:
    """``count`` images of a part; they lie sorted by digit, so they are taken from all over it."""
    images, labels = load_part(sample.folder, part)
    chosen = torch.linspace(0, len(labels) - 1, count).round().long()
    return images[chosen], labels[chosen]


def fresh(name: str, sample: Split, seed: int = 0) -> networks.Network:
    torch.manual_seed(seed)
    values = sample.values
    return networks.build_network(
        compose.load_option("model", name), sample.shape, sample.classes, values["pixel_mean"], values["pixel_std"]
    )


@dataclasses.dataclass
class AfterUpdate:
    """What `train_epoch` tells, of which a test takes the updates alone."""

    after: Callable[[int, Any, float], None]

    def on_step_end(self, iteration: int, loss: Any, lr: float, grad_norm: Any) -> None:
        self.after(iteration, loss, lr)

    def switch_section(self, section: str) -> None:
        pass


def teach(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    epochs: int,
    batch_size: int,
    labels_of: Callable[[int], Tensor] | None = None,
) -> None:
    """Plain training with Adam; ``labels_of`` may give other labels in each epoch."""
    optimizer = torch.optim.Adam(network.parameters(), lr=0.002)
    for epoch in range(1, epochs + 1):
        data = EpochData(
            images,
            labels if labels_of is None else labels_of(epoch),
            torch.split(split_order(0, epoch, len(images)), batch_size),
            Augment(NO_AUGMENT, 0, epoch, len(images), CPU),
        )
        learner = Learner(network, Objective(0.0, 0.0, ()), optimizer)
        loop.train_epoch(learner, data, lambda iteration: 0.002, 1, AfterUpdate(lambda iteration, loss, lr: None))
