"""Test the winner of a sweep and write it as a preset."""

from __future__ import annotations

from bestepoch.cli.launch import launch
from bestepoch.sweeps.preset import promote

if __name__ == "__main__":
    launch(promote)
