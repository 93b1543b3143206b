"""The tracker protocol, and the metrics that every tracker has."""

from __future__ import annotations

from typing import Any, Protocol

from bestepoch.base import errors
from bestepoch.runs.tables import Row

ITERATION_METRICS = ("train/loss", "lr")
EPOCH_METRICS = ("val/loss", "val/accuracy", "train/epoch_loss")


class Tracker(Protocol):
    """Where a run is shown."""

    name: str
    cursor: dict[str, Any]  # what it wants remembered between attempts

    @staticmethod
    def load() -> None:
        """Import what it needs; asks no store or server."""

    def open(self) -> None:
        """Find or make the run's place; may raise and be called again."""

    def write(self, iterations: list[Row], epochs: list[Row]) -> None:
        """Store these rows; may raise, and then gets the same rows again."""

    def close(self, status: str) -> None:
        """All rows are written; ``status`` is finished, killed or failed."""


def failure_reason(error: Exception) -> str:
    """Why a tracker has not taken something, in a line."""
    if getattr(error, "error_code", None) == "UNAUTHENTICATED":
        return (
            "the server does not know this name with this password: set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or the two in ~/.mlflow/credentials"
        )
    return errors.first_line(error)
