"""Deliver to MLflow and TensorBoard what they have missed of a run."""

from __future__ import annotations

from bestepoch.cli.launch import launch
from bestepoch.tracking.sync import sync_run

if __name__ == "__main__":
    launch(sync_run)
