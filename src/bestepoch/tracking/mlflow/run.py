"""The journal, delivered to MLflow."""

from __future__ import annotations

import getpass
import json
import logging
import time
from typing import Any

from bestepoch.base import errors, files, private_api
from bestepoch.base.config.overrides import flatten
from bestepoch.base.errors import redact_credentials
from bestepoch.runs.run import Run
from bestepoch.runs.tables import Row
from bestepoch.tracking.base import EPOCH_METRICS, ITERATION_METRICS
from bestepoch.tracking.mlflow.store import ensure_experiment, make_client, mlflow_project_run_id, run_exists, store_uri
from bestepoch.tracking.mlflow.views import DESCRIPTION_TAG
from bestepoch.tracking.run_summary import describe_run

log = logging.getLogger("bestepoch")

BATCH = 1000  # metrics in one request: as many as MLflow takes


class MlflowTracker:
    """One run in the MLflow store."""

    name = "MLflow"

    def __init__(self, run: Run, experiment: str, system_metrics: bool = False) -> None:
        self.run, self.experiment, self.system_metrics = run, experiment, system_metrics
        self.cursor: dict[str, Any] = {}
        self.uri = store_uri()
        self.client: Any = None
        self._monitor: Any = None

    @staticmethod
    def load() -> None:
        """See `Tracker`."""
        import mlflow.tracking  # noqa: F401

        if not store_uri().startswith("http"):
            private_api.import_mlflow_database_store()

    def open(self) -> None:
        """Find the run of an earlier attempt, or make one with its parameters, tags and data set."""
        if self.client is not None:
            return
        mlflow = make_client(self.uri)
        if self.cursor.get("uri") != redact_credentials(self.uri) or not run_exists(mlflow, self.cursor["run_id"]):
            # another store, or one that lost the run: everything is delivered anew
            run_id = self._find(mlflow) or self._make(mlflow)
            self._describe(mlflow, run_id)  # also one that was found: who made it may not have come this far
            self.cursor.clear()
            self.cursor.update(uri=redact_credentials(self.uri), run_id=run_id)
        if self.run.status == "running":
            mlflow.update_run(self.cursor["run_id"], status="RUNNING")
            self._sync_failure_tag(mlflow)
            if self.system_metrics:
                self._start_system_metrics()
        self.client = mlflow

    def _sync_failure_tag(self, mlflow: Any) -> None:
        """Why this attempt failed, where it did; not why an earlier one did."""
        run_id, reason = self.cursor["run_id"], self.run.info.get("reason")
        if reason is not None:
            mlflow.set_tag(run_id, "failure", reason)
        elif "failure" in mlflow.get_run(run_id).data.tags:
            mlflow.delete_tag(run_id, "failure")

    def _start_system_metrics(self) -> None:
        """What this machine is busy with, by MLflow's own thread, which gives up by itself when MLflow does."""
        self._monitor = private_api.start_system_metrics(self.cursor["run_id"], self.uri)

    def _find(self, mlflow: Any) -> str | None:
        """A run that an attempt made but did not live to write down."""
        number = ensure_experiment(mlflow, self.uri, self.experiment)
        found = mlflow.search_runs([number], f"tags.`bestepoch.key` = '{self.run.info['key']}'", max_results=1)
        return str(found[0].info.run_id) if found else None

    def _make(self, mlflow: Any) -> str:
        number = ensure_experiment(mlflow, self.uri, self.experiment)
        made = mlflow.create_run(
            number,
            start_time=int(self.run.info["started"] * 1000),
            tags={"bestepoch.key": self.run.info["key"]},  # at once: by this a later attempt finds it
            run_name=self.run.name,
        )
        return str(made.info.run_id)

    def _describe(self, mlflow: Any, run_id: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

        info = self.run.info
        tags = {"mlflow.runName": self.run.name, **make_tags(info)}
        parent = info.get("parent")  # the sweep's run
        if parent is not None:
            tags["sweep"] = self.run.folder.parent.name
        if parent or mlflow_project_run_id():
            tags["mlflow.parentRunId"] = parent or mlflow_project_run_id()
        # what is null was not asked for: train.iterations where there is train.epochs
        params = [Param(k, str(v)) for k, v in flatten(info["config"]).items() if v is not None]
        mlflow.log_batch(run_id, tags=[RunTag(k, str(v)) for k, v in tags.items()])
        for i in range(0, len(params), 100):
            mlflow.log_batch(run_id, params=params[i : i + 100])
        data = info["data"]
        entity = Dataset(
            name=data["name"],
            digest=data["checksum"][:12],  # the whole of it is a tag
            source_type="local",
            source=json.dumps({"uri": data["folder"]}),
            profile=json.dumps({**data["sizes"], "checksum": data["checksum"]}),
        )
        inputs = [DatasetInput(entity, [InputTag("mlflow.data.context", "training")])]
        try:
            mlflow.log_inputs(run_id, inputs)
        except Exception as error:
            if not errors.is_unique_violation(error):
                raise
            # MLflow looks whether it has the data set, then adds it; another run's has come in between
            mlflow.log_inputs(run_id, inputs)
        try:
            mlflow.log_dict(run_id, info["config"], "config.yaml")
        except Exception as error:  # files have a place of their own, which may fail alone; the curves need it not
            log.warning("warning: MLflow does not take the file config.yaml (%s)", errors.first_line(error))
        set_description(mlflow, run_id, describe_run(info))

    def write(self, iterations: list[Row], epochs: list[Row]) -> None:
        """In batches of what one request may carry. MLflow stores a point once, however often it comes."""
        from mlflow.entities import Metric

        metrics = [
            Metric(key, row[key], round(row["time"] * 1000), int(row[axis]))
            for rows, keys, axis in ((iterations, ITERATION_METRICS, "iteration"), (epochs, EPOCH_METRICS, "epoch"))
            for row in rows
            for key in keys
        ]
        for i in range(0, len(metrics), BATCH):
            self.client.log_batch(self.cursor["run_id"], metrics=metrics[i : i + BATCH])

    def close(self, status: str) -> None:
        """End the run."""
        if self._monitor is not None:
            private_api.end_system_metrics(self._monitor)
            self._monitor = None
        # at the end as well: an attempt may be over before the courier of the one before it has let go of the run
        self._sync_failure_tag(self.client)
        ended = self.run.info.get("ended")
        costs = resource_metrics(self.run.info)
        if costs and self.cursor.get("costs") != ended:  # once for each end, however often it is delivered
            from mlflow.entities import Metric

            when = int((ended or time.time()) * 1000)
            metrics = [Metric(key, value, when, 0) for key, value in costs.items()]
            best = dict(self.run.info.get("best", {}))
            when = round(best.pop("time", 0) * 1000)  # its epoch's: the same at another end, and stored once
            metrics += [Metric(key, value, when, 0) for key, value in best.items()]
            self.client.log_batch(self.cursor["run_id"], metrics=metrics)
            self.cursor["costs"] = ended
            set_description(self.client, self.cursor["run_id"], describe_run(self.run.info))
        self.end(status)

    def end(self, status: str) -> None:
        """The run has ended, when it did; what it took is told by `close`, which knows whether it was."""
        ended, name = self.run.info.get("ended"), {"finished": "FINISHED", "killed": "KILLED"}.get(status, "FAILED")
        self.client.set_terminated(self.cursor["run_id"], name, end_time=int(ended * 1000) if ended else None)


def set_description(mlflow: Any, run_id: str, text: str) -> None:
    """Describe a run, unless a person has changed what was said of it before.

    The last line is a link that nothing refers to, which Markdown does not show. It tells whose text this is.
    """
    mark = "[bestepoch]: # ({})"
    there = mlflow.get_run(run_id).data.tags.get(DESCRIPTION_TAG)
    if there is not None:
        before, _, last = there.rpartition("\n\n")
        if last != mark.format(files.digest(before)):
            return
    mlflow.set_tag(run_id, DESCRIPTION_TAG, f"{text}\n\n{mark.format(files.digest(text))}")


def resource_metrics(info: dict[str, Any]) -> dict[str, float]:
    """What a run took, as metrics: seconds by account and in all, and megabytes; empty where it has not ended."""
    if "spent" not in info:
        return {}
    spent = dict(info["spent"])
    if "asked" in info:  # training waits until the trackers have everything
        spent["tracking"] += time.time() - info["asked"]
    costs = {f"time/{account}": seconds for account, seconds in spent.items()} | {"time/total": sum(spent.values())}
    return costs | ({"memory/peak_mb": info["peak_memory"] / 1e6} if info.get("peak_memory") else {})


def make_tags(info: dict[str, Any]) -> dict[str, Any]:
    """What a run is filtered and told apart by, beside its parameters."""
    data, git = info["data"], info["git"]
    tags = {
        "dataset": data["name"],
        "data.checksum": data["checksum"],
        "device": info["environment"].get("device"),
        "host": info["environment"]["host"],
        "git.dirty": str(git["dirty"]).lower(),
        "git.commit": git["commit"],
        "git.url": git.get("url"),
        "preset": info.get("preset"),
        "mlflow.source.git.commit": git["commit"],
        "mlflow.source.name": info["command"],
        "mlflow.source.type": "LOCAL",
        "mlflow.user": getpass.getuser(),
        "dvc.data": data.get("dvc"),
        "continues": info.get("continues", {}).get("run"),
        "offline_sample": f"stands in for {data['requested']}" if data["name"] != data["requested"] else None,
    }
    return {key: value for key, value in tags.items() if value is not None}
