"""The tracker protocol and the metric names that all trackers share.

A tracker reads a run's journal from a cursor. Rows that a slow or unreachable tracker has not stored stay in the
journal and are delivered later: by the same run, by its next attempt, or by ``python -m bestepoch.sync``. Rows carry
their own times, so delivering a row twice stores it once.
"""

from __future__ import annotations

from typing import Any, Protocol

from bestepoch.base import errors
from bestepoch.runs.tables import Row

ITERATION_METRICS = ("train/loss", "lr", "train/grad_norm")
EPOCH_METRICS = ("val/loss", "val/accuracy", "train/epoch_loss", "train/eval_loss", "train/eval_accuracy")


class Tracker(Protocol):
    """A destination for the metrics of one run."""

    name: str
    cursor: dict[str, Any]  # the tracker's state, saved between attempts

    @staticmethod
    def load() -> None:
        """Import the tracker's libraries without contacting a store or server."""

    def open(self) -> None:
        """Find or create the run in the store. Called again after it raises."""

    def write(self, iterations: list[Row], epochs: list[Row]) -> None:
        """Store the rows. Called again with the same rows after it raises."""

    def close(self, status: str) -> None:
        """End the run after its last row; ``status`` is finished, killed or failed."""


def failure_reason(error: Exception) -> str:
    """Return one line that says why a tracker refused the data."""
    if getattr(error, "error_code", None) == "UNAUTHENTICATED":
        return (
            "the server does not know this name with this password: set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or the two in ~/.mlflow/credentials"
        )
    return errors.first_line(error)
