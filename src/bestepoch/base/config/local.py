"""Settings of one machine: the optional file ``conf/local/default.yaml``, which git ignores."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from bestepoch.base import paths
from bestepoch.base.config.overrides import flatten
from bestepoch.base.errors import UsageError

PATH = "conf/local/default.yaml"
HEADER = "# @package _global_"
# DVC reads params.yaml and the chosen files of conf/: a setting of the experiment in this file would escape it.
SECTIONS = ("fetch", "device", "checkpoint", "tracking", "registry", "sweep", "hydra")


def read_local_keys() -> list[str]:
    """Return the settings that the machine's file sets, as dotted keys; none without the file.

    Raises:
        UsageError: The file is unreadable, lacks Hydra's header, or sets more than a machine's settings.
    """
    path = paths.project_root() / PATH
    if not path.is_file():
        return []
    try:
        values: Any = OmegaConf.to_container(OmegaConf.load(path))
    except (YAMLError, OmegaConfBaseException, OSError) as error:
        raise UsageError(f"{PATH} is not readable: {error}") from None
    if HEADER not in path.read_text(encoding="utf-8"):
        raise UsageError(f"{PATH} must begin with the line: {HEADER}")
    keys = list(flatten(values)) if isinstance(values, dict) else []
    for key in keys:
        if key.split(".")[0].split("/")[0] not in SECTIONS:
            raise UsageError(
                f"{PATH}: {key} is not a setting of a machine. Allowed are {', '.join(SECTIONS)}. "
                "Set it in params.yaml or in a file of conf/"
            )
    return keys
