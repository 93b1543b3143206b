"""Command-line overrides, the names built from them, and nested settings as dotted keys."""

from __future__ import annotations

import re
from typing import Any

from bestepoch.base.config.groups import CONFIG_GROUPS


def job_overrides() -> list[str]:
    """Return the overrides of the current Hydra job as typed; interpolations stay unresolved."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    lines = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    # `compose_job` adds train.epochs=null for an override of train.iterations.
    return [unescape_override(str(line)) for line in lines if line != "train.epochs=null"]  # type: ignore[union-attr]


def unescape_override(line: str) -> str:
    """Remove the backslashes that Hydra adds to an interpolation when it expands a sweep into jobs."""
    return re.sub(r"\\([{}:])", r"\1", line) if "$\\{" in line else line


def quote_override(value: str) -> str:
    """Return ``value`` as a quoted value of Hydra's override grammar, such as a path that holds an apostrophe."""
    # backslashes count as such except before a quote, where each is doubled
    escaped = re.sub(r"(\\*)('|\Z)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), value)
    return f"'{escaped}'"


def overrides_for_name(overrides: list[str]) -> list[str]:
    """Return, abbreviated, the overrides that the default run name does not already imply."""
    implied = ("data", "model", "optimizer", "seed", "publish")
    lines = (line for line in overrides if line.partition("=")[0] not in implied and not line.endswith("=null"))
    return [short_override(line) for line in lines]


def short_override(override: str) -> str:
    """Abbreviate an override for a name: ``optimizer.lr=0.01`` becomes ``lr0.01``, ``model=mlp`` becomes ``mlp``.

    ``_`` parts key and value where they would run together: ``l1=0`` becomes ``l1_0``, ``name=cpu`` ``name_cpu``.
    """
    key, _, value = override.lstrip("+~").partition("=")
    if "${" in value:
        return ""  # MLproject passes an interpolation to keep the default
    if key in (*CONFIG_GROUPS, "experiment"):
        return value
    name = key.rsplit(".", 1)[-1]
    return f"{name}{'_' if name[-1:].isdigit() or value[:1].isalpha() else ''}{value}"


def slug(parts: list[str], longest: int = 100) -> str:
    """Join the parts to a folder name of at most ``longest`` letters, digits, ``.``, ``_`` and ``-``.

    A longer name ends with a whole part. The name needs no quotes in a shell or in a Hydra override such as
    ``run=runs/<name>``.
    """
    words = [re.sub(r"[^A-Za-z0-9._-]+", "-", part).strip("-") for part in parts]
    name = ""
    for word in filter(None, words):
        if name and len(name) + 1 + len(word) > longest:
            break
        name = f"{name}-{word}" if name else word
    return name[:longest].strip("._-")


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted keys.

    The name of an option is stored under its config group: ``optimizer``, beside ``optimizer.lr``.
    """
    out: dict[str, Any] = {}
    for key, value in values.items():
        path = prefix if key == "name" and prefix and prefix != "device" else f"{prefix}.{key}" if prefix else key
        out.update(flatten(value, path) if isinstance(value, dict) else {path: value})
    return out
