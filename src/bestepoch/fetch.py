"""Stage 1: fetch the files of the chosen data set into ``data/download``."""

from __future__ import annotations

from bestepoch.cli.launch import launch
from bestepoch.fetching.download import main

if __name__ == "__main__":
    launch(main)
