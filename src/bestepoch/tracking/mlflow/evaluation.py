"""An evaluation in MLflow: its numbers, its files, and the chosen network as a model."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bestepoch.base.files import md5
from bestepoch.runs.run import Run
from bestepoch.tracking.cursor import deliver_pending
from bestepoch.tracking.mlflow.run import MlflowTracker, set_description

MD5_TAG = "bestepoch.md5"  # a model's tag, of the model.pt that it was made of


def log_evaluation(
    run: Run,
    experiment_name: str,
    journal: Path,
    metrics: dict[str, float],
    model: ModelArtifact,
    files: Path,
    described: str,
) -> Any:
    """Add an evaluation to the MLflow run that trained.

    A run that is not in the store, because a cache or another machine brought the training's results, is made there
    first, from its journal.

    Args:
        journal: where its tables are.
        files: a folder, which goes along.
        described: Markdown, in place of what training said of the run.

    Returns:
        MLflow's account of the model: ``source_run_id``, ``model_id`` and more.
    """
    import mlflow as fluent
    from mlflow.entities import Metric

    tracker = MlflowTracker(run, experiment_name)
    tracker.cursor.update(run.info.get("mlflow", {}))
    known = dict(tracker.cursor)
    tracker.open()
    run_id = str(tracker.cursor["run_id"])
    if tracker.cursor != known:
        deliver_pending(tracker, journal, tracker.cursor)
        tracker.close(run.status)
    there = tracker.client.get_run(run_id)
    tracker.client.log_artifacts(run_id, str(files), "evaluate")
    set_description(tracker.client, run_id, described)
    fluent.set_tracking_uri(tracker.uri)
    logged = model.known(tracker.client, there) or model.log(tracker.client, there)
    points = [
        Metric(key, value, _point_time(tracker.client, there, key, value), 0, model_id=logged.model_id)
        for key, value in metrics.items()
    ]
    tracker.client.log_batch(run_id, metrics=points)
    return logged


def _point_time(mlflow: Any, run: Any, key: str, value: float) -> int:
    """Now, in ms; where the run's last point has this value already its own time, so that no second one is stored."""
    if run.data.metrics.get(key) == value:
        return int(mlflow.get_metric_history(run.info.run_id, key)[-1].timestamp)
    return int(time.time() * 1000)


@dataclass(frozen=True)
class ModelArtifact:
    """The chosen network as an MLflow model: raw pixels (n, height, width), float32, 0 to 255, to logits.

    ``file``, our own ``model.pt``, goes with it: that is read without running anything that is in it.
    """

    network: Any
    example: Any
    file: Path

    def known(self, mlflow: Any, run: Any) -> Any:
        """MLflow's account of it where an earlier evaluation of the run has logged the very same, else None."""
        mine = mlflow.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
        same = [one for one in mine if one.status == "READY" and one.tags.get(MD5_TAG) == md5(self.file)]
        return same[0] if same else None

    def log(self, mlflow: Any, run: Any) -> Any:
        """Make it a model of the run; returns MLflow's account of it.

        Made here and only filled by `log_model`, which would take the run for its own, end it, and read every point of
        it to find those of the model's step.
        """
        import mlflow as fluent
        import torch
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import infer_signature

        with torch.inference_mode():
            logits = self.network(torch.from_numpy(self.example)).numpy()
        logged = mlflow.create_logged_model(
            run.info.experiment_id, "model", run.info.run_id, {MD5_TAG: md5(self.file)}, run.data.params
        )
        with warnings.catch_warnings():
            # torch.export warns of weights that are not on the CPU, whatever they are on
            warnings.filterwarnings("ignore", message="No complete tensor found")
            fluent.pytorch.log_model(
                self.network,
                model_id=logged.model_id,
                signature=infer_signature(self.example, logits),
                input_example=self.example,
                # said, not inferred: that takes seconds and loads the model in another process
                pip_requirements=[
                    f"torch=={torch.__version__.partition('+')[0]}",
                    f"mlflow=={fluent.__version__}",
                    "numpy",
                ],
                serialization_format="pt2",
                extra_files=[str(self.file)],
            )
        mlflow.log_outputs(run.info.run_id, [LoggedModelOutput(logged.model_id, step=0)])
        return mlflow.get_logged_model(logged.model_id)
