"""What a run is known by: its training code, command, environment and name."""

from __future__ import annotations

import contextlib
import hashlib
import platform
import re
import shlex
import socket
from collections.abc import Iterable
from typing import Any

from bestepoch.base import paths
from bestepoch.base.config.overrides import overrides_for_name, slug
from bestepoch.base.config.schema import Config
from bestepoch.base.paths import PACKAGE
from bestepoch.components.data.split import Split


def hash_code(modules: Iterable[str]) -> dict[str, str]:
    """SHA-256 of each named module of this package, as it is on the disk now."""
    return {name: hashlib.sha256((PACKAGE / f"{name}.py").read_bytes()).hexdigest() for name in modules}


# The modules whose code decides the numbers that a training gives.
TRAINING_FOLDERS = (
    *("base/config/schema", "components/data/split", "components/models/networks"),
    *("components/schedules/learning_rate", "evaluation/selection"),
    *("training/batch_norm", "training/cuda_graph", "training/distributed", "training/loop", "training/optimizers"),
    *("training/precision", "training/session", "training/state", "training/trainer"),
)


def format_command(launcher: list[str], overrides: list[str]) -> str:
    """What to type to have this run again; an override that only says `as it is` is left out."""
    return shlex.join([*launcher, "-m", "bestepoch.train", *(line for line in overrides if "${" not in line)])


def find_preset(overrides: list[str]) -> str | None:
    """The file of conf/experiment/ that the configuration came from."""
    given = [line.partition("=")[2] for line in overrides if line.lstrip("+").startswith("experiment=")]
    return given[-1] if given else None


def read_dvc_version() -> str | None:
    """The checksum that DVC gave the raw data set, as ``data.dvc`` has it."""
    from omegaconf import OmegaConf

    with contextlib.suppress(OSError, LookupError, TypeError):
        values: Any = OmegaConf.to_container(OmegaConf.load(paths.project_root() / "data.dvc"))
        return str(values["outs"][0]["md5"])
    return None


def read_dvc_checksums() -> set[str]:
    """The checksums of what DVC has; it writes them when a stage has ended well."""
    path = paths.project_root() / "dvc.lock"
    return set(re.findall(r"md5: (\w+)", path.read_text(encoding="utf-8"))) if path.is_file() else set()


def make_run_name(config: Config, data: Split, overrides: list[str]) -> str:
    return slug(
        [data.name, config.model.name, config.optimizer.name, f"s{config.seed}", *overrides_for_name(overrides)]
    )


def describe_environment() -> dict[str, Any]:
    """What bit-identity depends on besides the configuration: promised for equal values of these, no further."""
    import torch

    return {
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
    }
