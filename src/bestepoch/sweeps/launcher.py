"""Plan a Hydra multirun: expand its overrides into jobs and divide the CPU cores among them."""

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

# Environment variables to pass on to the nodes of a Ray cluster if they are set here.
ENVIRONMENT = ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


@dataclass
class MultirunPlan:
    """Jobs and settings of a sweep.

    Args:
        jobs: overrides of each job in Hydra's order, without overrides of Hydra itself; None if a sweeper chooses jobs
            as it goes.
        threads: ``device.threads`` of each job, so that concurrent jobs share the cores; None if the user sets it or
            PyTorch decides.
        of_hydra: overrides to add for the launcher.
    """

    jobs: list[list[str]] | None
    threads: int | None
    of_hydra: list[str]


def plan_multirun(overrides: list[str]) -> MultirunPlan:
    """Expand validated overrides into jobs.

    Raises:
        UsageError: the launcher or sweeper is not available on this machine.
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
                # Hydra puts a preset's own sweep parameters first.
                params = [f"{key}={value}" for key, value in (cfg.hydra.sweeper.params or {}).items()]
                expanded = private_api.basic_sweeper_jobs(parser.parse_overrides([*params, *overrides]))
                jobs = [[unescape_override(line) for line in job if _is_job_override(line)] for job in expanded]
    except HydraException as error:
        raise UsageError(str(error).partition("\nConfig search path:")[0].strip()) from None
    finally:
        GlobalHydra.instance().clear()
    if _launcher_class(launcher) == "SlurmLauncher" and shutil.which("srun") is None:
        raise UsageError(
            "hydra/launcher=slurm hands its jobs to Slurm, whose commands (sbatch, srun) are not on this machine. Type "
            "it on a machine of the cluster; several jobs at once on this one: hydra/launcher=joblib"
        )
    has_threads = any(line.lstrip("+").startswith("device.threads=") for line in overrides)
    threads = None if has_threads else _threads_per_job(launcher, len(jobs) if jobs is not None else None)
    return MultirunPlan(jobs, threads, _ray_overrides(overrides) if _launcher_class(launcher) == "RayLauncher" else [])


def _launcher_class(launcher: dict[str, Any]) -> str:
    return str(launcher["_target_"]).rsplit(".", 1)[-1]


def _ray_overrides(overrides: list[str]) -> list[str]:
    """Return overrides that silence Ray and pass on the environment by name, so that no password is shown."""
    init = {"include_dashboard": "false", "log_to_driver": "false", "logging_level": "warning"}
    init["object_store_memory"] = "null"  # a running Ray cluster refuses the plugin's default
    init |= {f"runtime_env.env_vars.{name}": f"${{oc.env:{name}}}" for name in ENVIRONMENT if os.environ.get(name)}
    lines = {f"+hydra.launcher.ray.init.{key}": value for key, value in init.items()}
    user_keys = {line.partition("=")[0].lstrip("+") for line in overrides}
    return [f"{key}='{value}'" if "$" in value else f"{key}={value}"
            for key, value in lines.items() if key.lstrip("+") not in user_keys]  # fmt: skip


def _is_job_override(line: str) -> bool:
    """Return whether `bestepoch.base.config.overrides.job_overrides` includes the override in a job."""
    key = line.lstrip("+~").partition("=")[0]
    return key.split("/")[0].split(".")[0] != "hydra" and line != "train.epochs=null"


def _threads_per_job(launcher: dict[str, Any], jobs: int | None) -> int | None:
    launcher_class = _launcher_class(launcher)
    if launcher_class == "JoblibLauncher":
        cores, workers = available_cores(), int(launcher["n_jobs"])
        workers = workers if workers > 0 else max(cores + 1 + workers, 1)
        return max(1, cores // min(workers, jobs or workers))
    if launcher_class == "RayLauncher":
        return max(1, int(launcher["ray"]["remote"].get("num_cpus", 1)))
    if launcher_class in ("SlurmLauncher", "LocalLauncher") and launcher.get("cpus_per_task"):
        return int(launcher["cpus_per_task"])
    return None


def available_cores() -> int:
    """Return the number of CPU cores available to this process."""
    with contextlib.suppress(AttributeError):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
