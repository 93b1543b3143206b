"""Which epoch is best and when to stop: pure functions of the epoch table, and of how each validation image fared."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, get_args

from bestepoch.base.config.groups import Metric
from bestepoch.base.config.schema import SelectionConfig
from bestepoch.base.errors import UsageError
from bestepoch.runs.tables import Row

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    LoadExampleResults = Callable[[int], dict[str, np.ndarray]]

# The columns that are means over validation images, and what they are means of.
PER_EXAMPLE_COLUMN = {"val/loss": "losses", "val/accuracy": "correct"}


def select_epoch(epochs: list[Row], choice: SelectionConfig, fared: LoadExampleResults) -> Row:
    """The epoch that ``selection`` takes.

    ``best`` is `best_epoch`. ``one_standard_error`` is the earliest epoch that is no more than one standard error
    worse than that one (Breiman et al., Classification and Regression Trees, 1984, section 3.4.3).

    Args:
        fared: gives the ``losses`` and ``correct`` of each validation image after an epoch.

    Raises:
        UsageError: there is no best epoch, or no standard error of this metric.
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
    limit = values[best["epoch"]] + standard_error(fared(int(best["epoch"]))[PER_EXAMPLE_COLUMN[choice.metric]])
    return min((row for row in epochs if values.get(row["epoch"], math.inf) <= limit), key=lambda row: row["epoch"])


def best_epoch(epochs: list[Row], metric: str, mode: str, smoothing: int = 1) -> Row:
    """The epoch with the best finite ``metric``; of equals the one with the lower val/loss, then the earliest.

    Raises:
        UsageError: no such column, or no epoch with a finite value in it.
    """
    values = smooth_metric(epochs, metric, mode, smoothing)
    if not values:
        named = metric if metric == "val/loss" else f"{metric} and val/loss"
        raise UsageError(f"No epoch has a finite {named}, so there is no best one ({len(epochs)} epochs in the table)")

    def rank(row: Row) -> tuple[float, float, float]:
        return values[row["epoch"]], row["val/loss"], row["epoch"]

    return min((row for row in epochs if row["epoch"] in values), key=rank)


def runner_up(epochs: list[Row], chosen: Row, choice: SelectionConfig) -> Row | None:
    """The best of the other epochs, or None where no other has a finite value."""
    others = [row for row in epochs if row is not chosen]
    ranked = smooth_metric(others, choice.metric, choice.mode)
    return best_epoch(others, choice.metric, choice.mode) if ranked else None


def smooth_metric(epochs: list[Row], metric: str, mode: str, window: int = 1) -> dict[float, float]:
    """What a choice goes by: epoch to value, lower is better, without the epochs that have no finite value or val/loss.

    Each is the mean of the finite values among the ``window`` epochs around it; at the ends of the table there are
    fewer.
    """
    if metric not in get_args(Metric):
        raise UsageError(f"{metric} is no column of epochs.csv; there are: {', '.join(get_args(Metric))}")
    sign = 1.0 if mode == "min" else -1.0
    usable = (row for row in epochs if math.isfinite(row[metric]) and math.isfinite(row["val/loss"]))
    finite = {row["epoch"]: sign * row[metric] for row in usable}
    if window == 1:
        return finite
    around = {epoch: [value for e, value in finite.items() if abs(e - epoch) <= window // 2] for epoch in finite}
    return {epoch: math.fsum(values) / len(values) for epoch, values in around.items()}


def standard_error(values: np.ndarray) -> float:
    """Of the mean of (n,) values; infinite where n is 1."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.inf
