"""How many epochs are enough, over several runs."""

from __future__ import annotations

from bestepoch.cli.launch import launch
from bestepoch.sweeps.study import main

if __name__ == "__main__":
    launch(main)
