"""Say which digit is on a picture."""

from __future__ import annotations

import sys

from bestepoch.cli.launch import run_cli
from bestepoch.prediction.predict import predict_pictures

if __name__ == "__main__":
    run_cli(predict_pictures, sys.argv[1:])
