"""Deliver the rows of a run's journal that MLflow or TensorBoard does not have yet."""

from __future__ import annotations

import logging
from pathlib import Path

from bestepoch.base import paths
from bestepoch.base.config.schema import Config
from bestepoch.base.errors import UsageError
from bestepoch.runs.find import find_run
from bestepoch.runs.run import Run
from bestepoch.tracking.base import failure_reason
from bestepoch.tracking.cursor import DeliveryCursor, deliver_pending, delivery_lock
from bestepoch.tracking.mlflow.run import MlflowTracker
from bestepoch.tracking.tensorboard.run import TensorBoardTracker
from bestepoch.tracking.worker import make_tracker

log = logging.getLogger("bestepoch")


def sync_run(config: Config) -> None:
    """Run ``python -m bestepoch.sync run=runs/<name>``. Repeating the command stores nothing twice.

    Raises:
        UsageError: no run is named, the run is not in ``runs/``, is being trained, or a tracker refuses the data.
    """
    if config.run is None:
        raise UsageError("Which run? Add run=runs/<name>")
    folder = _find_live_folder(config.run)
    run = Run.read(folder)
    original = run.original
    if original is not None:
        name = paths.display_path(original.folder)
        if original.is_training():
            raise UsageError(f"{paths.display_path(folder)} is a copy of {name}, which is being trained now")
        log.warning("warning: %s is a copy of %s; the two are one run in MLflow", paths.display_path(folder), name)
    if not run.lock():
        raise UsageError(f"{paths.display_path(folder)} is being trained now; it is delivered by who trains it")
    if run.status == "running":
        run.update(status="killed")  # the run's lock is free, so its training process is gone
    status = run.status if original is None else original.status  # a copy may be older than the end of the run
    trackers = {MlflowTracker.name: config.tracking.mlflow, TensorBoardTracker.name: config.tracking.tensorboard}
    with delivery_lock(folder):  # the tracking worker of a killed trainer releases the lock within drain_seconds
        for name in [name for name, enabled in trackers.items() if enabled]:
            tracker = make_tracker(name, run, config.tracking.experiment)
            cursor = DeliveryCursor(folder, tracker)
            try:
                delivered = deliver_pending(tracker, folder, cursor.values)
                tracker.close(status)
            except Exception as error:
                raise UsageError(f"{name} does not take the run's data: {failure_reason(error)}") from None
            cursor.values["status"] = status
            cursor.save()
            log.info("%s: %s", name, "brought up to date" if delivered else "has everything already")
    log.info("from %s", paths.display_path(folder))


def _find_live_folder(name: str | list[str]) -> Path:
    """Return the folder in ``runs/`` that ``name`` means; for results that DVC exported, that of the run itself.

    Raises:
        UsageError: the run is not in ``runs/``.
    """
    folder, runs = find_run(name), paths.main_checkout() / "runs"
    if runs.resolve() in folder.parents:
        return folder
    # DVC owns a folder of exported results; writing into the folder would change its checksum.
    live_folder = runs / Run.read(folder).name
    if not (live_folder / "run.json").is_file():
        raise UsageError(f"{name} has no live run in runs/. Bring it to MLflow with: dvc repro -f -s evaluate")
    return live_folder
