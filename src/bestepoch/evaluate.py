"""Stage 4: choose the best epoch on validation and test it once."""

from __future__ import annotations

from bestepoch.cli.launch import launch
from bestepoch.evaluation.evaluate import main

if __name__ == "__main__":
    launch(main)
