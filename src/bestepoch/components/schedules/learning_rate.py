"""Compute the learning rate as a function of the iteration.

The functions are stateless: a checkpoint need not store a scheduler, and a resumed run uses the same learning rate at
the same iteration. Each formula is that of PyTorch's scheduler of the same name; a test compares the two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from bestepoch.base.config.groups import (
    ConstantSchedulerConfig,
    CosineSchedulerConfig,
    ExponentialSchedulerConfig,
    OneCycleSchedulerConfig,
    PlateauSchedulerConfig,
    StepSchedulerConfig,
)
from bestepoch.components.schedules.plan import TrainingPlan

SchedulerConfig = (
    ConstantSchedulerConfig
    | StepSchedulerConfig
    | ExponentialSchedulerConfig
    | CosineSchedulerConfig
    | OneCycleSchedulerConfig
    | PlateauSchedulerConfig
)


def learning_rate(
    config: SchedulerConfig, base_lr: float, plan: TrainingPlan, iteration: int, validation: Sequence[float] = ()
) -> float:
    """Return the learning rate of one iteration.

    Args:
        config: the config of the group ``scheduler``.
        base_lr: ``optimizer.lr``.
        plan: the numbers of iterations per epoch and in total.
        iteration: counted from 1.
        validation: val/loss of each epoch finished before the iteration; only ``plateau`` uses it.
    """
    done = iteration - 1
    if isinstance(config, OneCycleSchedulerConfig):
        return _onecycle_rate(config, base_lr, plan.iterations, done)
    warmup = round(config.warmup_epochs * plan.iterations_per_epoch)
    if done < warmup:
        return base_lr * (done + 1) / (warmup + 1)
    t, horizon = done - warmup, max(plan.iterations - warmup, 1)
    match config:
        case StepSchedulerConfig():
            return base_lr * math.pow(config.gamma, t // (config.step_size * plan.iterations_per_epoch))
        case ExponentialSchedulerConfig():
            return base_lr * math.pow(config.gamma, t / plan.iterations_per_epoch)
        case CosineSchedulerConfig():
            return config.eta_min + (base_lr - config.eta_min) * (1 + math.cos(math.pi * t / horizon)) / 2
        case PlateauSchedulerConfig():
            return _plateau_rate(config, base_lr, validation)
    return base_lr


def decays_over_full_run(config: SchedulerConfig) -> bool:
    """Return whether the learning rate is low only at the planned end, so that it is high after an early stop."""
    return isinstance(config, OneCycleSchedulerConfig | CosineSchedulerConfig)


def _onecycle_rate(config: OneCycleSchedulerConfig, base_lr: float, iterations: int, done: int) -> float:
    """Compute PyTorch's two-phase 1cycle policy (Smith and Topin, https://arxiv.org/abs/1708.07120)."""
    first = base_lr / config.div_factor
    last = first / config.final_div_factor
    peak, end = config.pct_start * iterations - 1, iterations - 1
    if done <= peak:
        return _cosine_between(first, base_lr, done / peak if peak > 0 else 1.0)
    return _cosine_between(base_lr, last, (done - peak) / (end - peak))


def _cosine_between(start: float, end: float, fraction: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * fraction))


def _plateau_rate(config: PlateauSchedulerConfig, base_lr: float, validation: Sequence[float]) -> float:
    rate, best, bad_epochs = base_lr, math.inf, 0
    for value in validation:
        if value < best * (1 - config.threshold):
            best, bad_epochs = value, 0
        else:
            bad_epochs += 1
        if bad_epochs > config.patience:
            rate, bad_epochs = max(rate * config.factor, config.min_lr), 0
    return rate
