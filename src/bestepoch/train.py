"""Stage 3: train one configuration, or every one of a sweep."""

from __future__ import annotations

from bestepoch.cli.launch import launch
from bestepoch.training.session import main, sweep_main

if __name__ == "__main__":
    launch(main, sweep_main)
