"""MLflow's model registry: each evaluated model is a version of its data set's model; one version is the champion."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from bestepoch.base import private_api
from bestepoch.base.paths import main_checkout
from bestepoch.runs import checkpoint
from bestepoch.tracking.mlflow.store import database_path, make_client, store_uri

CHAMPION = "champion"
ModelFile = dict[str, Any]
"""The content of a ``model.pt``."""
Compare = Callable[[ModelFile, "ModelFile | None", str], tuple[bool, str]]
"""Says whether the first model is better than the champion of that name, and why in a sentence."""


def registered_name(data: str) -> str:
    """Return the name of a data set's registered model; a model of the offline sample goes by the sample's name."""
    return f"bestepoch-{data}"


def register_model(logged: Any, file: Path, results: dict[str, float], compare: Compare) -> str:
    """Make a logged model a version, and the champion if it is better; once for each epoch of a run.

    Args:
        logged: MLflow's record of the model.
        file: its ``model.pt``.
        results: metrics that become tags of the version.
        compare: compares the model with the champion.

    Returns:
        The version and whether it is the champion, in a line.
    """
    client, new = make_client(store_uri()), checkpoint.load(file)
    name = registered_name(new["data"])
    lock_file = main_checkout() / "runs" / ".registry.lock"
    lock_file.parent.mkdir(exist_ok=True)
    with FileLock(lock_file):  # two at once, each better than the champion, would both take its place
        versions = client.search_model_versions(f"name = '{name}' and run_id = '{logged.source_run_id}'")
        version = next((v for v in versions if v.tags.get("best/epoch") == str(results["best/epoch"])), None)
        if version is None:
            version = _create_version(client, logged, new, results, compare)
        if version.tags.get("promoted") == "pending":  # also where the process that registered it was killed
            client.set_registered_model_alias(name, CHAMPION, version.version)
            client.set_model_version_tag(name, version.version, "promoted", "yes")
    return f"models:/{name}/{version.version}  {version.description}"


def _create_version(client: Any, logged: Any, new: ModelFile, results: dict[str, float], compare: Compare) -> Any:
    name = registered_name(new["data"])
    model = _get_or_none(lambda: client.get_registered_model(name)) or client.create_registered_model(name)
    better, reason = True, "The champion: there was none before."
    if (champion := model.aliases.get(CHAMPION)) is not None:
        better, reason = compare(new, load_model_file(f"models:/{name}/{champion}"), f"Version {champion}")
    tags = {
        "run": new["run"],
        "data": new["data"],
        "data.checksum": new["checksum"],
        **{key: str(value) for key, value in results.items()},
        "promoted": "pending" if better else "no",
    }
    version = client.create_model_version(
        name, f"models:/{logged.model_id}", logged.source_run_id, tags, description=reason, model_id=logged.model_id
    )
    # the UI shows the version in the run's row by this tag, which only MLflow's fluent functions set
    versions = json.dumps([{"name": name, "version": version.version}])
    client.set_logged_model_tags(logged.model_id, {private_api.mlflow_versions_tag(): versions})
    return version


def champion_uri(data: str) -> str | None:
    """Return the address of the champion's version of a data set; None where there is none, or no store."""
    uri = store_uri()
    if uri.startswith("sqlite:///") and not database_path(uri).exists():
        return None  # a client would create the store
    client = make_client(uri)
    model = _get_or_none(lambda: client.get_registered_model(registered_name(data)))
    version = model and model.aliases.get(CHAMPION)
    return f"models:/{registered_name(data)}/{version}" if version else None


def _get_or_none(ask: Callable[[], Any]) -> Any:
    """Return what ``ask`` returns; None where MLflow says that there is no such object."""
    from mlflow.exceptions import MlflowException

    try:
        return ask()
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def load_model_file(uri: str) -> dict[str, Any] | None:
    """Return the content of a model's ``model.pt``; None where the model has none, so `evaluate` has not logged it.

    Unlike MLflow's own loaders, this runs no code of the model.
    """
    import mlflow

    make_client(store_uri())  # which lets the store follow a moved project
    mlflow.set_tracking_uri(store_uri())
    files = _get_or_none(lambda: mlflow.artifacts.list_artifacts(artifact_uri=f"{uri}/extra_files"))
    if not any(Path(file.path).name == "model.pt" for file in files or []):
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = mlflow.artifacts.download_artifacts(f"{uri}/extra_files/model.pt", dst_path=folder)
        return checkpoint.load(Path(path))
