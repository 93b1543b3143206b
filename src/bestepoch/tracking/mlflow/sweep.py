"""The parent runs of sweeps, and studies, in MLflow."""

from __future__ import annotations

import getpass
import shlex
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bestepoch.base.config.compose import read_params
from bestepoch.base.config.overrides import flatten
from bestepoch.base.errors import redact_credentials
from bestepoch.base.files import read_json, write_json
from bestepoch.base.paths import main_checkout
from bestepoch.runs.run import Run
from bestepoch.tracking.mlflow.store import ensure_experiment, make_client, mlflow_project_run_id, run_exists, store_uri
from bestepoch.tracking.mlflow.views import DESCRIPTION_TAG

MAX_ANSWERS = 10  # in a description; study.json has all


@dataclass(frozen=True)
class SweepSummary:
    """How a sweep ended.

    Args:
        metric: name of the metric that ranks the jobs.
        winner: record of the best job, None where no job is finished.
        failed: whether a job is not finished.
        table: all jobs in Markdown, as lines.
        answers: what the sweep says, best setting first.
    """

    metric: str
    winner: dict[str, Any] | None
    failed: bool
    table: list[str]
    answers: list[str]


def begin_sweep(experiment: str, folder: Path, overrides: list[str]) -> str:
    """Return the id of the sweep's run: that of ``mlflow run``, that of an earlier attempt, or a new one."""
    from mlflow.entities import Param

    uri = store_uri()
    client = make_client(uri)
    record_file = folder / "parent.json"
    record = read_json(record_file, "") if record_file.exists() else {}
    experiment_id = ensure_experiment(client, uri, experiment)
    run_id = mlflow_project_run_id()
    if run_id is None and record.get("uri") == redact_credentials(uri) and run_exists(client, record["run_id"]):
        run_id = str(record["run_id"])
    if run_id is None:
        command = shlex.join(["python", "-m", "bestepoch.train", "-m", *_resolve(overrides)[0]])
        tags = {"mlflow.user": getpass.getuser(), "mlflow.source.name": command, "mlflow.source.type": "LOCAL"}
        run_id = str(client.create_run(experiment_id, run_name=folder.name, tags=tags).info.run_id)
    given, params = _resolve(overrides)
    tags = {"sweep": folder.name, "sweep.overrides": " ".join(given)}
    if "sweep" not in client.get_run(run_id).data.tags:  # of `mlflow run`; a user may change the name afterwards
        tags["mlflow.runName"] = folder.name
    for key, value in tags.items():
        client.set_tag(run_id, key, value)
    client.log_batch(run_id, params=[Param(key, value) for key, value in params.items()], synchronous=True)
    client.update_run(run_id, status="RUNNING")
    record = {"uri": redact_credentials(uri), "run_id": run_id, "host": socket.gethostname(), "status": "running"}
    write_json(record_file, record)
    return run_id


def _resolve(overrides: list[str]) -> tuple[list[str], dict[str, str]]:
    """Return the overrides that a user gave, and the values of all as parameters ``sweep.<key>``.

    ``mlflow run`` passes each parameter that is not given as an interpolation of params.yaml, and logs that.
    """
    values: dict[str, Any] = {}
    params = {}
    for line in overrides:
        key, _, value = line.lstrip("+~").partition("=")
        if value.startswith("${params:"):
            values = values or flatten(read_params())
            value = str(values.get(value[len("${params:") : -1], value))
        params[f"sweep.{key.replace('/', '.')}"] = value
    return [line for line in overrides if "${" not in line], params


def end_sweep(run_id: str, folder: Path, files: list[Path], summary: SweepSummary) -> None:
    """Write the table of jobs and the winner into the sweep's run, and end it."""
    client = make_client(store_uri())
    parent = client.get_run(run_id)
    description = [f"`{parent.data.tags['sweep.overrides']}`", ""]
    if (winner := summary.winner) is not None:
        heading = f"**Best: {winner['name']}**"
        client.set_tag(run_id, "best", winner["name"])
        best = Run.read(main_checkout() / winner["run"]).info.get("mlflow", {})
        if best.get("uri") == redact_credentials(store_uri()):
            client.set_tag(run_id, "best.run_id", best["run_id"])
            heading = f"**Best: [{winner['name']}]({_run_link(client, best['run_id'])})**"
        description += [f"{heading}, {summary.metric} {winner['metric']:.5g} at epoch {winner['best_epoch']}", ""]
    if summary.answers:
        client.set_tag(run_id, "answer", summary.answers[0])
        description += [*(f"- {answer}" for answer in summary.answers[:MAX_ANSWERS]), ""]
    description += summary.table
    # the run of `mlflow run` keeps artifacts in mlruns/, see `mlflow_project_run_id`; its description has the table
    if "mlruns" not in Path(parent.info.artifact_uri).parts:
        for file in files:
            client.log_artifact(run_id, str(file))
            if file.suffix == ".png":
                description += ["", f"![The jobs by epoch](get-artifact?path={file.name}&run_uuid={run_id})"]
    client.set_tag(run_id, DESCRIPTION_TAG, "\n".join(description))
    if mlflow_project_run_id() != run_id:  # the run of `mlflow run` ends with its command
        client.set_terminated(run_id, "FAILED" if summary.failed else "FINISHED")
    record_file = folder / "parent.json"
    write_json(record_file, read_json(record_file, "") | {"status": "ended"})


def _run_link(client: Any, run_id: str) -> str:
    """Return the address of a run's page, in the mode for training, relative to the server."""
    experiment_id = client.get_run(run_id).info.experiment_id
    return f"#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"


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
