"""Runs that differ only in their seed or fold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bestepoch.base import paths
from bestepoch.base.config.overrides import flatten
from bestepoch.base.config.schema import SelectionConfig
from bestepoch.base.errors import UsageError
from bestepoch.evaluation.selection import best_epoch, smooth_metric
from bestepoch.runs.run import Run
from bestepoch.runs.tables import Row, read_rows

REPLICATE_KEYS = ("seed", "split.seed", "split.fold")  # runs that differ only in these are one setting, repeated
NUM_RESAMPLES = 2000


@dataclass
class ReplicateCurves:
    """Runs of one configuration. ``name`` is what tells it from the other settings of the study."""

    name: str
    runs: list[Run]
    tables: list[list[Row]]

    @property
    def epochs(self) -> int:
        """How many epochs all of the runs have: beyond, a mean would be of those that stopped late."""
        return min(len(table) for table in self.tables)

    def curves(self, column: str) -> np.ndarray:
        """(runs, epochs) values."""
        return np.array([[row[column] for row in table[: self.epochs]] for table in self.tables])

    def best_epochs(self, choice: SelectionConfig) -> list[int]:
        """Of each run."""
        return [int(best_epoch(table, choice.metric, choice.mode)["epoch"]) for table in self.tables]

    def recommended(self, choice: SelectionConfig) -> tuple[int, int, int]:
        """The epoch at which the mean curve is best, and its 95 % interval from runs drawn anew (bootstrap)."""
        rows = [
            smooth_metric(table[: self.epochs], choice.metric, choice.mode, choice.smoothing) for table in self.tables
        ]
        # an epoch without a finite value never wins
        values = np.array([[row.get(float(e), np.inf) for e in range(1, self.epochs + 1)] for row in rows])
        draws = np.random.default_rng(0).integers(len(rows), size=(NUM_RESAMPLES, len(rows)))
        low, high = np.percentile(values[draws].mean(1).argmin(1) + 1, [2.5, 97.5], method="nearest")
        return int(values.mean(0).argmin()) + 1, int(low), int(high)


def group_replicates(runs: list[Run]) -> list[ReplicateCurves]:
    """Runs that are repeats of one another, together; each setting named by what not all of them have in common."""
    runs = sorted(runs, key=lambda run: run.name)  # whoever lists them: sums depend on the order
    configs = [{k: v for k, v in flatten(run.info["config"]).items() if k not in REPLICATE_KEYS} for run in runs]
    told = _distinguishing_keys(configs)
    together: dict[str, ReplicateCurves] = {}
    for run, config in zip(runs, configs, strict=True):
        table = read_rows(run.folder / "epochs.csv")
        if not table:
            raise UsageError(f"{paths.display_path(run.folder)} has no epoch yet")
        name = " ".join(f"{key}={config[key]}" for key in told if key in config) or "all runs"
        setting = together.setdefault(name, ReplicateCurves(name, [], []))
        setting.runs.append(run)
        setting.tables.append(table)
    return list(together.values())


def _distinguishing_keys(configs: list[dict[str, Any]]) -> list[str]:
    """The keys whose values differ; but what just comes with the choice from a menu goes without saying."""
    keys = sorted({key for config in configs for key in config}, key=lambda key: (key.count("."), key))

    def differ(key: str) -> bool:
        group = key.split(".")[0]
        values = {(config.get(group), repr(config.get(key))) for config in configs}
        return len(values) > len({choice for choice, _ in values})

    return [key for key in keys if len({repr(c.get(key)) for c in configs}) > 1 and ("." not in key or differ(key))]
