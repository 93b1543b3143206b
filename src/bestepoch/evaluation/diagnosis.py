"""Diagnose a training run from its epoch table: a verdict, its reason, and one thing to try next."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from bestepoch.base.errors import UsageError
from bestepoch.evaluation.curves import Curves
from bestepoch.evaluation.rules import RULES, Kind
from bestepoch.runs.tables import Row


@dataclass(frozen=True)
class Diagnosis:
    """Verdict on a run.

    Attributes:
        kind: the verdict in a word or three.
        epoch: the epoch that it speaks of: the best one of a run that is overfit or converged, the first bad one of a
            run that diverged, else the last.
        sentence: the verdict with its reason.
        suggestion: what to try, in a sentence.
        override: the overrides that do it; empty where there is nothing to do.
        evidence: the numbers behind it.
    """

    kind: Kind
    epoch: int
    sentence: str
    suggestion: str
    override: str
    evidence: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return the diagnosis without its evidence, for ``run.json``."""
        return {key: getattr(self, key) for key in ("kind", "epoch", "sentence", "suggestion", "override")}


def diagnose_run(info: dict[str, Any], epochs: list[Row]) -> Diagnosis:
    """Call `diagnose` with the settings and data in a run's ``run.json``."""
    data = info["data"]
    return diagnose(epochs, info["config"], classes=data["classes"], validation_images=data["sizes"]["validation"])


def diagnose(epochs: list[Row], config: dict[str, Any], *, classes: int, validation_images: int) -> Diagnosis:
    """Diagnose a run: the first of `RULES` that applies.

    Args:
        epochs: rows of the epoch table, in any order.
        config: the run's settings, as in ``run.json``.
        classes: number of classes.
        validation_images: number of validation images, which decides what is noise.

    Raises:
        UsageError: the table is empty.
    """
    if not epochs:
        raise UsageError("No epoch was finished, so there is nothing to diagnose. Train at least one: train.epochs=1")
    curves = Curves.from_rows(epochs, config, classes, validation_images)
    verdict = next(found for rule in RULES if (found := rule(curves)) is not None)
    epoch = int(curves.epochs[verdict.at])
    since = f" since epoch {epoch}" if verdict.since else ""
    return Diagnosis(
        verdict.kind,
        epoch,
        f"{verdict.kind}{since}: {verdict.reason}.",
        verdict.advice.sentence,
        verdict.advice.override,
        _evidence(curves),
    )


def _evidence(curves: Curves) -> dict[str, float]:
    values: dict[str, float] = {
        "epochs": curves.n,
        "train_loss": curves.train[-1],
        "val_loss": curves.val[-1],
        "val_accuracy": curves.val_accuracy[-1],
    }
    if np.isfinite([curves.train, curves.val]).all():
        values |= {"gap": curves.val[-1] - curves.train[-1], "noise": curves.noise}
        values |= {"expected_gain": curves.expected_gain}
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}
