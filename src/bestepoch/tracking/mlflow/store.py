"""What every tracker has in common: the journal's curves, and where the MLflow store is.

The files of this family, ``tracking*.py``, and ``private_api.py`` are the only ones that import MLflow or TensorBoard.

A tracker is a reader of the journal with a place in it. What a tracker that is slow or down has not taken is still in
the journal, and is delivered later: by the same run, by the next attempt, or by ``python -m bestepoch.sync``. Rows
carry their own times, so sending one twice stores it once.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock

from bestepoch.base import files
from bestepoch.base.private_api import MLFLOW_DATABASE_LOGGER
from bestepoch.runs.journal import Row
from bestepoch.tracking.mlflow.views import furnish

log = logging.getLogger("bestepoch")

PER_ITERATION = ("train/loss", "lr")
PER_EPOCH = ("val/loss", "val/accuracy", "train/epoch_loss")
# A dead server is given up within seconds, not the client's default of minutes; what it missed is sent later.
for _name, _value in {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # of files that are there in a moment
}.items():
    os.environ.setdefault(_name, _value)
# What goes wrong in a SQLite store is raised as well; logged, it is a page of traceback at each attempt.
logging.getLogger(MLFLOW_DATABASE_LOGGER).setLevel(logging.CRITICAL)


class Tracker(Protocol):
    """Where a run is shown."""

    name: str
    place: dict[str, Any]  # what it wants remembered between attempts

    @staticmethod
    def load() -> None:
        """Import what it needs; asks no store or server."""

    def open(self) -> None:
        """Find or make the run's place; may raise and be called again."""

    def write(self, iterations: list[Row], epochs: list[Row]) -> None:
        """Store these rows; may raise, and then gets the same rows again."""

    def close(self, status: str) -> None:
        """All rows are written; ``status`` is finished, killed or failed."""


def store_uri() -> str:
    """The MLflow store: ``MLFLOW_TRACKING_URI``, else ``mlflow.db`` in the real checkout, always by absolute path."""
    given = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if not given:
        return f"sqlite:///{files.home() / 'mlflow.db'}"
    prefix = "sqlite:///"
    if given.startswith(prefix) and not given[len(prefix) :].startswith("/"):
        # a relative path would lead into DVC's temporary copy, and vanish with it
        base = files.home() if files.home() != files.root() else Path.cwd()
        return f"{prefix}{base / given[len(prefix) :]}"
    return given


def reason(error: Exception) -> str:
    """Why a tracker has not taken something, in a line."""
    if getattr(error, "error_code", None) == "UNAUTHENTICATED":
        return (
            "the server does not know this name with this password: set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or the two in ~/.mlflow/credentials"
        )
    return files.first_line(error)


def database(uri: str) -> Path:
    """The file of a SQLite store."""
    return Path(uri.removeprefix("sqlite:///").partition("?")[0])


def client(uri: str) -> Any:
    """An MLflow client; makes a SQLite store where it is missing."""
    from mlflow import MlflowClient

    path = database(uri)
    if uri.startswith("sqlite:///") and not path.exists():
        (files.home() / "runs").mkdir(exist_ok=True)
        # by one process alone, and beside: MLflow creates its tables in many steps, and cannot go on from halfway
        with FileLock(files.home() / "runs" / ".store.lock"):
            if not path.exists():
                beside = path.with_name(f"{path.name}.partial")
                beside.unlink(missing_ok=True)
                MlflowClient(tracking_uri=f"sqlite:///{beside}")
                beside.replace(path)
    return MlflowClient(tracking_uri=uri)


def experiment(mlflow: Any, uri: str, name: str) -> str:
    """The id of the experiment, made where it is missing, with artifacts at an absolute place, and furnished."""
    found = mlflow.get_experiment_by_name(name)
    if found is None:
        place = (files.home() / "mlartifacts" / name).as_uri() if uri.startswith("sqlite:") else None
        try:
            mlflow.create_experiment(name, artifact_location=place)
        except Exception:
            if mlflow.get_experiment_by_name(name) is None:  # else another process was faster
                raise
        found = mlflow.get_experiment_by_name(name)
    try:
        furnish(mlflow, found)
    except Exception as error:  # a server that gives this user no right to: the runs need it not
        log.warning("warning: MLflow does not take the experiment's views (%s)", files.first_line(error))
    return str(found.experiment_id)


def outer_run() -> str | None:
    """The run that ``mlflow run`` made around this process, where there is one.

    It becomes the parent of ours, not ours itself: its parameters are the command's, written once, and its experiment
    keeps artifacts in ``mlruns/``, a folder whose mere existence makes MLflow look there for its store.
    """
    return os.environ.get("MLFLOW_RUN_ID", "").strip() or None


def there(mlflow: Any, run_id: str) -> bool:
    """Whether the store has this run, and nobody has deleted it."""
    from mlflow.exceptions import MlflowException

    try:
        return str(mlflow.get_run(run_id).info.lifecycle_stage) == "active"
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
