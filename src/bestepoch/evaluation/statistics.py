"""Confidence intervals for accuracies and for the difference between two epochs."""

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
    load_results: LoadExampleResults,
    stopping: PatienceStoppingConfig | PlateauStoppingConfig,
) -> dict[str, Any]:
    """Compare the chosen epoch with alternatives, for ``metrics.json``.

    Returns:
        Validation results of the last epoch (``last``), of the epoch at which ``stopping`` would have ended training
        (``stopped``, absent if it would not), and of the second-best epoch (``runner_up``, absent if there is none).
        ``runner_up`` also holds the difference from the chosen epoch, from `paired_bootstrap_ci`.
    """
    evidence: dict[str, Any] = {"last": _validation_results(epochs[-1])}
    stops = (row for n, row in enumerate(epochs, 1) if early_stop_reason(epochs[:n], stopping))
    if (stopped := next(stops, None)) is not None:
        evidence["stopped"] = _validation_results(stopped)
    if (second := runner_up(epochs, chosen, choice)) is not None:
        column = PER_EXAMPLE_COLUMN.get(choice.metric, "losses")  # other metrics have no per-example values
        difference = paired_bootstrap_ci(*(load_results(int(row["epoch"]))[column] for row in (chosen, second)))
        evidence["runner_up"] = _validation_results(second) | difference
    return evidence


def _validation_results(row: Row) -> dict[str, Any]:
    # JSON has no NaN: a loss that is not finite becomes None.
    loss = row["val/loss"] if math.isfinite(row["val/loss"]) else None
    return {"epoch": int(row["epoch"]), "val_loss": loss, "val_accuracy": row["val/accuracy"]}


def paired_bootstrap_ci(chosen: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    """Return the mean of ``other - chosen`` with its 95 % percentile bootstrap interval.

    Both arrays have shape ``(N,)`` and hold values of the same images. Images are resampled in pairs, so images that
    are hard for both epochs do not count as noise. The seed is fixed: equal values give equal intervals.

    Returns:
        ``difference``, ``low`` and ``high`` in the unit of the values, and ``more_than_noise``, which is True if the
        interval excludes 0.
    """
    from scipy.stats import bootstrap

    difference = other.astype(np.float64) - chosen.astype(np.float64)
    mean = float(difference.mean())
    low = high = mean
    if len(difference) > 1 and difference.std() > 0:  # otherwise all resamples are equal
        interval = bootstrap(
            (difference,),
            np.mean,
            n_resamples=NUM_RESAMPLES,
            batch=100,  # limits memory use
            confidence_level=CONFIDENCE_LEVEL,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
        low, high = float(interval.low), float(interval.high)
    return {"difference": mean, "low": low, "high": high, "more_than_noise": low > 0 or high < 0}


def wilson_ci(hits: int, n: int) -> tuple[float, float]:
    """Return the 95 % score interval of the proportion ``hits / n`` (Wilson, J. Am. Stat. Assoc. 22, 1927)."""
    from scipy.stats import binomtest

    interval = binomtest(hits, n).proportion_ci(CONFIDENCE_LEVEL, method="wilson")
    return float(interval.low), float(interval.high)
