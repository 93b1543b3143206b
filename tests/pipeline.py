"""A copy of the project to run the whole pipeline in, as a person does: by `dvc`, `make`, `git` and `mlflow`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

import live

BIN = Path(sys.executable).parent


def fresh_copy(folder: Path) -> Path:
    """What `git clone` would bring, with the changes that are not committed yet, and nothing of an earlier run."""
    live.project(folder)
    run(folder, "git", "config", "user.name", "test")
    run(folder, "git", "config", "user.email", "test@localhost")
    (folder / "dvc.lock").unlink(missing_ok=True)
    return folder


def commit(folder: Path) -> None:
    run(folder, "git", "add", "-A")
    run(folder, "git", "commit", "-q", "-m", "x")


def environment(mirror: str | None = None) -> dict[str, str]:
    """Where no mirror but the named one can be reached, and nothing is set that the project would read."""
    own = ("MLFLOW_", "DVC_", "BESTEPOCH_", "PYTHON", "MAKE", "MFLAGS")
    return {k: v for k, v in os.environ.items() if not k.startswith(own)} | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        # a port where nothing listens, so that the public mirrors are out of reach wherever this runs
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
        **live.GIT,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # the copy's code, also for what is started without DVC: the installed package is the checkout's
        "PYTHONPATH": "src",
        **({} if mirror is None else {"BESTEPOCH_MIRROR": mirror}),
    }


def run(folder: Path, *command: str, ok: bool = True, mirror: str | None = None) -> str:
    """Standard output and error of a command."""
    done = subprocess.run(
        command, cwd=folder, env=environment(mirror), capture_output=True, text=True, timeout=900, check=False
    )
    said = done.stdout + done.stderr
    assert (done.returncode == 0) == ok, f"{' '.join(command)} ended with {done.returncode}:\n{said}"
    return said


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def trainings(folder: Path) -> list[Run]:
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("bestepoch")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"]))


def metrics(folder: Path) -> dict[str, float]:
    return dict(json.loads((folder / "results/evaluate/metrics.json").read_text()))
