"""Log an evaluation to MLflow: metrics, files, and the selected network as a model."""

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
from bestepoch.tracking.mlflow.run_facts import dataset_part, selection_tags

MD5_TAG = "bestepoch.md5"  # model tag: checksum of its model.pt


def log_evaluation(
    run: Run,
    experiment_name: str,
    journal: Path,
    metrics: dict[str, float],
    model: ModelArtifact,
    files: Path,
    description: str,
) -> Any:
    """Add an evaluation to the MLflow run of the training.

    If the store lacks the run, because its results come from a cache or another machine, the run is first created
    from its journal. A run that is being trained is brought to the store and ended there by the process that trains it.

    Args:
        run: the evaluated run.
        experiment_name: MLflow experiment of the run.
        journal: folder of the run's CSV tables.
        metrics: values by metric name.
        model: the selected network.
        files: folder to upload as the artifact ``evaluate``.
        description: Markdown that replaces the description written by training.

    Returns:
        The ``mlflow.entities.LoggedModel``.
    """
    import mlflow as fluent
    from mlflow.entities import Metric, RunTag

    tracker = MlflowTracker(run, experiment_name)
    tracker.cursor.update(run.info.get("mlflow", {}))
    saved_cursor = dict(tracker.cursor)
    tracker.open()
    run_id = str(tracker.cursor["run_id"])
    mlflow_run = tracker.client.get_run(run_id)
    original = run.original
    trains = run.status == "running" or (original is not None and original.is_training())
    if tracker.cursor != saved_cursor and not trains:
        deliver_pending(tracker, journal, tracker.cursor)
        if run.status == "finished" or mlflow_run.info.status == "RUNNING":  # the copy of a run may be older than it
            tracker.close(run.status)
        mlflow_run = tracker.client.get_run(run_id)
    tracker.client.log_artifacts(run_id, str(files), "evaluate")
    set_description(tracker.client, run_id, description)
    fluent.set_tracking_uri(tracker.uri)
    logged = model.known(tracker.client, mlflow_run) or model.log(
        tracker.client, mlflow_run, int(metrics.get("best/epoch", 0))
    )
    data = {part: dataset_part(run.info["data"], part) for part in ("validation", "test")}
    points = []
    for key, value in metrics.items():
        when, of = _point_time(tracker.client, mlflow_run, key, value), data[_part_of(key)]
        points.append(Metric(key, value, when, 0, logged.model_id, of.name, of.digest, run_id))
    tags = [RunTag(key, value) for key, value in selection_tags(run.info).items()]  # of this choice, not the training's
    tracker.client.log_batch(run_id, metrics=points, tags=tags, synchronous=True)
    return logged


def _part_of(metric: str) -> str:
    return "test" if metric.startswith("test/") else "validation"


def _point_time(mlflow: Any, run: Any, key: str, value: float) -> int:
    """Return the current time (ms), or the last point's time if its value is equal: MLflow then keeps one point."""
    if run.data.metrics.get(key) == value:
        return int(mlflow.get_metric_history(run.info.run_id, key)[-1].timestamp)
    return int(time.time() * 1000)


@dataclass(frozen=True)
class ModelArtifact:
    """The selected network as an MLflow model: float32 pixels ``(N, H, W)`` from 0 to 255 to logits ``(N, 10)``.

    The project's own ``model.pt``, ``file``, is attached because loading it executes no code from the file.
    """

    network: Any
    example: Any
    file: Path

    def known(self, mlflow: Any, run: Any) -> Any:
        """Return the ``LoggedModel`` if an earlier evaluation of the run has logged the same file, else None."""
        models = mlflow.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
        return next((m for m in models if m.status == "READY" and m.tags.get(MD5_TAG) == md5(self.file)), None)

    def log(self, mlflow: Any, run: Any, epoch: int) -> Any:
        """Log the network after ``epoch`` as a model of the run and return the ``LoggedModel``.

        The model is created first and `log_model` only fills it: with a run, `log_model` would activate and end the
        run, and read all of its points to find those of the model's step.
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
            # torch.export warns about weights off the CPU even when they are on the CPU.
            warnings.filterwarnings("ignore", message="No complete tensor found")
            fluent.pytorch.log_model(
                self.network,
                model_id=logged.model_id,
                signature=infer_signature(self.example, logits),
                input_example=self.example,
                # Inferring the requirements would take seconds and load the model in another process.
                pip_requirements=[
                    f"torch=={torch.__version__.partition('+')[0]}",
                    f"mlflow=={fluent.__version__}",
                    "numpy",
                ],
                serialization_format="pt2",
                extra_files=[str(self.file)],
            )
        mlflow.log_outputs(run.info.run_id, [LoggedModelOutput(logged.model_id, step=epoch)])
        return mlflow.get_logged_model(logged.model_id)
