"""Convert between epochs and iterations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from bestepoch.base.config.schema import TrainConfig
from bestepoch.base.errors import UsageError


@dataclass(frozen=True)
class TrainingPlan:
    """The planned length of a training.

    Attributes:
        num_images: size of the training set.
        batch_size: images per iteration, over all ranks.
        iterations: total number of updates.
    """

    num_images: int
    batch_size: int
    iterations: int

    @property
    def iterations_per_epoch(self) -> int:
        """Iterations per epoch; the last batch of an epoch may be smaller."""
        return math.ceil(self.num_images / self.batch_size)

    @property
    def last_batch(self) -> int:
        """Number of images in the last batch of an epoch."""
        return self.num_images - (self.iterations_per_epoch - 1) * self.batch_size

    @property
    def epochs(self) -> int:
        """Number of epochs, including a partial last epoch."""
        return math.ceil(self.iterations / self.iterations_per_epoch)

    @property
    def partial_epoch_iterations(self) -> int:
        """Iterations of the last epoch if it is partial, else 0."""
        return self.iterations % self.iterations_per_epoch

    def describe_cut(self, epoch: int) -> str:
        """Return how many iterations an epoch has where the plan ends inside it, else an empty text."""
        if epoch < self.epochs or not self.partial_epoch_iterations:
            return ""
        return f"({self.partial_epoch_iterations:,} of {self.iterations_per_epoch:,} iterations)"

    def describe(self) -> str:
        """Return the two lines that are printed before training."""
        per_epoch = _count(self.iterations_per_epoch, "iteration")
        batches = f"{self.num_images:,} images ÷ {self.batch_size:,} a batch = {per_epoch} an epoch"
        if self.last_batch != self.batch_size:
            batches += f", the last batch has {_count(self.last_batch, 'image')}"
        whole = _count(self.epochs - bool(self.partial_epoch_iterations), "epoch")
        if self.partial_epoch_iterations:
            total = (
                f"{_count(self.iterations, 'update')} = {whole} + {self.partial_epoch_iterations:,} of "
                f"{self.iterations_per_epoch:,} iterations: training ends inside epoch {self.epochs:,}"
            )
        else:
            total = f"{whole} × {per_epoch} = {_count(self.iterations, 'update')}"
        return f"{batches}\n{total}"


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def plan_of_run(info: dict[str, Any]) -> TrainingPlan:
    """Return the plan of the run whose ``run.json`` is ``info``; runs of earlier versions have no ``eval_images``."""
    return make_plan(info["data"]["sizes"]["train"], TrainConfig(**{"eval_images": None, **info["config"]["train"]}))


def make_plan(num_images: int, train: TrainConfig) -> TrainingPlan:
    """Convert ``train.epochs`` or ``train.iterations`` to a plan for ``num_images`` training images.

    Raises:
        UsageError: both are set and disagree, or the batch is larger than the training set.
    """
    if train.batch_size > num_images:
        raise UsageError(f"train.batch_size = {train.batch_size:,} is more than the {num_images:,} training images")
    per_epoch = math.ceil(num_images / train.batch_size)
    if train.epochs is None or train.iterations is None:
        iterations = train.iterations if train.epochs is None else train.epochs * per_epoch
        assert iterations is not None  # the schema requires one of the two
        return TrainingPlan(num_images, train.batch_size, iterations)
    if train.epochs * per_epoch != train.iterations:
        raise UsageError(
            f"train.epochs = {train.epochs:,} and train.iterations = {train.iterations:,} disagree: "
            f"{num_images:,} images ÷ {train.batch_size:,} a batch = {per_epoch:,} iterations an epoch, and "
            f"{train.epochs:,} epochs × {per_epoch:,} = {train.epochs * per_epoch:,} iterations, "
            f"while {train.iterations:,} iterations are {train.iterations / per_epoch:.4g} epochs. "
            f"Keep one: train.iterations=null or train.epochs=null"
        )
    return TrainingPlan(num_images, train.batch_size, train.iterations)
