"""Decide from the epoch table whether training stops early."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from bestepoch.base.config.groups import NoStoppingConfig, PatienceStoppingConfig, PlateauStoppingConfig

EpochRow = Mapping[str, float]
"""A row of ``epochs.csv``."""


def early_stop_reason(
    epochs: Sequence[EpochRow], config: NoStoppingConfig | PatienceStoppingConfig | PlateauStoppingConfig
) -> str | None:
    """Return why training should end after the last epoch of the table, or None if it should continue.

    The reason depends only on the table, so a resumed run stops at the same epoch as an uninterrupted run.
    ``min_delta`` decides what counts as an improvement here; it does not affect which epoch is best.
    """
    if isinstance(config, NoStoppingConfig):
        return None
    seconds = math.fsum(row["seconds"] for row in epochs)
    if config.max_seconds is not None and seconds >= config.max_seconds:
        return f"{seconds:.0f} s of training are over the budget (stopping.max_seconds = {config.max_seconds:g})"
    if isinstance(config, PatienceStoppingConfig):
        return _patience_exhausted(epochs, config)
    return _plateaued(epochs, config)


def _patience_exhausted(epochs: Sequence[EpochRow], config: PatienceStoppingConfig) -> str | None:
    sign = 1.0 if config.mode == "min" else -1.0
    best, bad_epochs = math.inf, 0
    for row in epochs:
        value = sign * row[config.metric]
        if math.isfinite(value) and value < best - _required_gain(config, best):
            best, bad_epochs = value, 0
        elif row["epoch"] > config.warmup_epochs:
            bad_epochs += 1
    if bad_epochs < config.patience:
        return None
    duration = "1 epoch" if bad_epochs == 1 else f"{bad_epochs} epochs"
    return f"{config.metric} has not improved for {duration} (stopping.patience = {config.patience})"


def _plateaued(epochs: Sequence[EpochRow], config: PlateauStoppingConfig) -> str | None:
    """Compare the means of the last two windows, so that one lucky epoch neither ends nor prolongs training."""
    values = [row[config.metric] for row in epochs if row["epoch"] > config.warmup_epochs]
    windows = values[-2 * config.window : -config.window], values[-config.window :]
    if len(values) < 2 * config.window or not all(map(math.isfinite, windows[0] + windows[1])):
        return None
    before, now = (math.fsum(window) / config.window for window in windows)
    gain = before - now if config.mode == "min" else now - before
    if gain > _required_gain(config, before):
        return None
    return (
        f"{config.metric} was {now:.4g} on average over {config.window} epochs and {before:.4g} over the "
        f"{config.window} before (stopping.window = {config.window})"
    )


def _required_gain(config: PatienceStoppingConfig | PlateauStoppingConfig, reference: float) -> float:
    """Return by how much a value must be better than ``reference`` to count as an improvement."""
    if not config.relative:
        return config.min_delta
    return config.min_delta * abs(reference) if math.isfinite(reference) else 0.0
