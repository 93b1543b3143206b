"""Run a command of the package beside this file: ``python src/stage.py train`` is ``python -m bestepoch.train``.

`dvc.yaml` uses it so that a stage runs the code of its own checkout on any shell, also in the copies that
``dvc exp run --temp`` and ``--queue`` make. Processes that the stage starts get the same code by PYTHONPATH.
"""

from __future__ import annotations

import bestepoch  # noqa: F401  # first: from here on, Ctrl-C ends the stage with one line

# isort: split
import os
import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    source = str(Path(__file__).resolve().parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH", "")]))
    sys.path[0] = source
    command = sys.argv.pop(1)
    runpy.run_module(f"bestepoch.{command}", run_name="__main__", alter_sys=True)
