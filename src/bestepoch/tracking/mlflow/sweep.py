"""Sweeps and studies in MLflow: the parent run of many."""

from __future__ import annotations

import getpass
import shlex
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bestepoch.base.files import home, public, read_json, write_json
from bestepoch.runs.run import Run
from bestepoch.tracking.mlflow.store import client, experiment, outer_run, store_uri, there
from bestepoch.tracking.mlflow.views import NOTE

if TYPE_CHECKING:
    from bestepoch.sweeps.leaderboard import Standings


def begin_sweep(name: str, folder: Path, overrides: list[str]) -> str:
    """The parent run of a sweep: the one that ``mlflow run`` made, that of an earlier attempt, or a new one."""
    uri = store_uri()
    mlflow = client(uri)
    note = folder / "parent.json"
    known = read_json(note, "") if note.exists() else {}
    number = experiment(mlflow, uri, name)
    run_id = outer_run()
    if run_id is None and known.get("uri") == public(uri) and there(mlflow, known["run_id"]):
        run_id = str(known["run_id"])
    if run_id is None:
        command = shlex.join(["python", "-m", "bestepoch.train", "-m", *overrides])
        tags = {"mlflow.user": getpass.getuser(), "mlflow.source.name": command, "mlflow.source.type": "LOCAL"}
        run_id = str(mlflow.create_run(number, run_name=folder.name, tags=tags).info.run_id)
    told = {"mlflow.runName": folder.name, "sweep": folder.name, "sweep.overrides": " ".join(overrides)}
    for key, value in told.items():
        mlflow.set_tag(run_id, key, value)
    mlflow.update_run(run_id, status="RUNNING")
    write_json(note, {"uri": public(uri), "run_id": run_id, "host": socket.gethostname(), "status": "running"})
    return run_id


def end_sweep(run_id: str, folder: Path, files: list[Path], table: Standings) -> None:
    """Put the table of jobs and the best one into the parent run, and end it."""
    mlflow = client(store_uri())
    parent = mlflow.get_run(run_id)
    # the folder of `mlflow run`, see outer_run: the table is in the description all the same
    if "mlruns" not in Path(parent.info.artifact_uri).parts:
        for file in files:
            mlflow.log_artifact(run_id, str(file))
    described = [f"`{parent.data.tags['sweep.overrides']}`", ""]
    if table.winner is not None:
        best = Run.read(home() / table.winner["run"]).info.get("mlflow", {})
        told = f"**Best: {table.winner['name']}**"
        mlflow.set_tag(run_id, "best", table.winner["name"])
        if best.get("uri") == public(store_uri()):
            mlflow.set_tag(run_id, "best.run_id", best["run_id"])
            number = mlflow.get_run(best["run_id"]).info.experiment_id
            told = f"**Best: [{table.winner['name']}](#/experiments/{number}/runs/{best['run_id']})**"
        described += [f"{told}, {table.metric} {table.winner['metric']:.5g} at epoch {table.winner['best_epoch']}", ""]
    mlflow.set_tag(run_id, NOTE, "\n".join([*described, *table.markdown()]))
    if outer_run() != run_id:  # else it ends with its command
        mlflow.set_terminated(run_id, "FAILED" if table.failed else "FINISHED")
    note = folder / "parent.json"
    write_json(note, read_json(note, "") | {"status": "ended"})


def end_dead_sweep(note: Path) -> None:
    """Mark the parent run of a sweep whose process was killed; ``note`` is its parent.json."""
    known = read_json(note, "")
    client(store_uri()).set_terminated(known["run_id"], "KILLED")
    write_json(note, known | {"status": "ended"})


def record_study(name: str, files: Path, parent: dict[str, str], numbers: dict[str, float]) -> None:
    """Add a study to the parent run of its sweep, or where there is none make a run for it."""
    from mlflow.entities import Metric

    uri = store_uri()
    mlflow = client(uri)
    if parent.get("uri") == public(uri) and there(mlflow, parent["run_id"]):
        run_id = parent["run_id"]
    else:
        tags = {"study": files.name}
        run_id = mlflow.create_run(experiment(mlflow, uri, name), run_name=f"study-{files.name}", tags=tags).info.run_id
        mlflow.set_terminated(run_id, "FINISHED")
    now = int(time.time() * 1000)
    mlflow.log_batch(run_id, metrics=[Metric(f"study/{key}", value, now, 0) for key, value in numbers.items()])
    mlflow.log_artifacts(run_id, str(files), "study")
