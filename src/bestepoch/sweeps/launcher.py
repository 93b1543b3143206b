"""What Hydra will make of a sweep's command line: which jobs, and how many processor threads are left for each."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from bestepoch.base import paths, private_api
from bestepoch.base.config.overrides import unescape_override
from bestepoch.base.errors import UsageError

# What a node of a Ray cluster cannot know by itself, where it is set here.
ENVIRONMENT = ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


@dataclass
class MultirunPlan:
    """What comes of a sweep's overrides.

    Args:
        jobs: the overrides of each job as Hydra will hand them over, without those for Hydra itself, in the order of
            their numbers; None for a sweeper that chooses them on the way.
        threads: ``device.threads`` of a job where the launcher runs several at once, so that together they have each
            core once; None where it is given, or left to PyTorch.
        of_hydra: overrides to be added for the launcher.
    """

    jobs: list[list[str]] | None
    threads: int | None
    of_hydra: list[str]


def plan_multirun(overrides: list[str]) -> MultirunPlan:
    """Of overrides that are checked.

    Raises:
        UsageError: the launcher or sweeper cannot be had, or not on this machine.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        with initialize_config_dir(str(paths.project_root() / "conf"), version_base="1.3"):
            parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
            fixed = [o.input_line for o in parser.parse_overrides(overrides) if not o.is_sweep_override()]
            cfg = compose("config", [str(line) for line in fixed], return_hydra_config=True)
            launcher: Any = OmegaConf.to_container(cfg.hydra.launcher)
            jobs = None
            if private_api.is_basic_sweeper(str(cfg.hydra.sweeper["_target_"])):
                # a preset's own sweeps come first, as they will
                own = [f"{key}={value}" for key, value in (cfg.hydra.sweeper.params or {}).items()]
                made = private_api.basic_sweeper_jobs(parser.parse_overrides([*own, *overrides]))
                jobs = [[unescape_override(line) for line in job if _is_job_override(line)] for job in made]
    except HydraException as error:
        raise UsageError(str(error).partition("\nConfig search path:")[0].strip()) from None
    finally:
        GlobalHydra.instance().clear()
    if _launcher_class(launcher) == "SlurmLauncher" and shutil.which("srun") is None:
        raise UsageError(
            "hydra/launcher=slurm hands its jobs to Slurm, whose commands (sbatch, srun) are not on this machine. Type "
            "it on a machine of the cluster; several jobs at once on this one: hydra/launcher=joblib"
        )
    given = any(line.lstrip("+").startswith("device.threads=") for line in overrides)
    threads = None if given else _threads_per_job(launcher, len(jobs) if jobs is not None else None)
    return MultirunPlan(jobs, threads, _ray_overrides(overrides) if _launcher_class(launcher) == "RayLauncher" else [])


def _launcher_class(launcher: dict[str, Any]) -> str:
    return str(launcher["_target_"]).rsplit(".", 1)[-1]


def _ray_overrides(overrides: list[str]) -> list[str]:
    """Quiet, since each job has its line in the sweep's own list; and the environment, by name: it holds a password."""
    init = {"include_dashboard": "false", "log_to_driver": "false", "logging_level": "warning"}
    init["object_store_memory"] = "null"  # the plugin's own choice is refused by a Ray that is running already
    init |= {f"runtime_env.env_vars.{name}": f"${{oc.env:{name}}}" for name in ENVIRONMENT if os.environ.get(name)}
    lines = {f"+hydra.launcher.ray.init.{key}": value for key, value in init.items()}
    given = {line.partition("=")[0].lstrip("+") for line in overrides}
    return [f"{key}='{value}'" if "$" in value else f"{key}={value}"
            for key, value in lines.items() if key.lstrip("+") not in given]  # fmt: skip


def _is_job_override(line: str) -> bool:
    """Whether a job is shown it, see `app.overrides`."""
    key = line.lstrip("+~").partition("=")[0]
    return key.split("/")[0].split(".")[0] != "hydra" and line != "train.epochs=null"


def _threads_per_job(launcher: dict[str, Any], jobs: int | None) -> int | None:
    kind = _launcher_class(launcher)
    if kind == "JoblibLauncher":
        cores, at_once = available_cores(), int(launcher["n_jobs"])
        at_once = at_once if at_once > 0 else max(cores + 1 + at_once, 1)
        return max(1, cores // min(at_once, jobs or at_once))
    if kind == "RayLauncher":
        return max(1, int(launcher["ray"]["remote"].get("num_cpus", 1)))
    if kind in ("SlurmLauncher", "LocalLauncher") and launcher.get("cpus_per_task"):
        return int(launcher["cpus_per_task"])
    return None


def available_cores() -> int:
    """The cores that this process may use."""
    with contextlib.suppress(AttributeError):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
