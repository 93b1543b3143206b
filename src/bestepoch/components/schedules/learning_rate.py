"""Epochs and iterations, one from the other; the learning rate as a function of the iteration.

The rate is computed, not stepped: nothing of it needs saving, and a run that resumes has the same rate at the same
iteration. Each formula is that of PyTorch's scheduler of the same name, and a test holds it to that.
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
    config: SchedulerConfig, peak: float, plan: TrainingPlan, iteration: int, validation: Sequence[float] = ()
) -> float:
    """The rate that update number ``iteration`` uses.

    Args:
        menu: the scheduler's settings.
        peak: ``optimizer.lr``.
        plan: how many iterations an epoch and the whole training have.
        iteration: 1 for the first update.
        validation: val/loss of the epochs finished before it; only `plateau` looks at it.
    """
    done = iteration - 1
    if isinstance(config, OneCycleSchedulerConfig):
        return _onecycle_rate(config, peak, plan.iterations, done)
    warmup = round(config.warmup_epochs * plan.iterations_per_epoch)
    if done < warmup:
        return peak * (done + 1) / (warmup + 1)
    t, horizon = done - warmup, max(plan.iterations - warmup, 1)
    match config:
        case StepSchedulerConfig():
            return peak * math.pow(config.gamma, t // (config.step_size * plan.iterations_per_epoch))
        case ExponentialSchedulerConfig():
            return peak * math.pow(config.gamma, t / plan.iterations_per_epoch)
        case CosineSchedulerConfig():
            return config.eta_min + (peak - config.eta_min) * (1 + math.cos(math.pi * t / horizon)) / 2
        case PlateauSchedulerConfig():
            return _plateau_rate(config, peak, validation)
    return peak


def decays_over_full_run(config: SchedulerConfig) -> bool:
    """Whether the rate comes down only at the planned end, so that an earlier one leaves it high."""
    return isinstance(config, OneCycleSchedulerConfig | CosineSchedulerConfig)


def _onecycle_rate(config: OneCycleSchedulerConfig, peak: float, iterations: int, done: int) -> float:
    """Smith and Topin, https://arxiv.org/abs/1708.07120, in two phases, as PyTorch counts them."""
    first = peak / config.div_factor
    last = first / config.final_div_factor
    top, end = config.pct_start * iterations - 1, iterations - 1
    if done <= top:
        return _cosine_between(first, peak, done / top if top > 0 else 1.0)
    return _cosine_between(peak, last, (done - top) / (end - top))


def _cosine_between(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


def _plateau_rate(config: PlateauSchedulerConfig, peak: float, validation: Sequence[float]) -> float:
    rate, best, bad = peak, math.inf, 0
    for value in validation:
        if value < best * (1 - config.threshold):
            best, bad = value, 0
        else:
            bad += 1
        if bad > config.patience:
            rate, bad = max(rate * config.factor, config.min_lr), 0
    return rate
