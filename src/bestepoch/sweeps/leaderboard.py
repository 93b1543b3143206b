"""Who won a sweep: jobs and settings in order, as a table for the terminal, for files and for MLflow."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from pathlib import Path

from bestepoch.base.config.schema import SelectionConfig
from bestepoch.base.files import name_path_in_errors
from bestepoch.base.paths import display_path, main_checkout
from bestepoch.runs.run import Run
from bestepoch.runs.tables import write_table
from bestepoch.sweeps.jobs import JobRecord

MAX_LISTED_JOBS = 50  # jobs in a description; jobs.csv has all
COLUMNS = ["overrides", "status", "best_epoch", "metric", "seconds", "run", "error", "traceback"]


@dataclass
class ReplicateGroup:
    """Jobs that differ only in their seed or fold, the best one first."""

    name: str
    jobs: list[JobRecord]

    @property
    def mean(self) -> float:
        """Of the jobs' best values."""
        return statistics.fmean(job["metric"] for job in self.jobs)

    @property
    def sd(self) -> float:
        """Standard deviation over the jobs; NaN of a single one."""
        return statistics.stdev(job["metric"] for job in self.jobs) if len(self.jobs) > 1 else math.nan


@dataclass
class Leaderboard:
    """``settings``: of the finished jobs, best first. ``rest``: the jobs that are not finished."""

    metric: str
    sign: int  # 1 where lower is better, else -1
    config: list[ReplicateGroup]
    rest: list[JobRecord]
    runs: list[Run]

    @classmethod
    def from_records(cls, notes: list[JobRecord], selection: SelectionConfig) -> Leaderboard:
        """From what the jobs have noted."""
        from bestepoch.sweeps.replicates import group_replicates

        sign = 1 if selection.mode == "min" else -1
        good = {note["run"]: note for note in notes if note["status"] == "finished"}
        runs = {name: Run.read(main_checkout() / name) for name in good}
        config = []
        for found in group_replicates(list(runs.values())) if runs else []:
            jobs = [good[display_path(run.folder)] for run in found.runs]
            config.append(ReplicateGroup(found.name, sorted(jobs, key=lambda job: sign * job["metric"])))
        # one that lacks some of its seeds is not compared by those it has
        full = max((len(setting.jobs) for setting in config), default=0)
        config.sort(key=lambda setting: (len(setting.jobs) < full, sign * setting.mean))
        rest = [note for note in notes if note["status"] != "finished"]
        return cls(selection.metric, sign, config, rest, list(runs.values()))

    @property
    def repeated(self) -> bool:
        """Whether there are jobs that differ only in their seed or fold."""
        return any(len(setting.jobs) > 1 for setting in self.config)

    @property
    def winner(self) -> JobRecord | None:
        """The best job of the best setting."""
        return self.config[0].jobs[0] if self.config else None

    @property
    def failed(self) -> bool:
        """Whether a job is not finished."""
        return bool(self.rest) or not self.config

    def jobs(self) -> list[JobRecord]:
        """All of them, the best one first and the unfinished ones last."""
        finished = [job for setting in self.config for job in setting.jobs]
        return sorted(finished, key=lambda job: float(self.sign * job["metric"])) + self.rest

    def write(self, folder: Path) -> list[Path]:
        """``jobs.csv`` and, where jobs are repeats of one another, ``settings.csv``."""
        files = [folder / "jobs.csv"]
        columns = [self.metric if c == "metric" else c for c in COLUMNS]
        with name_path_in_errors(files[0]):
            write_table(files[0], columns, [[job.get(c, "") for c in COLUMNS] for job in self.jobs()])
        if self.repeated:
            files.append(folder / "settings.csv")
            with name_path_in_errors(files[1]):
                write_table(files[1], ["setting", "n", f"{self.metric} mean", f"{self.metric} sd", "best_run"], [
                    [s.name, len(s.jobs), s.mean, "" if len(s.jobs) < 2 else s.sd, s.jobs[0]["run"]]
                    for s in self.config
                ])  # fmt: skip
        return files

    def rows(self) -> list[list[str]]:
        """The table as text: a head, then a line for each setting, or for each job where none is repeated."""
        if self.repeated:
            return [["setting", f"{self.metric} mean ± sd", "n"]] + [
                [s.name, f"{s.mean:.5g}" + (f" ± {s.sd:.2g}" if len(s.jobs) > 1 else ""), str(len(s.jobs))]
                for s in self.config
            ]
        return [["job", self.metric, "best epoch", "seconds"]] + [
            [job["name"], f"{job['metric']:.5g}", str(job["best_epoch"]), f"{job['seconds']:.1f}"]
            for job in self.jobs()
            if job not in self.rest
        ]

    def lines(self) -> list[str]:
        """For the terminal: the table, then each job that is not finished, why, and where its traceback is."""
        from tabulate import tabulate

        rows = self.rows()  # the head among them: of headers tabulate makes wider columns
        table = tabulate(rows, tablefmt="plain", colalign=_sides(rows), disable_numparse=True)
        out = ["", *table.splitlines(), ""] if len(rows) > 1 else []
        for job in self.rest:
            out.append(format_job(job, self.metric))
            if "traceback" in job:
                out.append(f"         {job['traceback']}")
        return out

    def markdown(self) -> list[str]:
        """The same for a description, cut where it would be long."""
        from tabulate import tabulate

        head, *rows = self.rows()
        table = tabulate(rows[:MAX_LISTED_JOBS], head, "pipe", colalign=_sides(rows), disable_numparse=True)
        told = [f"- {format_job(job, self.metric)}" for job in self.rest[:MAX_LISTED_JOBS]]
        return [*table.splitlines(), "", *told]


def _sides(rows: list[list[str]]) -> list[str] | None:
    """Names to the left, numbers to the right."""
    return ["left"] + ["right"] * (len(rows[0]) - 1) if rows else None


def format_job(job: JobRecord, metric: str) -> str:
    """One job, as it ended."""
    if job["status"] != "finished":
        return f"{job['status']:<8}  {job['name']}" + (f"  {job['error']}" if "error" in job else "")
    before = ", finished before" if job["before"] else ""
    best = f"{metric} {job['metric']:.5g} at epoch {job['best_epoch']}"
    return f"finished  {job['name']}  {best}, {job['seconds']:.1f} s{before}"
