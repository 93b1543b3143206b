"""Epochs and iterations, one from the other; the learning rate as a function of the iteration.

The rate is computed, not stepped: nothing of it needs saving, and a run that resumes has the same rate at the same
iteration. Each formula is that of PyTorch's scheduler of the same name, and a test holds it to that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bestepoch.base.config.schema import Constant, Cosine, Exponential, OneCycle, Plateau, Step, Train
from bestepoch.base.files import UsageError

Menu = Constant | Step | Exponential | Cosine | OneCycle | Plateau


@dataclass(frozen=True)
class Plan:
    """How much training is planned."""

    images: int
    batch_size: int
    iterations: int

    @property
    def per_epoch(self) -> int:
        """Iterations (updates) in an epoch: every image once, the last batch smaller if need be."""
        return math.ceil(self.images / self.batch_size)

    @property
    def last_batch(self) -> int:
        """Images in an epoch's last batch."""
        return self.images - (self.per_epoch - 1) * self.batch_size

    @property
    def epochs(self) -> int:
        """Epochs begun; the last may end early (see `cut`)."""
        return math.ceil(self.iterations / self.per_epoch)

    @property
    def cut(self) -> int:
        """Iterations of the last epoch where the planned number ends inside it, else 0."""
        return self.iterations % self.per_epoch

    def describe(self) -> str:
        """The arithmetic, as it is printed before training."""
        batches = (
            f"{self.images:,} images ÷ {self.batch_size:,} a batch = {_count(self.per_epoch, 'iteration')} an epoch"
        )
        if self.last_batch != self.batch_size:
            batches += f", the last batch has {_count(self.last_batch, 'image')}"
        whole = _count(self.epochs - bool(self.cut), "epoch")
        if self.cut:
            total = (
                f"{_count(self.iterations, 'update')} = {whole} + {self.cut:,} of {self.per_epoch:,} iterations: "
                f"training ends inside epoch {self.epochs:,}"
            )
        else:
            total = f"{whole} × {_count(self.per_epoch, 'iteration')} = {_count(self.iterations, 'update')}"
        return f"{batches}\n{total}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def plan(images: int, train: Train) -> Plan:
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
        return Plan(images, train.batch_size, iterations)
    if train.epochs * per_epoch != train.iterations:
        raise UsageError(
            f"train.epochs = {train.epochs:,} and train.iterations = {train.iterations:,} disagree: "
            f"{images:,} images ÷ {train.batch_size:,} a batch = {per_epoch:,} iterations an epoch, and "
            f"{train.epochs:,} epochs × {per_epoch:,} = {train.epochs * per_epoch:,} iterations, "
            f"while {train.iterations:,} iterations are {train.iterations / per_epoch:.4g} epochs. "
            f"Keep one: train.iterations=null or train.epochs=null"
        )
    return Plan(images, train.batch_size, train.iterations)


def learning_rate(menu: Menu, peak: float, plan: Plan, iteration: int, validation: Sequence[float] = ()) -> float:
    """The rate that update number ``iteration`` uses.

    Args:
        menu: the scheduler's settings.
        peak: ``optimizer.lr``.
        plan: how many iterations an epoch and the whole training have.
        iteration: 1 for the first update.
        validation: val/loss of the epochs finished before it; only `plateau` looks at it.
    """
    done = iteration - 1
    if isinstance(menu, OneCycle):
        return _onecycle(menu, peak, plan.iterations, done)
    warmup = round(menu.warmup_epochs * plan.per_epoch)
    if done < warmup:
        return peak * (done + 1) / (warmup + 1)
    t, horizon = done - warmup, max(plan.iterations - warmup, 1)
    match menu:
        case Step():
            return peak * math.pow(menu.gamma, t // (menu.step_size * plan.per_epoch))
        case Exponential():
            return peak * math.pow(menu.gamma, t / plan.per_epoch)
        case Cosine():
            return menu.eta_min + (peak - menu.eta_min) * (1 + math.cos(math.pi * t / horizon)) / 2
        case Plateau():
            return _plateau(menu, peak, validation)
    return peak


def spans_the_plan(menu: Menu) -> bool:
    """Whether the rate comes down only at the planned end, so that an earlier one leaves it high."""
    return isinstance(menu, OneCycle | Cosine)


def _onecycle(menu: OneCycle, peak: float, iterations: int, done: int) -> float:
    """Smith and Topin, https://arxiv.org/abs/1708.07120, in two phases, as PyTorch counts them."""
    first = peak / menu.div_factor
    last = first / menu.final_div_factor
    top, end = menu.pct_start * iterations - 1, iterations - 1
    if done <= top:
        return _cosine_between(first, peak, done / top if top > 0 else 1.0)
    return _cosine_between(peak, last, (done - top) / (end - top))


def _cosine_between(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


def _plateau(menu: Plateau, peak: float, validation: Sequence[float]) -> float:
    rate, best, bad = peak, math.inf, 0
    for value in validation:
        if value < best * (1 - menu.threshold):
            best, bad = value, 0
        else:
            bad += 1
        if bad > menu.patience:
            rate, bad = max(rate * menu.factor, menu.min_lr), 0
    return rate
