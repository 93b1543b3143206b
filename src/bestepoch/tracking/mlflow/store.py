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
from typing import Any

from filelock import FileLock

from bestepoch.base import errors, paths
from bestepoch.base.private_api import MLFLOW_DATABASE_LOGGER
from bestepoch.tracking.mlflow.views import create_default_views

log = logging.getLogger("bestepoch")
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


def store_uri() -> str:
    """The MLflow store: ``MLFLOW_TRACKING_URI``, else ``mlflow.db`` in the real checkout, always by absolute path."""
    given = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if not given:
        return f"sqlite:///{paths.main_checkout() / 'mlflow.db'}"
    prefix = "sqlite:///"
    if given.startswith(prefix) and not given[len(prefix) :].startswith("/"):
        # a relative path would lead into DVC's temporary copy, and vanish with it
        base = paths.main_checkout() if paths.main_checkout() != paths.project_root() else Path.cwd()
        return f"{prefix}{base / given[len(prefix) :]}"
    return given


def database_path(uri: str) -> Path:
    """The file of a SQLite store."""
    return Path(uri.removeprefix("sqlite:///").partition("?")[0])


def make_client(uri: str) -> Any:
    """An MLflow client; makes a SQLite store where it is missing."""
    from mlflow import MlflowClient

    path = database_path(uri)
    if uri.startswith("sqlite:///") and not path.exists():
        (paths.main_checkout() / "runs").mkdir(exist_ok=True)
        # by one process alone, and beside: MLflow creates its tables in many steps, and cannot go on from halfway
        with FileLock(paths.main_checkout() / "runs" / ".store.lock"):
            if not path.exists():
                beside = path.with_name(f"{path.name}.partial")
                beside.unlink(missing_ok=True)
                MlflowClient(tracking_uri=f"sqlite:///{beside}")
                beside.replace(path)
    return MlflowClient(tracking_uri=uri)


def ensure_experiment(mlflow: Any, uri: str, name: str) -> str:
    """The id of the experiment, made where it is missing, with artifacts at an absolute place, and furnished."""
    found = mlflow.get_experiment_by_name(name)
    if found is None:
        cursor = (paths.main_checkout() / "mlartifacts" / name).as_uri() if uri.startswith("sqlite:") else None
        try:
            mlflow.create_experiment(name, artifact_location=cursor)
        except Exception:
            if mlflow.get_experiment_by_name(name) is None:  # else another process was faster
                raise
        found = mlflow.get_experiment_by_name(name)
    try:
        create_default_views(mlflow, found)
    except Exception as error:  # a server that gives this user no right to: the runs need it not
        log.warning("warning: MLflow does not take the experiment's views (%s)", errors.first_line(error))
    return str(found.experiment_id)


def mlflow_project_run_id() -> str | None:
    """The run that ``mlflow run`` made around this process, where there is one.

    It becomes the parent of ours, not ours itself: its parameters are the command's, written once, and its experiment
    keeps artifacts in ``mlruns/``, a folder whose mere existence makes MLflow look there for its store.
    """
    return os.environ.get("MLFLOW_RUN_ID", "").strip() or None


def run_exists(mlflow: Any, run_id: str) -> bool:
    """Whether the store has this run, and nobody has deleted it."""
    from mlflow.exceptions import MlflowException

    try:
        return str(mlflow.get_run(run_id).info.lifecycle_stage) == "active"
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
