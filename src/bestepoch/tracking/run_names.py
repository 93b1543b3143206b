"""Name what a run repeats: its setting, without the seed and the fold."""

from __future__ import annotations

import contextlib
from typing import Any

from bestepoch.base import errors, files
from bestepoch.base.config import compose
from bestepoch.base.config.groups import CONFIG_GROUPS
from bestepoch.base.config.overrides import flatten
from bestepoch.runs.identity import REPLICATE_KEYS

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
