"""Group runs that differ only in their seed or fold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bestepoch.base import paths
from bestepoch.base.config.overrides import flatten
from bestepoch.base.config.schema import SelectionConfig
from bestepoch.base.errors import UsageError
from bestepoch.evaluation.selection import best_epoch, smooth_metric
from bestepoch.runs import identity
from bestepoch.runs.run import Run
from bestepoch.runs.tables import Row, read_rows

REPLICATE_KEYS = identity.REPLICATE_KEYS
NUM_RESAMPLES = 2000


@dataclass
class ReplicateCurves:
    """Replicates of one configuration with their epoch tables; ``name`` lists what distinguishes the configuration."""

    name: str
    runs: list[Run]
    tables: list[list[Row]]

    @property
    def epochs(self) -> int:
        """Number of epochs that every run has; later means would cover only the runs that stopped late."""
        return min(len(table) for table in self.tables)

    def curves(self, column: str) -> np.ndarray:
        """Return a column's values, shape ``(runs, epochs)``."""
        return np.array([[row[column] for row in table[: self.epochs]] for table in self.tables])

    def best_epochs(self, choice: SelectionConfig) -> list[int]:
        """Return the best epoch of each run."""
        return [int(best_epoch(table, choice.metric, choice.mode)["epoch"]) for table in self.tables]

    def recommended(self, choice: SelectionConfig) -> tuple[int, int, int]:
        """Return the epoch at which the mean curve is best and the bounds of its 95 % bootstrap interval over runs."""
        n, tables = len(self.tables), [table[: self.epochs] for table in self.tables]
        smoothed = [smooth_metric(table, choice.metric, choice.mode, choice.smoothing) for table in tables]
        # An epoch without a finite value never wins.
        values = np.array([[curve.get(float(e), np.inf) for e in range(1, self.epochs + 1)] for curve in smoothed])
        samples = np.random.default_rng(0).integers(n, size=(NUM_RESAMPLES, n))
        low, high = np.percentile(values[samples].mean(1).argmin(1) + 1, [2.5, 97.5], method="nearest")
        return int(values.mean(0).argmin()) + 1, int(low), int(high)


def group_replicates(runs: list[Run]) -> list[ReplicateCurves]:
    """Group replicates; each group is named by the configuration values that not all runs share.

    Raises:
        UsageError: a run has no finished epoch.
    """
    runs = sorted(runs, key=lambda run: run.name)  # floating-point sums depend on the order
    data = _data_keys(runs)
    configs = [
        {k: v for k, v in flatten(run.info["config"]).items() if k not in REPLICATE_KEYS} | keys
        for run, keys in zip(runs, data, strict=True)
    ]
    keys = _distinguishing_keys(configs)
    groups: dict[str, ReplicateCurves] = {}
    for run, config in zip(runs, configs, strict=True):
        table = read_rows(run.folder / "epochs.csv")
        if not table:
            raise UsageError(f"{paths.display_path(run.folder)} has no epoch yet")
        name = " ".join(f"{key}={config[key]}" for key in keys if key in config) or "all runs"
        group = groups.setdefault(name, ReplicateCurves(name, [], []))
        group.runs.append(run)
        group.tables.append(table)
    return list(groups.values())


def _data_keys(runs: list[Run]) -> list[dict[str, Any]]:
    """Return what tells the data of the runs apart: the name, and a version where one name has several checksums.

    The checksum is that of a split, so it is compared between runs of the same split.
    """
    splits = [(run.info["data"]["name"], repr(run.info["config"].get("split"))) for run in runs]
    checksums: dict[tuple[str, str], list[str]] = {}
    for split, run in zip(splits, runs, strict=True):
        known = checksums.setdefault(split, [])
        if run.info["data"]["checksum"] not in known:
            known.append(run.info["data"]["checksum"])
    several = any(len(known) > 1 for known in checksums.values())
    return [
        {"data": split[0]} | ({"data.checksum": run.info["data"]["checksum"][:12]} if several else {})
        for split, run in zip(splits, runs, strict=True)
    ]


def _distinguishing_keys(configs: list[dict[str, Any]]) -> list[str]:
    """Return the keys whose values differ, except keys determined by the choice from their config group."""
    keys = sorted({key for config in configs for key in config}, key=lambda key: (key.count("."), key))

    def differ(key: str) -> bool:
        group = key.split(".")[0]
        values = {(config.get(group), repr(config.get(key))) for config in configs}
        return len(values) > len({choice for choice, _ in values})

    return [key for key in keys if len({repr(c.get(key)) for c in configs}) > 1 and ("." not in key or differ(key))]
