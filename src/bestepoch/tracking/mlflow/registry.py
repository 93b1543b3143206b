"""MLflow's registry: each evaluated model is a version of its data set's model, and one of them is the champion."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from bestepoch.base import private_api
from bestepoch.base.paths import main_checkout
from bestepoch.evaluation.champion import compare_with_champion
from bestepoch.runs import checkpoint
from bestepoch.tracking.mlflow.store import database_path, make_client, store_uri

CHAMPION = "champion"


def registered_name(data: str) -> str:
    """The registered model of a data set, which is the one really used: what learned the sample is not MNIST's."""
    return f"bestepoch-{data}"


def register_model(logged: Any, file: Path, results: dict[str, float], metric: str) -> str:
    """Make a logged model a version, and the champion if it is better; once for each epoch of a run.

    Args:
        logged: MLflow's account of the model.
        file: its ``model.pt``.
        results: go with the version as its tags.
        metric: the selection's, by which it is compared.

    Returns:
        the version and what became of it, in a line.
    """
    mlflow, new = make_client(store_uri()), checkpoint.load(file)
    name = registered_name(new["data"])
    cursor = main_checkout() / "runs" / ".registry.lock"
    cursor.parent.mkdir(exist_ok=True)
    with FileLock(cursor):  # two at once, each better than the champion, would both take its place
        versions = _list_versions(mlflow, name, logged.source_run_id)
        version = next((v for v in versions if v.tags.get("best/epoch") == str(results["best/epoch"])), None)
        if version is None:
            version = _create_version(mlflow, name, logged, new, results, metric)
        if version.tags.get("promoted") == "pending":  # still so where the one who registered it was killed
            mlflow.set_registered_model_alias(name, CHAMPION, version.version)
            mlflow.set_model_version_tag(name, version.version, "promoted", "yes")
    return f"models:/{name}/{version.version}  {version.description}"


def _list_versions(mlflow: Any, name: str, run_id: str) -> list[Any]:
    return list(mlflow.search_model_versions(f"name = '{name}' and run_id = '{run_id}'"))


def _create_version(
    mlflow: Any, name: str, logged: Any, new: dict[str, Any], results: dict[str, float], metric: str
) -> Any:
    known = _get_or_none(lambda: mlflow.get_registered_model(name)) or mlflow.create_registered_model(name)
    better, why = True, "The champion: there was none before."
    if (holder := known.aliases.get(CHAMPION)) is not None:
        better, why = compare_with_champion(
            new, load_model_file(f"models:/{name}/{holder}"), metric, f"Version {holder}"
        )
    tags = {
        "run": new["run"],
        "data": new["data"],
        "data.checksum": new["checksum"],
        **{key: str(value) for key, value in results.items()},
        "promoted": "pending" if better else "no",
    }
    version = mlflow.create_model_version(
        name, f"models:/{logged.model_id}", logged.source_run_id, tags, description=why, model_id=logged.model_id
    )
    # by this the UI names the version in the run's row; the client leaves it to MLflow's fluent functions
    mine = json.dumps([{"name": name, "version": version.version}])
    mlflow.set_logged_model_tags(logged.model_id, {private_api.mlflow_versions_tag(): mine})
    return version


def champion_uri(data: str) -> str | None:
    """Where the champion of a data set is, as a version's address; None where there is none, or no store."""
    uri = store_uri()
    if uri.startswith("sqlite:///") and not database_path(uri).exists():
        return None  # asking would make it
    mlflow = make_client(uri)
    known = _get_or_none(lambda: mlflow.get_registered_model(registered_name(data)))
    version = known and known.aliases.get(CHAMPION)
    return f"models:/{registered_name(data)}/{version}" if version else None


def _get_or_none(ask: Callable[[], Any]) -> Any:
    """What MLflow answers; None where it says that there is no such thing."""
    from mlflow.exceptions import MlflowException

    try:
        return ask()
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def load_model_file(uri: str) -> dict[str, Any] | None:
    """What the ``model.pt`` of a model holds; None where it has none: `evaluate` has not logged it.

    MLflow's own way to load a model would run what is in it; this does not.
    """
    import mlflow

    mlflow.set_tracking_uri(store_uri())
    files = _get_or_none(lambda: mlflow.artifacts.list_artifacts(artifact_uri=f"{uri}/extra_files"))
    if not any(Path(file.path).name == "model.pt" for file in files or []):
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = mlflow.artifacts.download_artifacts(f"{uri}/extra_files/model.pt", dst_path=folder)
        return checkpoint.load(Path(path))
