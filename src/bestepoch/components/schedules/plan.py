"""Epochs and iterations, one from the other."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bestepoch.base.config.schema import TrainConfig
from bestepoch.base.errors import UsageError


@dataclass(frozen=True)
class TrainingPlan:
    """How much training is planned."""

    num_images: int
    batch_size: int
    iterations: int

    @property
    def iterations_per_epoch(self) -> int:
        """Iterations (updates) in an epoch: every image once, the last batch smaller if need be."""
        return math.ceil(self.num_images / self.batch_size)

    @property
    def last_batch(self) -> int:
        """Images in an epoch's last batch."""
        return self.num_images - (self.iterations_per_epoch - 1) * self.batch_size

    @property
    def epochs(self) -> int:
        """Epochs begun; the last may end early (see `cut`)."""
        return math.ceil(self.iterations / self.iterations_per_epoch)

    @property
    def partial_epoch_iterations(self) -> int:
        """Iterations of the last epoch where the planned number ends inside it, else 0."""
        return self.iterations % self.iterations_per_epoch

    def describe(self) -> str:
        """The arithmetic, as it is printed before training."""
        batches = f"{self.num_images:,} images ÷ {self.batch_size:,} a batch = {_count(self.iterations_per_epoch, 'iteration')} an epoch"
        if self.last_batch != self.batch_size:
            batches += f", the last batch has {_count(self.last_batch, 'image')}"
        whole = _count(self.epochs - bool(self.partial_epoch_iterations), "epoch")
        if self.partial_epoch_iterations:
            total = (
                f"{_count(self.iterations, 'update')} = {whole} + {self.partial_epoch_iterations:,} of {self.iterations_per_epoch:,} iterations: "
                f"training ends inside epoch {self.epochs:,}"
            )
        else:
            total = f"{whole} × {_count(self.iterations_per_epoch, 'iteration')} = {_count(self.iterations, 'update')}"
        return f"{batches}\n{total}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def make_plan(images: int, train: TrainConfig) -> TrainingPlan:
    """What ``train.epochs`` or ``train.iterations`` mean for this many images.

    Raises:
        UsageError: both are given and disagree, or the batch is larger than the data set.
    """
    if train.batch_size > images:
        raise UsageError(f"train.batch_size = {train.batch_size:,} is more than the {images:,} training images")
    per_epoch = math.ceil(images / train.batch_size)
    if train.epochs is None or train.iterations is None:
        iterations = train.iterations if train.epochs is None else train.epochs * per_epoch
        assert iterations is not None  # the schema sees to that
        return TrainingPlan(images, train.batch_size, iterations)
    if train.epochs * per_epoch != train.iterations:
        raise UsageError(
            f"train.epochs = {train.epochs:,} and train.iterations = {train.iterations:,} disagree: "
            f"{images:,} images ÷ {train.batch_size:,} a batch = {per_epoch:,} iterations an epoch, and "
            f"{train.epochs:,} epochs × {per_epoch:,} = {train.epochs * per_epoch:,} iterations, "
            f"while {train.iterations:,} iterations are {train.iterations / per_epoch:.4g} epochs. "
            f"Keep one: train.iterations=null or train.epochs=null"
        )
    return TrainingPlan(images, train.batch_size, train.iterations)
