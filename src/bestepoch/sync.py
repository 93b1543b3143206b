"""Deliver what a tracker has missed of a run."""

from __future__ import annotations

from bestepoch.cli.launch import launch
from bestepoch.tracking.sync import main

if __name__ == "__main__":
    launch(main)
