"""A sweep: the jobs of a multirun and the folder that they share."""

from __future__ import annotations

import os
import re
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path

from bestepoch.base.config.overrides import short_override, slug
from bestepoch.base.config.schema import Config, SelectionConfig, TrackingConfig
from bestepoch.base.errors import UsageError
from bestepoch.base.files import digest
from bestepoch.base.paths import main_checkout, project_root
from bestepoch.runs.identity import hash_training_code
from bestepoch.sweeps.jobs import JobRecords, planned_jobs
from bestepoch.sweeps.launcher import plan_multirun

# Overrides that say how a sweep runs, not what it runs; `train.epochs=null` is added to an override of iterations.
RUN_OPTIONS = ("sweep.", "hydra/launcher=", "hydra.", "train.epochs=null")


@dataclass
class Sweep:
    """A multirun. Jobs may run in other processes and on other machines; they share the sweep's folder.

    The same command leads to the same folder ``runs/sweeps/<name>``, where finished jobs stay.

    Args:
        root: the project.
        overrides: the overrides of the command line, without those that say how to run.
        jobs: the records of the jobs.
        selection: how epochs and jobs are compared.
        tracking: the trackers.
        fail_fast: whether a failed job keeps further jobs from starting.
        parent: id of the sweep's run in MLflow.
        process: id of the process that started the sweep.
        began: when it was started, in seconds since the epoch.
    """

    root: Path
    overrides: list[str]
    jobs: JobRecords
    selection: SelectionConfig
    tracking: TrackingConfig
    fail_fast: bool
    parent: str | None = None
    process: int = field(default_factory=os.getpid)
    began: float = field(default_factory=time.time)

    @property
    def folder(self) -> Path:
        """Folder of the jobs' runs and records."""
        return self.jobs.folder

    @classmethod
    def from_overrides(cls, overrides: list[str], first: Config) -> tuple[Sweep, list[str]]:
        """Return the sweep of a command line and the overrides to add to it; nothing is written yet.

        Args:
            overrides: of the command line.
            first: configuration of the first job.

        Raises:
            UsageError: the launcher is not available, or ``sweep=<folder>`` is given.
        """
        if isinstance(first.sweep, str):
            raise UsageError("sweep=<folder> belongs to `python -m bestepoch.promote`; leave it out.")
        plan = plan_multirun(overrides)
        threads = [] if plan.threads is None else [f"device.threads={plan.threads}"]
        varied = [line for line in overrides if not line.lstrip("+").startswith(RUN_OPTIONS)]
        base = first.training()
        for key in ("name", "threads"):  # the same sweep on another machine has the same folder
            del base["device"][key]
        sweep_hash = digest(varied + threads, base, hash_training_code())[:6]
        lines = sorted(varied, key=lambda line: not re.search(r"[,(]", line))  # settings with several values first
        name = slug([short_override(line) for line in lines], longest=60) or "sweep"
        folder = main_checkout() / "runs" / "sweeps" / f"{name}-{sweep_hash}"
        jobs = JobRecords(folder, planned_jobs([job + threads for job in plan.jobs or []], varied + threads))
        sweep = cls(project_root(), varied + threads, jobs, first.selection, first.tracking, first.sweep.fail_fast)
        return sweep, threads + plan.of_hydra

    def chdir_to_project(self) -> None:
        """Change to the project, for a process that a launcher started elsewhere.

        Raises:
            UsageError: this machine does not have the project's folder.
        """
        if not (self.root / "dvc.yaml").is_file():
            raise UsageError(
                f"{self.root} is not there on {socket.gethostname()}. The machines of a sweep share the project's "
                f"folder, at the same path on each"
            )
        if self.root not in (Path.cwd(), *Path.cwd().parents):
            os.chdir(self.root)

    def should_stop(self) -> bool:
        """Whether a job has failed and ``sweep.fail_fast`` keeps further jobs from starting."""
        return self.fail_fast and any(record["status"] == "failed" for record in self.jobs.read_all())
