"""Locate and open the MLflow store."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from bestepoch.base import errors, paths
from bestepoch.base.private_api import MLFLOW_DATABASE_LOGGER
from bestepoch.tracking.mlflow.moved import ARTIFACTS, follow_project
from bestepoch.tracking.mlflow.views import create_default_views

log = logging.getLogger("bestepoch")
# Give up on a dead server after seconds, not the client's default of minutes: the rows are delivered later.
for _variable, _value in {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # small files need no progress bar
}.items():
    os.environ.setdefault(_variable, _value)
# Errors of a SQLite store are raised as well; MLflow's log would repeat a page of traceback at each attempt.
logging.getLogger(MLFLOW_DATABASE_LOGGER).setLevel(logging.CRITICAL)


def store_uri() -> str:
    """Return ``MLFLOW_TRACKING_URI``, or ``mlflow.db`` in the main checkout; SQLite paths are absolute."""
    move_server_password()
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if not uri:
        return f"sqlite:///{paths.main_checkout() / 'mlflow.db'}"
    prefix = "sqlite:///"
    if uri.startswith(prefix) and not uri[len(prefix) :].startswith("/"):
        # A relative path would point into DVC's temporary copy, which DVC deletes.
        base = paths.main_checkout() if paths.main_checkout() != paths.project_root() else Path.cwd()
        return f"{prefix}{base / uri[len(prefix) :]}"
    return uri


def move_server_password() -> None:
    """Move the name and the password of a server's address into the variables from which MLflow takes them as well.

    MLflow prints the address, in its links and its errors.
    """
    parts = urlsplit(os.environ.get("MLFLOW_TRACKING_URI", "").strip())
    credentials, at, host = parts.netloc.rpartition("@")
    if at and parts.scheme in ("http", "https"):
        name, _, password = credentials.partition(":")
        os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"] = (
            unquote(name),
            unquote(password),
        )
        os.environ["MLFLOW_TRACKING_URI"] = parts._replace(netloc=host).geturl()


def database_path(uri: str) -> Path:
    """Return the database file of a SQLite store."""
    return Path(uri.removeprefix("sqlite:///").partition("?")[0])


def make_client(uri: str) -> Any:
    """Return an MLflow client; create a SQLite store if it does not exist, and let it follow a moved project."""
    from mlflow import MlflowClient

    path = database_path(uri)
    if uri.startswith("sqlite:///") and not path.exists():
        (paths.main_checkout() / "runs").mkdir(exist_ok=True)
        # MLflow creates its tables in many steps and cannot resume halfway: build under a lock, then rename.
        with FileLock(paths.main_checkout() / "runs" / ".store.lock"):
            if not path.exists():
                staging_path = path.with_name(f"{path.name}.partial")
                staging_path.unlink(missing_ok=True)
                MlflowClient(tracking_uri=f"sqlite:///{staging_path}")
                staging_path.replace(path)
    if uri.startswith("sqlite:///"):
        follow_project(path, paths.main_checkout())
    return MlflowClient(tracking_uri=uri)


def ensure_experiment(mlflow: Any, uri: str, name: str) -> str:
    """Return the id of the experiment ``name``, created with default views if necessary.

    Artifacts of a SQLite store go to ``mlartifacts/<name>`` in the main checkout, an absolute location.
    """
    experiment = mlflow.get_experiment_by_name(name)
    if experiment is None:
        location = (paths.main_checkout() / ARTIFACTS / name).as_uri() if uri.startswith("sqlite:") else None
        try:
            mlflow.create_experiment(name, artifact_location=location)
        except Exception:
            if mlflow.get_experiment_by_name(name) is None:  # not created by another process meanwhile
                raise
        experiment = mlflow.get_experiment_by_name(name)
    if experiment.lifecycle_stage == "deleted":  # in the UI; MLflow then refuses runs
        mlflow.restore_experiment(experiment.experiment_id)
        log.warning("warning: the experiment %s was deleted in MLflow; it is restored, with its runs", name)
    try:
        create_default_views(mlflow, experiment)
    except Exception as error:  # the server may deny permission; runs do not need the views
        log.warning("warning: MLflow does not take the experiment's views (%s)", errors.first_line(error))
    return str(experiment.experiment_id)


def mlflow_project_run_id() -> str | None:
    """Return the id of the run that ``mlflow run`` created around this process, or None.

    That run becomes the parent of this project's run. It cannot hold the results itself: its parameters are those of
    the command and immutable, and its experiment keeps artifacts in ``mlruns/``, a folder whose existence makes
    MLflow look there for its store.
    """
    return os.environ.get("MLFLOW_RUN_ID", "").strip() or None


def run_exists(mlflow: Any, run_id: str) -> bool:
    """Return whether the store has this run and the run is not deleted."""
    from mlflow.exceptions import MlflowException

    try:
        return str(mlflow.get_run(run_id).info.lifecycle_stage) == "active"
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
