"""When training stops early: a pure function of the epoch table."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bestepoch.base.config.groups import NoStoppingConfig, PatienceStoppingConfig, PlateauStoppingConfig
from bestepoch.runs.tables import Row

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    Fared = Callable[[int], dict[str, np.ndarray]]


def early_stop_reason(
    epochs: list[Row], config: NoStoppingConfig | PatienceStoppingConfig | PlateauStoppingConfig
) -> str | None:
    """Why training should end after the last epoch of the table, or None.

    Computed from the table each time, so that a resumed run counts like one that never stopped. ``min_delta`` decides
    what counts as an improvement here; it does not move the best epoch.
    """
    if isinstance(config, NoStoppingConfig):
        return None
    spent = math.fsum(row["seconds"] for row in epochs)
    if config.max_seconds is not None and spent >= config.max_seconds:
        return f"{spent:.0f} s of training are over the budget (stopping.max_seconds = {config.max_seconds:g})"
    return (
        _patience_exhausted(epochs, config)
        if isinstance(config, PatienceStoppingConfig)
        else _plateaued(epochs, config)
    )


def _patience_exhausted(epochs: list[Row], config: PatienceStoppingConfig) -> str | None:
    sign = 1.0 if config.mode == "min" else -1.0
    reference, waited = math.inf, 0
    for row in epochs:
        value = sign * row[config.metric]
        if math.isfinite(value) and value < reference - _required_gain(config, reference):
            reference, waited = value, 0
        elif row["epoch"] > config.warmup_epochs:
            waited += 1
    if waited < config.patience:
        return None
    long = "1 epoch" if waited == 1 else f"{waited} epochs"
    return f"{config.metric} has not improved for {long} (stopping.patience = {config.patience})"


def _plateaued(epochs: list[Row], config: PlateauStoppingConfig) -> str | None:
    """Means over windows: a single lucky epoch neither ends the training nor prolongs it."""
    counted = [row[config.metric] for row in epochs if row["epoch"] > config.warmup_epochs]
    windows = counted[-2 * config.window : -config.window], counted[-config.window :]
    if len(counted) < 2 * config.window or not all(map(math.isfinite, windows[0] + windows[1])):
        return None
    before, now = (math.fsum(window) / config.window for window in windows)
    gain = before - now if config.mode == "min" else now - before
    if gain > _required_gain(config, before):
        return None
    return (
        f"{config.metric} was {now:.4g} on average over {config.window} epochs and {before:.4g} over the {config.window} "
        f"before (stopping.window = {config.window})"
    )


def _required_gain(config: PatienceStoppingConfig | PlateauStoppingConfig, reference: float) -> float:
    """By how much a value must be better than ``reference`` to count."""
    if not config.relative:
        return config.min_delta
    return config.min_delta * abs(reference) if math.isfinite(reference) else 0.0
