"""An evaluation in MLflow: its numbers, its files, and the chosen network as a model."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bestepoch.courier import catch_up
from bestepoch.run import Run
from bestepoch.tracking_mlflow import MlflowTracker


def record_evaluation(
    run: Run, experiment_name: str, journal: Path, metrics: dict[str, float], model: LoggedModel, files: Path
) -> Any:
    """Add an evaluation to the MLflow run that trained.

    A run that is not in the store, because a cache or another machine brought the training's results, is made there
    first, from its journal.

    Returns:
        MLflow's account of the model: ``run_id``, ``model_id`` and more.
    """
    import mlflow as fluent
    from mlflow.entities import Metric

    tracker = MlflowTracker(run, experiment_name)
    tracker.place.update(run.info.get("mlflow", {}))
    known = dict(tracker.place)
    tracker.open()
    run_id = str(tracker.place["run_id"])
    if tracker.place != known:
        catch_up(tracker, journal, tracker.place)
        tracker.close(run.status)
    now, there = int(time.time() * 1000), tracker.client.get_run(run_id).data.metrics
    # the same again, as after a kill, is no second point
    new = [Metric(key, value, now, 0) for key, value in metrics.items() if there.get(key) != value]
    tracker.client.log_batch(run_id, metrics=new)
    tracker.client.log_artifacts(run_id, str(files), "evaluate")
    fluent.set_tracking_uri(tracker.uri)
    try:
        with fluent.start_run(run_id=run_id):
            return model.log()
    finally:
        # start_run ended the run as finished or failed, now; it is still what training left
        if run.status == "running":
            tracker.client.update_run(run_id, status="RUNNING")
        else:
            tracker.end(run.status)


@dataclass(frozen=True)
class LoggedModel:
    """The chosen network as an MLflow model: raw pixels (n, height, width), float32, 0 to 255, to logits.

    ``file``, our own ``model.pt``, goes with it: that is read without running anything that is in it.
    """

    network: Any
    example: Any
    file: Path

    def log(self) -> Any:
        """Into the active run; returns MLflow's account of it."""
        import mlflow
        import torch
        from mlflow.models import infer_signature

        with torch.inference_mode():
            logits = self.network(torch.from_numpy(self.example)).numpy()
        with warnings.catch_warnings():
            # torch.export warns of weights that are not on the CPU, whatever they are on
            warnings.filterwarnings("ignore", message="No complete tensor found")
            return self._log_to(mlflow, torch, infer_signature(self.example, logits))

    def _log_to(self, mlflow: Any, torch: Any, signature: Any) -> Any:
        return mlflow.pytorch.log_model(
            self.network,
            name="model",
            signature=signature,
            input_example=self.example,
            # said, not inferred: that takes seconds and loads the model in another process
            pip_requirements=[
                f"torch=={torch.__version__.partition('+')[0]}",
                f"mlflow=={mlflow.__version__}",
                "numpy",
            ],
            serialization_format="pt2",
            extra_files=[str(self.file)],
        )
