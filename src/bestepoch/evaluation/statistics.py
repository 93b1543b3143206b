"""How sure the choice of an epoch is: intervals from how each single image fared."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from bestepoch.base.config.groups import PatienceStoppingConfig, PlateauStoppingConfig
from bestepoch.base.config.schema import SelectionConfig
from bestepoch.components.schedules.early_stopping import early_stop_reason
from bestepoch.evaluation.selection import PER_EXAMPLE_COLUMN, runner_up
from bestepoch.runs.tables import Row

if TYPE_CHECKING:
    from bestepoch.evaluation.selection import LoadExampleResults

CONFIDENCE_LEVEL = 0.95
NUM_RESAMPLES = 2000


def selection_evidence(
    epochs: list[Row],
    chosen: Row,
    choice: SelectionConfig,
    fared: LoadExampleResults,
    stopping: PatienceStoppingConfig | PlateauStoppingConfig,
) -> dict[str, Any]:
    """What stands beside the chosen epoch in ``metrics.json``.

    Returns:
        ``last`` and ``stopped``: the validation results of the last epoch, and of the one where ``stopping`` would
        have ended training (absent where it would not). ``runner_up``: those of the second-best epoch, and by how much
        it differs from the chosen one, by `paired`; absent where there is no other epoch.
    """
    found: dict[str, Any] = {"last": _validation_results(epochs[-1])}
    ends = (row for n, row in enumerate(epochs, 1) if early_stop_reason(epochs[:n], stopping))
    if (stopped := next(ends, None)) is not None:
        found["stopped"] = _validation_results(stopped)
    if (second := runner_up(epochs, chosen, choice)) is not None:
        kind = PER_EXAMPLE_COLUMN.get(choice.metric, "losses")  # of any other column there is no value for each image
        apart = paired_bootstrap_ci(*(fared(int(row["epoch"]))[kind] for row in (chosen, second)))
        found["runner_up"] = _validation_results(second) | apart
    return found


def _validation_results(row: Row) -> dict[str, Any]:
    """JSON has no NaN: a loss that is not finite is none."""
    loss = row["val/loss"] if math.isfinite(row["val/loss"]) else None
    return {"epoch": int(row["epoch"]), "val_loss": loss, "val_accuracy": row["val/accuracy"]}


def paired_bootstrap_ci(chosen: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    """By how much ``other`` differs from ``chosen`` on average, with its 95 % percentile bootstrap interval.

    Paired: both are (n,) values of the same images, and images are drawn anew, not values; what is hard for both
    epochs then does not count as noise. Always the same draws, so the same interval for the same values.

    Returns:
        ``difference``, ``low``, ``high`` in the unit of the values, and ``more_than_noise``: whether 0 is outside.
    """
    from scipy.stats import bootstrap

    difference = other.astype(np.float64) - chosen.astype(np.float64)
    mean = float(difference.mean())
    low = high = mean
    if len(difference) > 1 and difference.std() > 0:  # else every draw is alike
        found = bootstrap(
            (difference,),
            np.mean,
            n_resamples=NUM_RESAMPLES,
            batch=100,  # of them in memory at once
            confidence_level=CONFIDENCE_LEVEL,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
        low, high = float(found.low), float(found.high)
    return {"difference": mean, "low": low, "high": high, "more_than_noise": low > 0 or high < 0}


def wilson_ci(hits: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson, J. Am. Stat. Assoc. 22, 1927)."""
    from scipy.stats import binomtest

    found = binomtest(hits, n).proportion_ci(CONFIDENCE_LEVEL, method="wilson")
    return float(found.low), float(found.high)
