"""What a finished run shows before its test: the chosen epoch and the verdict on its curves."""

from __future__ import annotations

import functools
import logging
from typing import Any

from bestepoch.base.config.schema import SelectionConfig
from bestepoch.base.paths import display_path
from bestepoch.evaluation.diagnosis import diagnose_run
from bestepoch.evaluation.selection import best_epoch, select_epoch
from bestepoch.runs import checkpoint
from bestepoch.runs.run import Run
from bestepoch.runs.tables import read_rows

log = logging.getLogger("bestepoch")


def summarize_run(selection: SelectionConfig, run: Run) -> dict[str, Any]:
    """Return ``best``, the metrics of the chosen epoch by their names, and the ``verdict`` for ``run.json``.

    Raises:
        UsageError: no epoch can be chosen.
    """
    epochs = read_rows(run.folder / "epochs.csv")
    best = select_epoch(epochs, selection, functools.partial(checkpoint.load_validation_results, run.folder))
    names = {"best/epoch": "epoch", "best/val_loss": "val/loss", "best/val_accuracy": "val/accuracy", "time": "time"}
    verdict = diagnose_run(run.info, epochs).to_dict()
    return {"best": {name: best[column] for name, column in names.items()}, "verdict": verdict}


def report_run(run: Run, selection: SelectionConfig) -> float:
    """Log the verdict on a run and what to type next; return its best selection metric, which sweepers optimise."""
    if (verdict := run.info.get("verdict")) is not None:
        log.info("verdict  %s", verdict["sentence"])
        log.info("suggest  %s", f"{verdict['suggestion']}  {verdict['override']}".rstrip())
    log.info("evaluate python -m bestepoch.evaluate run=%s", display_path(run.folder))
    log.info("compare  make ui")
    return best_epoch(read_rows(run.folder / "epochs.csv"), selection.metric, selection.mode)[selection.metric]
