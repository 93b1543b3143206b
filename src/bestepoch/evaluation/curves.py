"""The curves that a verdict is read from, and how much of their ups and downs is noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from bestepoch.evaluation import thresholds
from bestepoch.runs.tables import Row

LOSS, ERROR = "validation loss", "validation error"


@dataclass(frozen=True)
class Curves:
    """The curves of a run, oldest epoch first, and what they are compared with.

    Losses are in nats. With label smoothing the curves are shares of errors instead: the plain loss of a network that
    was trained to be unsure says little.

    Args:
        epochs: numbers of the epochs, int ``(n,)``.
        train: loss on training images in evaluation mode, ``(n,)``; the objective where the run has not scored them.
        val: loss on validation images, ``(n,)``.
        train_accuracy: accuracy on the training images, ``(n,)``; None where the run has not scored them.
        val_accuracy: accuracy on validation images, ``(n,)``.
        lr: learning rate of each epoch's last update, ``(n,)``.
        guess: the loss of a guess among all classes.
        validation_images: number of validation images.
        config: the run's settings, as in ``run.json``.
        unit: what ``val`` is: `LOSS` or `ERROR`.
        classes: number of classes.
    """

    epochs: np.ndarray
    train: np.ndarray
    val: np.ndarray
    train_accuracy: np.ndarray | None
    val_accuracy: np.ndarray
    lr: np.ndarray
    guess: float
    validation_images: int
    config: dict[str, Any]
    unit: str
    classes: int

    @classmethod
    def from_rows(cls, rows: list[Row], config: dict[str, Any], classes: int, validation_images: int) -> Curves:
        """Read the curves from the rows of the epoch table, in any order."""
        rows = sorted(rows, key=lambda row: row["epoch"])
        columns = {name: np.array([row[name] for row in rows], dtype=float) for name in rows[0]}
        scored = "train/eval_loss" in columns
        train, val = columns["train/eval_loss" if scored else "train/epoch_loss"], columns["val/loss"]
        train_accuracy, val_accuracy = columns.get("train/eval_accuracy"), columns["val/accuracy"]
        guess, unit = math.log(classes), LOSS
        if config["loss"]["label_smoothing"] and train_accuracy is not None and np.isfinite([train, val]).all():
            train, val, guess, unit = 1 - train_accuracy, 1 - val_accuracy, 1 - 1 / classes, ERROR
        epochs, lr = columns["epoch"].astype(int), columns["lr"]
        return cls(
            epochs, train, val, train_accuracy, val_accuracy, lr, guess, validation_images, config, unit, classes
        )

    @property
    def n(self) -> int:
        """Number of epochs."""
        return len(self.epochs)

    @property
    def best(self) -> int:
        """Index of the epoch with the lowest validation loss."""
        return int(np.nanargmin(self.val))

    @property
    def noise(self) -> float:
        """The largest difference that two seeds explain, at the level of the best validation loss."""
        return self.noise_at(float(self.val[self.best]))

    def noise_at(self, loss: float) -> float:
        """Return the largest difference of two losses near ``loss`` that two seeds explain."""
        one_image = 1 / self.validation_images  # no loss is known better than to one image's
        sd = math.sqrt(thresholds.SEED_VARIANCE * max(loss, one_image) / self.validation_images)
        return thresholds.SIGMAS * math.sqrt(2) * sd

    @property
    def rise(self) -> float:
        """By how much the validation loss of the last epochs is above that of the best ones, one outlier aside.

        Medians of three are compared: the lowest of many values that differ by chance alone is low by chance.
        """
        k = self.best
        after = self.val[k + 1 :][-thresholds.LAST :]
        return float(np.median(after) - np.median(self.val[max(k - 1, 0) : k + 2])) if len(after) else 0.0

    @property
    def expected_gain(self) -> float:
        """By how much as many epochs again would lower the validation loss.

        Losses fall by powers of time, about: the next doubling of the epochs lowers the loss by the same factor as the
        last one. Means over up to a quarter of the epochs are compared.
        """
        half = max(1, self.n // 8)
        last = float(self.val[-2 * half if self.n >= 8 else -1 :].mean())
        middle = self.n // 2  # epochs up to here are half of all
        before = (
            float(self.val[max(middle - half, 0) : middle + (half if self.n >= 8 else 0)].mean())
            if middle
            else self.guess
        )
        return last * (1 - last / before) if last < before else 0.0

    @property
    def rate_has_come_down(self) -> bool:
        """Whether a schedule over the epochs has brought the learning rate to a tenth of its highest or below."""
        planned = self.config["scheduler"]["name"] in ("cosine", "onecycle", "step", "exponential")
        return planned and float(self.lr[-1]) <= 0.1 * float(self.config["optimizer"]["lr"])

    @property
    def is_falling(self) -> bool:
        """Whether the training loss came down steadily, if slowly: in most epochs, and below that of guessing."""
        steps = np.diff([max(self.guess, self.train[0]), *self.train])
        return bool(self.train[-1] < self.guess and self.val[-1] < 1.05 * self.guess and (steps < 0).mean() > 0.7)

    def describe(self, first: int, last: int = -1) -> str:
        """Return both curves between two epochs, given by their indices, in words."""
        unit = self.unit.removeprefix("validation ")
        return (
            f"from epoch {self.epochs[first]} to {self.epochs[last]} training {unit} went from {self.train[first]:.4g} "
            f"to {self.train[last]:.4g} and validation {unit} from {self.val[first]:.4g} to {self.val[last]:.4g}"
        )


def count_swings(values: np.ndarray, large: float) -> tuple[int, int, int]:
    """Count how often a curve rises by more than ``large`` from a low, to fall again or not.

    Returns:
        The number of rises, and the indices of the first low and the last high.
    """
    count, first, last, low, top = 0, 0, 0, 0, -1  # top is -1 while not rising
    for i, value in enumerate(values):
        if top < 0 and value > values[low] + large:
            count, first, last, top = count + 1, first if count else low, i, i
        elif top >= 0 and value > values[top]:
            last = top = i
        elif value < (values[low] if top < 0 else values[top] - large):
            low, top = i, -1
    return count, first, last
