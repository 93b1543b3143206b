"""Name runs for the trackers: the setting that repeats over seeds and folds, and the title of a sweep's job."""

from __future__ import annotations

import contextlib
import re
import shlex
from typing import Any

from bestepoch.base import errors, files
from bestepoch.base.config import compose
from bestepoch.base.config.groups import CONFIG_GROUPS
from bestepoch.base.config.overrides import flatten
from bestepoch.runs.identity import REPLICATE_KEYS
from bestepoch.runs.run import Run

HEADLINE_KEYS = ("optimizer.lr", "train.batch_size", "train.epochs", "train.iterations", "loss.label_smoothing")
SHORT_DIGEST = 4


def describe_setting(info: dict[str, Any]) -> str:
    """Return one line for all runs that differ only in their seed or fold: what was chosen, and a digest of the rest.

    Example: ``cnn-adamw lr=0.01 batch_size=100 epochs=10 label_smoothing=0.1 onecycle shift mnist #3f2a``.
    """
    config = {**info["config"], "data": info["data"]["name"]}
    values = {key: value for key, value in flatten(config).items() if key not in REPLICATE_KEYS}
    chosen = [values.get(group) for group in ("scheduler", "augment", "stopping")]
    headline = {key: values.get(key) for key in HEADLINE_KEYS}
    shown = {key: value for key, value in (headline | _changed_options(values)).items() if value is not None}
    words = [
        f"{values.get('model')}-{values.get('optimizer')}",
        *(f"{key.rpartition('.')[2]}={str(value).replace(' ', '')}" for key, value in shown.items()),
        *(str(name) for name in chosen if name not in (None, "none")),
        str(config["data"]),
        f"#{files.digest(values)[:SHORT_DIGEST]}",
    ]
    return " ".join(words)


def _changed_options(values: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the chosen options that ``conf/<group>/<name>.yaml`` sets otherwise."""
    changed: dict[str, Any] = {}
    for group in CONFIG_GROUPS[1:]:
        with contextlib.suppress(errors.UsageError, OSError):  # the option has been renamed since
            usual = flatten({group: compose.load_option(group, str(values.get(group))).model_dump(mode="json")})
            changed |= {key: values[key] for key in usual if key in values and values[key] != usual[key]}
    return changed


def run_title(run: Run) -> str:
    """Return the name of the run in MLflow: that of its folder, or ``cnn-adamw lr=0.1 s2`` for the job of a sweep.

    Names of jobs are relative to the sweep's folder. In a list of all runs the title has to say more: what the sweep
    varies beside the network, the optimizer and the seed.
    """
    sweep = files.read_json(run.folder.parent / "sweep.json", "") if _is_job(run) else None
    if sweep is None:
        return run.name
    config = flatten(run.info["config"])
    implied = {"model", "optimizer", "seed"}
    varied = {_key(line) for line in sweep["overrides"] if re.search(r"[,(]", line)} - implied
    words = [f"{config.get('model')}-{config.get('optimizer')}"]
    for line in shlex.split(run.info["command"]):
        key, _, value = line.partition("=")
        if _key(line) in varied:
            words.append(value if _key(line) in (*CONFIG_GROUPS, "experiment") else f"{key.rpartition('.')[2]}={value}")
    return " ".join([*words, f"s{config.get('seed')}"])


def _is_job(run: Run) -> bool:
    return bool(run.info.get("parent")) and (run.folder.parent / "sweep.json").is_file()


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]
