"""What MLflow's run of a training says besides its curves: parameters, tags, data sets and what it took."""

from __future__ import annotations

import getpass
import json
import time
from typing import Any

from bestepoch.base.config.overrides import flatten
from bestepoch.components.schedules.plan import plan_of_run
from bestepoch.tracking.mlflow.view_states import SETTING_TAG
from bestepoch.tracking.run_names import describe_setting

# Parts of a data set, with the contexts by which the UI tells them apart.
CONTEXTS = {"train": "training", "validation": "validation", "test": "testing"}


def make_params(info: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a run, and what follows from them, by dotted names.

    No setting begins with ``plan.`` or ``network.``.
    """
    plan = plan_of_run(info)
    derived = {
        "plan.iterations_per_epoch": plan.iterations_per_epoch,
        "plan.updates": plan.iterations,
        "network.weights": info.get("weights"),
    }
    # A null setting is unused, such as train.iterations when train.epochs is set.
    return {key: value for key, value in (flatten(info["config"]) | derived).items() if value is not None}


def dataset_part(data: dict[str, Any], part: str) -> Any:
    """Return one part of a run's data set as ``mlflow.entities.Dataset``; ``data`` is that of ``run.json``."""
    from mlflow.entities import Dataset

    return Dataset(
        name=data["name"] if part == "train" else f"{data['name']}-{part}",
        digest=data["checksum"][:12],  # of all parts; a tag holds the whole checksum
        source_type="local",
        source=json.dumps({"uri": data["folder"]}),
        profile=json.dumps({**data["sizes"], "checksum": data["checksum"]}),
    )


def selection_tags(info: dict[str, Any]) -> dict[str, str]:
    """Return how the best epoch is chosen, as tags; runs of earlier versions do not say it."""
    return {f"selection.{key}": str(value) for key, value in info.get("selection", {}).items()}


def resource_metrics(info: dict[str, Any]) -> dict[str, float]:
    """Return a run's time by section and in total (s) and its peak memory (MB); empty before the run ends."""
    if "time_by_section" not in info:
        return {}
    times = dict(info["time_by_section"])
    if "finish_requested_at" in info:  # the trainer has been waiting for the trackers since then
        times["tracking"] += time.time() - info["finish_requested_at"]
    metrics = {f"time/{section}": seconds for section, seconds in times.items()} | {"time/total": sum(times.values())}
    return metrics | ({"memory/peak_mb": info["peak_memory"] / 1e6} if info.get("peak_memory") else {})


def make_tags(info: dict[str, Any]) -> dict[str, Any]:
    """Return the MLflow tags by which runs are searched, in addition to their parameters."""
    data, git, environment = info["data"], info["git"], info["environment"]
    tags = {
        "dataset": data["name"],
        SETTING_TAG: describe_setting(info),
        "data.checksum": data["checksum"],
        "device": environment.get("device"),
        "host": environment["host"],
        **{key: environment.get(key) for key in ("python", "torch", "processor", "threads")},
        **selection_tags(info),
        "git.dirty": "unknown" if git["dirty"] is None else str(git["dirty"]).lower(),
        "git.commit": git["commit"],
        "git.url": git.get("url"),
        "preset": info.get("experiment"),
        "mlflow.source.git.commit": git["commit"],
        "mlflow.source.name": info["command"],
        "mlflow.source.type": "LOCAL",
        "mlflow.user": getpass.getuser(),
        "dvc.data": data.get("dvc"),
        "continues": info.get("extended_from", {}).get("run"),
        "offline_sample": f"stands in for {data['requested']}" if data["name"] != data["requested"] else None,
    }
    return {key: value for key, value in tags.items() if value is not None}
