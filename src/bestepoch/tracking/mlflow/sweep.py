"""Sweeps and studies in MLflow: the parent run of many."""

from __future__ import annotations

import getpass
import shlex
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bestepoch.base.errors import redact_credentials
from bestepoch.base.files import read_json, write_json
from bestepoch.base.paths import main_checkout
from bestepoch.runs.run import Run
from bestepoch.tracking.mlflow.store import ensure_experiment, make_client, mlflow_project_run_id, run_exists, store_uri
from bestepoch.tracking.mlflow.views import DESCRIPTION_TAG

if TYPE_CHECKING:
    from bestepoch.sweeps.leaderboard import Leaderboard


def begin_sweep(name: str, folder: Path, overrides: list[str]) -> str:
    """The parent run of a sweep: the one that ``mlflow run`` made, that of an earlier attempt, or a new one."""
    uri = store_uri()
    mlflow = make_client(uri)
    note = folder / "parent.json"
    known = read_json(note, "") if note.exists() else {}
    number = ensure_experiment(mlflow, uri, name)
    run_id = mlflow_project_run_id()
    if run_id is None and known.get("uri") == redact_credentials(uri) and run_exists(mlflow, known["run_id"]):
        run_id = str(known["run_id"])
    if run_id is None:
        command = shlex.join(["python", "-m", "bestepoch.train", "-m", *overrides])
        tags = {"mlflow.user": getpass.getuser(), "mlflow.source.name": command, "mlflow.source.type": "LOCAL"}
        run_id = str(mlflow.create_run(number, run_name=folder.name, tags=tags).info.run_id)
    told = {"mlflow.runName": folder.name, "sweep": folder.name, "sweep.overrides": " ".join(overrides)}
    for key, value in told.items():
        mlflow.set_tag(run_id, key, value)
    mlflow.update_run(run_id, status="RUNNING")
    write_json(
        note, {"uri": redact_credentials(uri), "run_id": run_id, "host": socket.gethostname(), "status": "running"}
    )
    return run_id


def end_sweep(run_id: str, folder: Path, files: list[Path], table: Leaderboard) -> None:
    """Put the table of jobs and the best one into the parent run, and end it."""
    mlflow = make_client(store_uri())
    parent = mlflow.get_run(run_id)
    # the folder of `mlflow run`, see outer_run: the table is in the description all the same
    if "mlruns" not in Path(parent.info.artifact_uri).parts:
        for file in files:
            mlflow.log_artifact(run_id, str(file))
    described = [f"`{parent.data.tags['sweep.overrides']}`", ""]
    if table.winner is not None:
        best = Run.read(main_checkout() / table.winner["run"]).info.get("mlflow", {})
        told = f"**Best: {table.winner['name']}**"
        mlflow.set_tag(run_id, "best", table.winner["name"])
        if best.get("uri") == redact_credentials(store_uri()):
            mlflow.set_tag(run_id, "best.run_id", best["run_id"])
            number = mlflow.get_run(best["run_id"]).info.experiment_id
            told = f"**Best: [{table.winner['name']}](#/experiments/{number}/runs/{best['run_id']})**"
        described += [f"{told}, {table.metric} {table.winner['metric']:.5g} at epoch {table.winner['best_epoch']}", ""]
    mlflow.set_tag(run_id, DESCRIPTION_TAG, "\n".join([*described, *table.markdown()]))
    if mlflow_project_run_id() != run_id:  # else it ends with its command
        mlflow.set_terminated(run_id, "FAILED" if table.failed else "FINISHED")
    note = folder / "parent.json"
    write_json(note, read_json(note, "") | {"status": "ended"})


def end_stale_sweep(note: Path) -> None:
    """Mark the parent run of a sweep whose process was killed; ``note`` is its parent.json."""
    known = read_json(note, "")
    make_client(store_uri()).set_terminated(known["run_id"], "KILLED")
    write_json(note, known | {"status": "ended"})


def log_study(name: str, files: Path, parent: dict[str, str], numbers: dict[str, float]) -> None:
    """Add a study to the parent run of its sweep, or where there is none make a run for it."""
    from mlflow.entities import Metric

    uri = store_uri()
    mlflow = make_client(uri)
    if parent.get("uri") == redact_credentials(uri) and run_exists(mlflow, parent["run_id"]):
        run_id = parent["run_id"]
    else:
        tags = {"study": files.name}
        run_id = mlflow.create_run(
            ensure_experiment(mlflow, uri, name), run_name=f"study-{files.name}", tags=tags
        ).info.run_id
        mlflow.set_terminated(run_id, "FINISHED")
    now = int(time.time() * 1000)
    mlflow.log_batch(run_id, metrics=[Metric(f"study/{key}", value, now, 0) for key, value in numbers.items()])
    mlflow.log_artifacts(run_id, str(files), "study")
