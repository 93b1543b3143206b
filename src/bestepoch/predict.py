"""Say which digit is on a picture."""

from __future__ import annotations

import sys

from bestepoch.cli.launch import answer
from bestepoch.prediction.predict import main

if __name__ == "__main__":
    answer(main, sys.argv[1:])
