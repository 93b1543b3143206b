"""Serve the MLflow UI and TensorBoard on this machine."""

from __future__ import annotations

import sys

from bestepoch.cli.launch import run_cli
from bestepoch.cli.servers import main

if __name__ == "__main__":
    run_cli(main, sys.argv[1:])
