"""Deliver a run's journal to MLflow."""

from __future__ import annotations

import logging
import time
from typing import Any

from bestepoch.base import errors, files, paths, private_api
from bestepoch.base.errors import redact_credentials
from bestepoch.runs.run import Run
from bestepoch.runs.tables import Row
from bestepoch.tracking.base import EPOCH_METRICS, ITERATION_METRICS
from bestepoch.tracking.mlflow.run_facts import (
    CONTEXTS,
    dataset_part,
    make_params,
    make_tags,
    resource_metrics,
    selection_tags,
)
from bestepoch.tracking.mlflow.store import ensure_experiment, make_client, mlflow_project_run_id, run_exists, store_uri
from bestepoch.tracking.mlflow.views import DESCRIPTION_TAG, add_data_set_views
from bestepoch.tracking.run_names import run_title
from bestepoch.tracking.run_summary import describe_run

log = logging.getLogger("bestepoch")

MAX_METRICS_PER_REQUEST = 1000  # MLflow's limit
MAX_PARAMS_PER_REQUEST = 100  # MLflow's limit


class MlflowTracker:
    """Log one run to the MLflow store."""

    name = "MLflow"

    def __init__(self, run: Run, experiment: str, system_metrics: bool = False) -> None:
        self.run, self.experiment, self.system_metrics = run, experiment, system_metrics
        self.cursor: dict[str, Any] = {}
        self.uri = store_uri()
        self.client: Any = None
        self._monitor: Any = None

    @staticmethod
    def load() -> None:
        """Import MLflow's client, and the database store if the store is not a server."""
        import mlflow.tracking  # noqa: F401

        if not store_uri().startswith("http"):
            private_api.import_mlflow_database_store()

    def open(self) -> None:
        """Find the run of an earlier attempt, or create one with its parameters, tags and data set."""
        if self.client is not None:
            return
        mlflow = make_client(self.uri)
        if self.cursor.get("uri") != redact_credentials(self.uri) or not run_exists(mlflow, self.cursor["run_id"]):
            # The store is new or has lost the run: deliver everything again.
            run_id = self._find_or_create(mlflow)
            self._log_metadata(mlflow, run_id)  # the attempt that created the run may have been killed before this
            self.cursor.clear()
            self.cursor.update(uri=redact_credentials(self.uri), run_id=run_id)
        if self.run.status == "running":
            mlflow.update_run(self.cursor["run_id"], status="RUNNING")
            self._sync_failure_tag(mlflow)
            if self.system_metrics:
                self._monitor = private_api.start_system_metrics(self.cursor["run_id"], self.uri)
        self.client = mlflow

    def _sync_failure_tag(self, mlflow: Any) -> None:
        """Tag the run with the reason why this attempt failed; remove the tag of an earlier attempt otherwise."""
        run_id, reason = self.cursor["run_id"], self.run.info.get("reason")
        if reason is not None:
            mlflow.set_tag(run_id, "failure", reason)
        elif "failure" in mlflow.get_run(run_id).data.tags:
            mlflow.delete_tag(run_id, "failure")

    def _find_or_create(self, mlflow: Any) -> str:
        """Return the id of the MLflow run with this run's key: an attempt may be killed before it saves the id."""
        experiment_id, key = ensure_experiment(mlflow, self.uri, self.experiment), self.run.info["uuid"]
        runs = mlflow.search_runs([experiment_id], f"tags.`bestepoch.key` = '{key}'", max_results=1)
        if not runs:
            started = int(self.run.info["started"] * 1000)
            tags = {"bestepoch.key": key}
            runs = [mlflow.create_run(experiment_id, start_time=started, tags=tags, run_name=run_title(self.run))]
        return str(runs[0].info.run_id)

    def _log_metadata(self, mlflow: Any, run_id: str) -> None:
        from mlflow.entities import DatasetInput, InputTag, Param, RunTag

        info = self.run.info
        folder = (self.run.original or self.run).folder  # a copy is one run with its original
        tags = make_tags(info) | {"folder": paths.display_path(folder)}  # without the name, which a user may change
        parent = info.get("parent")  # MLflow run of the sweep
        if parent is not None:
            tags["sweep"] = self.run.folder.parent.name
        if parent or mlflow_project_run_id():
            tags["mlflow.parentRunId"] = parent or mlflow_project_run_id()
        params = [Param(key, str(value)) for key, value in make_params(info).items()]
        mlflow.log_batch(run_id, tags=[RunTag(k, str(v)) for k, v in tags.items()], synchronous=True)
        for i in range(0, len(params), MAX_PARAMS_PER_REQUEST):
            mlflow.log_batch(run_id, params=params[i : i + MAX_PARAMS_PER_REQUEST], synchronous=True)
        inputs = [
            DatasetInput(dataset_part(info["data"], part), [InputTag("mlflow.data.context", CONTEXTS[part])])
            for part in CONTEXTS
        ]
        try:
            mlflow.log_inputs(run_id, inputs)
        except Exception as error:
            if not errors.is_unique_violation(error):
                raise
            # MLflow checks for the data set before adding it; another run has added it in between.
            mlflow.log_inputs(run_id, inputs)
        try:
            mlflow.log_dict(run_id, info["config"], "config.yaml")
        except Exception as error:  # the artifact store may fail alone; the curves do not need it
            log.warning("warning: MLflow does not take the file config.yaml (%s)", errors.first_line(error))
        set_description(mlflow, run_id, describe_run(info))
        try:
            add_data_set_views(mlflow, mlflow.get_run(run_id).info.experiment_id, info["data"]["name"])
        except Exception as error:  # the server may deny permission; runs do not need the views
            log.warning("warning: MLflow does not take the views of its data sets (%s)", errors.first_line(error))

    def write(self, iterations: list[Row], epochs: list[Row]) -> None:
        """Log the rows in requests of MLflow's maximum size. MLflow stores a repeated point once."""
        from mlflow.entities import Metric

        metrics = [
            Metric(key, row[key], round(row["time"] * 1000), int(row[axis]))
            for rows, keys, axis in ((iterations, ITERATION_METRICS, "iteration"), (epochs, EPOCH_METRICS, "epoch"))
            for row in rows
            for key in keys
            if key in row  # tables of earlier versions have fewer columns
        ]
        for i in range(0, len(metrics), MAX_METRICS_PER_REQUEST):
            self.client.log_batch(
                self.cursor["run_id"], metrics=metrics[i : i + MAX_METRICS_PER_REQUEST], synchronous=True
            )

    def close(self, status: str) -> None:
        """Log the resource metrics, the best epoch and the description, then end the run."""
        if self._monitor is not None:
            private_api.end_system_metrics(self._monitor)
            self._monitor = None
        # Again at the end: the worker of an earlier attempt may have delivered the run until this attempt was over.
        self._sync_failure_tag(self.client)
        ended = self.run.info.get("ended")
        costs = resource_metrics(self.run.info)
        if costs and self.cursor.get("costs") != ended:  # once for each time the run ends
            from mlflow.entities import Metric, RunTag

            when = int((ended or time.time()) * 1000)
            metrics = [Metric(key, value, when, 0) for key, value in costs.items()]
            best = dict(self.run.info.get("best", {}))
            when = round(best.pop("time", 0) * 1000)  # time of the epoch, so that a repeated point is stored once
            metrics += [Metric(key, value, when, 0) for key, value in best.items()]
            tags = [RunTag(key, value) for key, value in selection_tags(self.run.info).items()]
            self.client.log_batch(self.cursor["run_id"], metrics=metrics, tags=tags, synchronous=True)
            self.cursor["costs"] = ended
            set_description(self.client, self.cursor["run_id"], describe_run(self.run.info))
        name = {"finished": "FINISHED", "killed": "KILLED"}.get(status, "FAILED")
        self.client.set_terminated(self.cursor["run_id"], name, end_time=int(ended * 1000) if ended else None)


def set_description(mlflow: Any, run_id: str, text: str) -> None:
    """Set the description of a run unless a user has edited the earlier one.

    The last line is a Markdown reference, which is not displayed. It holds a hash of the text that reveals edits.
    """
    mark = "[bestepoch]: # ({})"
    current = mlflow.get_run(run_id).data.tags.get(DESCRIPTION_TAG)
    if current is not None:
        body, _, last = current.rpartition("\n\n")
        if last != mark.format(files.digest(body)):
            return
    mlflow.set_tag(run_id, DESCRIPTION_TAG, f"{text}\n\n{mark.format(files.digest(text))}")
