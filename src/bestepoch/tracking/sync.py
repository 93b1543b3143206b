"""Deliver what a tracker missed: everything in a run's journal that MLflow or TensorBoard does not have yet."""

from __future__ import annotations

import logging

from bestepoch.base import files
from bestepoch.base.config.schema import Settings
from bestepoch.base.files import UsageError
from bestepoch.evaluation.evaluate import find_run
from bestepoch.runs.run import Run
from bestepoch.tracking.mlflow.run import MlflowTracker
from bestepoch.tracking.mlflow.store import reason
from bestepoch.tracking.tensorboard.run import TensorBoardTracker
from bestepoch.tracking.worker import Place, build, catch_up, deliveries_of

log = logging.getLogger("bestepoch")


def main(settings: Settings) -> None:
    """``python -m bestepoch.sync run=runs/<name>``. Safe to repeat: what is there is not stored twice."""
    if settings.run is None:
        raise UsageError("Which run? Add run=runs/<name>")
    folder = files.home() / "runs" / Run.read(find_run(settings.run)).name
    if not (folder / "run.json").is_file():
        # published results alone are DVC's: nothing may be written beside them
        folder = find_run(settings.run)
        if files.home() / "runs" not in folder.parents:
            raise UsageError(
                f"{settings.run} has no live run in runs/. Bring it to MLflow with: dvc repro -f -s evaluate"
            )
    run = Run.read(folder)
    if not run.lock():
        raise UsageError(f"{files.relative(folder)} is being trained now; it is delivered by who trains it")
    if run.status == "running":
        run.update(status="killed")  # nobody trains it and it never came to its end
    wanted = {MlflowTracker.name: settings.tracking.mlflow, TensorBoardTracker.name: settings.tracking.tensorboard}
    with deliveries_of(folder):  # whoever still delivers it after a kill is given up within drain_seconds
        for name in [name for name, yes in wanted.items() if yes]:
            tracker = build(name, run, settings.tracking.experiment)
            place = Place(folder, tracker)
            try:
                new = catch_up(tracker, folder, place.values)
                tracker.close(run.status)
            except Exception as error:
                raise UsageError(f"{name} does not take the run's data: {reason(error)}") from None
            place.values["status"] = run.status
            place.save()
            log.info("%s: %s", name, "brought up to date" if new else "has everything already")
    log.info("from %s", files.relative(folder))
