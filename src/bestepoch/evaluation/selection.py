"""Select the best epoch from the epoch table and, for the one-standard-error rule, the per-example results."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, get_args

from bestepoch.base.config.schema import SelectionConfig
from bestepoch.base.config.types import Metric
from bestepoch.base.errors import UsageError
from bestepoch.runs.tables import Row

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    LoadExampleResults = Callable[[int], dict[str, np.ndarray]]

# Columns that are means over validation images, and the per-example results that they average.
PER_EXAMPLE_COLUMN = {"val/loss": "losses", "val/accuracy": "correct"}


def select_epoch(epochs: list[Row], choice: SelectionConfig, load_results: LoadExampleResults) -> Row:
    """Return the epoch that the selection rule chooses.

    The rule ``best`` chooses `best_epoch`. The rule ``one_standard_error`` chooses the earliest epoch that is at most
    one standard error worse than the best (Breiman et al., Classification and Regression Trees, 1984, section 3.4.3).

    Args:
        epochs: rows of the epoch table.
        choice: metric, mode, smoothing and rule.
        load_results: returns the arrays ``losses`` and ``correct``, each of shape ``(N,)``, for an epoch's validation.

    Raises:
        UsageError: no epoch has a finite value, or the metric has no standard error.
    """
    best = best_epoch(epochs, choice.metric, choice.mode, choice.smoothing)
    if choice.rule == "best":
        return best
    if choice.metric not in PER_EXAMPLE_COLUMN:
        raise UsageError(
            f"selection.rule = one_standard_error needs a metric that is a mean over validation images, which "
            f"{choice.metric} is not. Choose selection.metric=val/loss or val/accuracy, or selection.rule=best"
        )
    values = smooth_metric(epochs, choice.metric, choice.mode, choice.smoothing)
    limit = values[best["epoch"]] + standard_error(load_results(int(best["epoch"]))[PER_EXAMPLE_COLUMN[choice.metric]])
    return min((row for row in epochs if values.get(row["epoch"], math.inf) <= limit), key=lambda row: row["epoch"])


def best_epoch(epochs: list[Row], metric: str, mode: str, smoothing: int = 1) -> Row:
    """Return the epoch with the best finite metric; ties go to the lower val/loss, then to the earlier epoch.

    Raises:
        UsageError: the metric is unknown, or no epoch has a finite value.
    """
    values = smooth_metric(epochs, metric, mode, smoothing)
    if not values:
        names = metric if metric == "val/loss" else f"{metric} and val/loss"
        raise UsageError(f"No epoch has a finite {names}, so there is no best one ({len(epochs)} epochs in the table)")

    def rank(row: Row) -> tuple[float, float, float]:
        return values[row["epoch"]], row["val/loss"], row["epoch"]

    return min((row for row in epochs if row["epoch"] in values), key=rank)


def runner_up(epochs: list[Row], chosen: Row, choice: SelectionConfig) -> Row | None:
    """Return the best epoch other than ``chosen``, or None if no other has a finite value."""
    others = [row for row in epochs if row is not chosen]
    has_finite = smooth_metric(others, choice.metric, choice.mode)
    return best_epoch(others, choice.metric, choice.mode) if has_finite else None


def smooth_metric(epochs: list[Row], metric: str, mode: str, window: int = 1) -> dict[float, float]:
    """Return a mapping from epoch to smoothed metric, with the sign flipped if needed so that lower is better.

    Each value is the mean over the centred window of ``window`` epochs, which is shorter at the ends of the table.
    Epochs whose metric or val/loss is not finite are left out.

    Raises:
        UsageError: the metric is unknown, or the run does not have it.
    """
    if metric not in get_args(Metric):
        raise UsageError(f"{metric} is no column of epochs.csv; there are: {', '.join(get_args(Metric))}")
    if any(metric not in row for row in epochs):
        raise UsageError(
            f"this run has no {metric}: it was trained with train.eval_images=0 or by an earlier version. Choose "
            "selection.metric=val/loss or val/accuracy"
        )
    sign = 1.0 if mode == "min" else -1.0
    usable = (row for row in epochs if math.isfinite(row[metric]) and math.isfinite(row["val/loss"]))
    finite = {row["epoch"]: sign * row[metric] for row in usable}
    if window == 1:
        return finite
    windows = {epoch: [value for e, value in finite.items() if abs(e - epoch) <= window // 2] for epoch in finite}
    return {epoch: math.fsum(values) / len(values) for epoch, values in windows.items()}


def standard_error(values: np.ndarray) -> float:
    """Return the standard error of the mean of values of shape ``(N,)``; infinity if N is 1."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.inf
