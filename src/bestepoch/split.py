"""Stage 2: split the fetched data into training, validation and test."""

from __future__ import annotations

from bestepoch.cli.launch import launch
from bestepoch.splitting.split import main

if __name__ == "__main__":
    launch(main)
