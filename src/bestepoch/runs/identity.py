"""What identifies a run: its training code, command, environment and name."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import re
import shlex
import socket
from collections.abc import Sequence
from typing import Any

from bestepoch.base.config.overrides import flatten, overrides_for_name, slug
from bestepoch.base.config.schema import Config
from bestepoch.base.paths import PACKAGE, project_root
from bestepoch.components.data.split import Split

# The folders whose code decides the numbers of a training. The values of the configuration are in the fingerprint.
TRAINING_FOLDERS = ("components", "training")
REPLICATE_KEYS = ("seed", "split.seed", "split.fold")  # runs that differ only in these are replicates


def hash_training_code() -> dict[str, str]:
    """Return the SHA-256 of each source file in `TRAINING_FOLDERS` by its path in the package, as it is on the disk."""
    sources = sorted(path for folder in TRAINING_FOLDERS for path in (PACKAGE / folder).rglob("*.py"))
    return {path.relative_to(PACKAGE).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in sources}


def format_command(launch_command: Sequence[str], overrides: Sequence[str]) -> str:
    """Return the shell command that gives the run again; overrides that keep the value of params.yaml are left out."""
    return shlex.join([*launch_command, "-m", "bestepoch.train", *(line for line in overrides if "${" not in line)])


def format_settings(launch_command: Sequence[str], values: dict[str, Any]) -> str:
    """Return the shell command that gives the run again without the files in which its settings were edited.

    Args:
        launch_command: how the command begins.
        values: all settings that decide the numbers.
    """
    lines = [f"{key}={json.dumps(value).replace(' ', '')}" for key, value in flatten(values).items()]
    return shlex.join([*launch_command, "-m", "bestepoch.train", *lines])


def find_preset(overrides: Sequence[str]) -> str | None:
    """Return the name of the preset in ``conf/experiment/`` that the overrides choose, or None."""
    names = [line.partition("=")[2] for line in overrides if line.lstrip("+").startswith("experiment=")]
    return names[-1] if names else None


def read_dvc_version() -> str | None:
    """Return the checksum of the raw data set in ``data.dvc``, or None."""
    from omegaconf import OmegaConf

    with contextlib.suppress(OSError, LookupError, TypeError):
        values: Any = OmegaConf.to_container(OmegaConf.load(project_root() / "data.dvc"))
        return str(values["outs"][0]["md5"])
    return None


def read_dvc_checksums() -> set[str]:
    """Return all checksums in ``dvc.lock``, which DVC writes when a stage has succeeded."""
    path = project_root() / "dvc.lock"
    return set(re.findall(r"md5: (\w+)", path.read_text(encoding="utf-8"))) if path.is_file() else set()


def make_run_name(config: Config, split: Split, overrides: Sequence[str]) -> str:
    """Return a readable name of the data, network, optimizer, seed and further overrides."""
    parts = [split.name, config.model.name, config.optimizer.name, f"s{config.seed}"]
    return slug([*parts, *overrides_for_name(list(overrides))])


def describe_environment() -> dict[str, Any]:
    """Return what the bits of a training depend on besides its configuration, data and code."""
    import torch

    return {
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
    }
