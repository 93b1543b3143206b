"""Which epoch is best and when to stop: pure functions of the epoch table."""

from __future__ import annotations

import math
from typing import get_args

from bestepoch.journal import Row
from bestepoch.project import UsageError
from bestepoch.schema import Metric, NoStopping, Patience


def best_epoch(epochs: list[Row], metric: str, mode: str) -> Row:
    """The epoch with the best finite ``metric``; of equals the one with the lower val/loss, then the earliest.

    Raises:
        UsageError: no such column, or no epoch with a finite value in it.
    """
    if metric not in get_args(Metric):
        raise UsageError(f"{metric} is no metric of epochs.csv; there are: {', '.join(get_args(Metric))}")
    sign = 1.0 if mode == "min" else -1.0
    finite = [row for row in epochs if math.isfinite(row[metric])]
    if not finite:
        raise UsageError(f"No epoch has a finite {metric}, so there is no best one ({len(epochs)} epochs in the table)")

    def rank(row: Row) -> tuple[float, float, float]:
        tie = row["val/loss"] if math.isfinite(row["val/loss"]) else math.inf
        return sign * row[metric], tie, row["epoch"]

    return min(finite, key=rank)


def stop_reason(epochs: list[Row], menu: NoStopping | Patience) -> str | None:
    """Why training should end after the last epoch of the table, or None.

    Computed from the table each time, so that a resumed run counts like one that never stopped. ``min_delta`` decides
    what counts as an improvement here; it does not move the best epoch.
    """
    if isinstance(menu, NoStopping):
        return None
    sign = 1.0 if menu.mode == "min" else -1.0
    reference, waited = math.inf, 0
    for row in epochs:
        value = sign * row[menu.metric]
        if math.isfinite(value) and value < reference - menu.min_delta:
            reference, waited = value, 0
        elif row["epoch"] > menu.warmup_epochs:
            waited += 1
    if waited < menu.patience:
        return None
    return f"{menu.metric} has not improved for {waited} epochs (stopping.patience = {menu.patience})"
