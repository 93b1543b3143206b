"""Overrides as the command line has them, as names are made of them, and settings as dotted keys."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from bestepoch.base.config.groups import CONFIG_GROUPS

if TYPE_CHECKING:
    pass


def job_overrides() -> list[str]:
    """The overrides of the job that is running, as they were written: an interpolation is not yet its value."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    lines = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    # the second belongs to an override of train.iterations, which adds it
    return [unescape_override(str(line)) for line in lines if line != "train.epochs=null"]  # type: ignore[union-attr]


def unescape_override(line: str) -> str:
    """An override without the backslashes that Hydra puts into an interpolation when it makes jobs of a sweep."""
    return re.sub(r"\\([{}:])", r"\1", line) if "$\\{" in line else line


def overrides_for_name(overrides: list[str]) -> list[str]:
    """The overrides that a run's name does not say by itself, `short`."""
    said = ("data", "model", "optimizer", "seed", "publish")
    return [
        short_override(line) for line in overrides if line.partition("=")[0] not in said and not line.endswith("=null")
    ]


def short_override(override: str) -> str:
    """An override as part of a name: ``optimizer.lr=0.01`` is ``lr0.01``, ``model=mlp`` is ``mlp``."""
    key, _, value = override.lstrip("+~").partition("=")
    if "${" in value:
        return ""  # MLproject's way to say: as it is
    return value if key in (*CONFIG_GROUPS, "experiment") else key.rsplit(".", 1)[-1] + value


def slug(parts: list[str]) -> str:
    """A folder's name, at most 100 characters, of letters, digits, ``.``, ``_`` and ``-`` alone.

    So it needs no quotes in a shell, nor in Hydra, where ``,`` and ``=`` have meanings: ``run=runs/<name>``.
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(filter(None, parts)))[:100].strip("._-")


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys; an entry's name stands under the menu's own: ``optimizer``, ``optimizer.lr``."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        path = prefix if key == "name" and prefix and prefix != "device" else f"{prefix}.{key}" if prefix else key
        out.update(flatten(value, path) if isinstance(value, dict) else {path: value})
    return out
