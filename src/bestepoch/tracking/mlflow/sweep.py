"""The parent runs of sweeps, and studies, in MLflow."""

from __future__ import annotations

import getpass
import shlex
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bestepoch.base.errors import redact_credentials
from bestepoch.base.files import read_json, write_json
from bestepoch.base.paths import main_checkout
from bestepoch.runs.run import Run
from bestepoch.tracking.mlflow.store import ensure_experiment, make_client, mlflow_project_run_id, run_exists, store_uri
from bestepoch.tracking.mlflow.views import DESCRIPTION_TAG


@dataclass(frozen=True)
class SweepSummary:
    """How a sweep ended.

    Args:
        metric: name of the metric that ranks the jobs.
        winner: record of the best job, None where no job is finished.
        failed: whether a job is not finished.
        table: all jobs in Markdown, as lines.
    """

    metric: str
    winner: dict[str, Any] | None
    failed: bool
    table: list[str]


def begin_sweep(experiment: str, folder: Path, overrides: list[str]) -> str:
    """Return the id of the sweep's run: that of ``mlflow run``, that of an earlier attempt, or a new one."""
    uri = store_uri()
    client = make_client(uri)
    record_file = folder / "parent.json"
    record = read_json(record_file, "") if record_file.exists() else {}
    experiment_id = ensure_experiment(client, uri, experiment)
    run_id = mlflow_project_run_id()
    if run_id is None and record.get("uri") == redact_credentials(uri) and run_exists(client, record["run_id"]):
        run_id = str(record["run_id"])
    if run_id is None:
        command = shlex.join(["python", "-m", "bestepoch.train", "-m", *overrides])
        tags = {"mlflow.user": getpass.getuser(), "mlflow.source.name": command, "mlflow.source.type": "LOCAL"}
        run_id = str(client.create_run(experiment_id, run_name=folder.name, tags=tags).info.run_id)
    tags = {"mlflow.runName": folder.name, "sweep": folder.name, "sweep.overrides": " ".join(overrides)}
    for key, value in tags.items():
        client.set_tag(run_id, key, value)
    client.update_run(run_id, status="RUNNING")
    record = {"uri": redact_credentials(uri), "run_id": run_id, "host": socket.gethostname(), "status": "running"}
    write_json(record_file, record)
    return run_id


def end_sweep(run_id: str, folder: Path, files: list[Path], summary: SweepSummary) -> None:
    """Write the table of jobs and the winner into the sweep's run, and end it."""
    client = make_client(store_uri())
    parent = client.get_run(run_id)
    # the run of `mlflow run` keeps artifacts in mlruns/, see `mlflow_project_run_id`; its description has the table
    if "mlruns" not in Path(parent.info.artifact_uri).parts:
        for file in files:
            client.log_artifact(run_id, str(file))
    description = [f"`{parent.data.tags['sweep.overrides']}`", ""]
    if (winner := summary.winner) is not None:
        best = Run.read(main_checkout() / winner["run"]).info.get("mlflow", {})
        heading = f"**Best: {winner['name']}**"
        client.set_tag(run_id, "best", winner["name"])
        if best.get("uri") == redact_credentials(store_uri()):
            client.set_tag(run_id, "best.run_id", best["run_id"])
            experiment_id = client.get_run(best["run_id"]).info.experiment_id
            heading = f"**Best: [{winner['name']}](#/experiments/{experiment_id}/runs/{best['run_id']})**"
        description += [f"{heading}, {summary.metric} {winner['metric']:.5g} at epoch {winner['best_epoch']}", ""]
    client.set_tag(run_id, DESCRIPTION_TAG, "\n".join([*description, *summary.table]))
    if mlflow_project_run_id() != run_id:  # the run of `mlflow run` ends with its command
        client.set_terminated(run_id, "FAILED" if summary.failed else "FINISHED")
    record_file = folder / "parent.json"
    write_json(record_file, read_json(record_file, "") | {"status": "ended"})


def end_stale_sweep(record_file: Path) -> None:
    """End the run of a sweep whose process was killed, named by the sweep's ``parent.json``."""
    record = read_json(record_file, "")
    make_client(store_uri()).set_terminated(record["run_id"], "KILLED")
    write_json(record_file, record | {"status": "ended"})


def log_study(experiment: str, folder: Path, parent: dict[str, str], metrics: dict[str, float]) -> None:
    """Add a study to the run of its sweep, or to a new run where there is none.

    Args:
        experiment: name of the experiment.
        folder: files of the study.
        parent: content of the sweep's ``parent.json``; empty where there is none.
        metrics: numbers of the study.
    """
    from mlflow.entities import Metric

    uri = store_uri()
    client = make_client(uri)
    if parent.get("uri") == redact_credentials(uri) and run_exists(client, parent["run_id"]):
        run_id = parent["run_id"]
    else:
        experiment_id = ensure_experiment(client, uri, experiment)
        run = client.create_run(experiment_id, run_name=f"study-{folder.name}", tags={"study": folder.name})
        run_id = run.info.run_id
        client.set_terminated(run_id, "FINISHED")
    now = int(time.time() * 1000)
    client.log_batch(
        run_id, metrics=[Metric(f"study/{key}", value, now, 0) for key, value in metrics.items()], synchronous=True
    )
    client.log_artifacts(run_id, str(folder), "study")
