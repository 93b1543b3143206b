"""Rank the jobs of a sweep and format the table for the terminal, CSV files and MLflow."""

from __future__ import annotations

import math
import re
import statistics
from dataclasses import dataclass
from pathlib import Path

from bestepoch.base.config.groups import CONFIG_GROUPS
from bestepoch.base.config.schema import SelectionConfig
from bestepoch.base.files import name_path_in_errors
from bestepoch.base.paths import display_path, main_checkout
from bestepoch.runs.run import Run
from bestepoch.runs.tables import write_table
from bestepoch.sweeps.jobs import JobRecord
from bestepoch.tracking.mlflow.sweep import SweepSummary

MAX_LISTED_JOBS = 50  # in a description; jobs.csv lists all
COLUMNS = {  # of jobs.csv, by the keys of the job's record
    "overrides": "overrides",
    "status": "status",
    "best_epoch": "best_epoch",
    "metric": "metric",
    "accuracy": "val/accuracy",
    "updates": "updates",
    "seconds": "seconds",
    "run": "run",
    "error": "error",
    "traceback": "traceback",
}


@dataclass
class ReplicateGroup:
    """Jobs that differ only in their seed or fold, best first."""

    name: str
    jobs: list[JobRecord]

    @property
    def mean(self) -> float:
        """Mean of the jobs' best metric values."""
        return statistics.fmean(job["metric"] for job in self.jobs)

    @property
    def sd(self) -> float:
        """Standard deviation of the jobs' best metric values; NaN for a single job."""
        return statistics.stdev(job["metric"] for job in self.jobs) if len(self.jobs) > 1 else math.nan


@dataclass
class Leaderboard:
    """Ranking of a sweep's jobs.

    ``config`` holds the groups of finished jobs, best first, and ``rest`` the jobs that are not finished.
    """

    metric: str
    sign: int  # 1 if lower is better, else -1
    groups: list[ReplicateGroup]
    rest: list[JobRecord]
    runs: list[Run]

    @classmethod
    def from_records(cls, records: list[JobRecord], selection: SelectionConfig) -> Leaderboard:
        """Rank the jobs by their records."""
        from bestepoch.sweeps.replicates import group_replicates

        sign = 1 if selection.mode == "min" else -1
        finished = {record["run"]: record for record in records if record["status"] == "finished"}
        runs = [Run.read(main_checkout() / name) for name in finished]
        groups = []
        for replicates in group_replicates(runs):
            jobs = [finished[display_path(run.folder)] for run in replicates.runs]
            groups.append(ReplicateGroup(replicates.name, sorted(jobs, key=lambda job: sign * job["metric"])))
        # A group that lacks some replicates ranks below complete groups, because its mean is not comparable.
        full = max((len(group.jobs) for group in groups), default=0)
        groups.sort(key=lambda group: (len(group.jobs) < full, sign * group.mean))
        rest = [record for record in records if record["status"] != "finished"]
        return cls(selection.metric, sign, groups, rest, runs)

    @property
    def repeated(self) -> bool:
        """Whether some jobs differ only in their seed or fold."""
        return any(len(group.jobs) > 1 for group in self.groups)

    @property
    def winner(self) -> JobRecord | None:
        """The best job of the best group, or None if no job is finished."""
        return self.groups[0].jobs[0] if self.groups else None

    @property
    def failed(self) -> bool:
        """Whether a job is not finished, or no job exists."""
        return bool(self.rest) or not self.groups

    def jobs(self) -> list[JobRecord]:
        """Return all jobs, best first and unfinished last."""
        finished = [job for group in self.groups for job in group.jobs]
        return sorted(finished, key=lambda job: float(self.sign * job["metric"])) + self.rest

    def write(self, folder: Path) -> list[Path]:
        """Write ``jobs.csv`` and, if there are replicates, ``settings.csv``, and return their paths.

        Raises:
            OSError: a file cannot be written; the message names the file.
        """
        files = [folder / "jobs.csv"]
        columns = {**COLUMNS, "metric": self.metric}
        if self.metric == columns["accuracy"]:
            del columns["accuracy"]
        with name_path_in_errors(files[0]):
            write_table(files[0], [*columns.values()], [[job.get(c, "") for c in columns] for job in self.jobs()])
        if self.repeated:
            files.append(folder / "settings.csv")
            with name_path_in_errors(files[1]):
                write_table(files[1], ["setting", "n", f"{self.metric} mean", f"{self.metric} sd", "best_run"], [
                    [s.name, len(s.jobs), s.mean, "" if len(s.jobs) < 2 else s.sd, s.jobs[0]["run"]]
                    for s in self.groups
                ])  # fmt: skip
        return files

    def rows(self) -> list[list[str]]:
        """Return the table as text: a header, then a row per group, or per job if there are no replicates."""
        if self.repeated:
            return [["setting", f"{self.metric} mean ± sd", "n"]] + [
                [s.name, f"{s.mean:.5g}" + (f" ± {s.sd:.2g}" if len(s.jobs) > 1 else ""), str(len(s.jobs))]
                for s in self.groups
            ]
        header, *rows = [["job", self.metric, "val/accuracy", "best epoch", "updates", "seconds"]] + [
            [
                *(job["name"], f"{job['metric']:.5g}", f"{job['accuracy']:.2%}"),
                *(str(job["best_epoch"]), f"{job['updates']:,}", f"{job['seconds']:.1f}"),
            ]
            for job in self.jobs()
            if job not in self.rest
        ]
        return [header, *rows]

    def lead(self) -> str | None:
        """Return the second best setting and by how much it is worse, if each setting ran once."""
        if self.repeated or len(self.groups) < 2:
            return None
        difference = self.sign * (self.groups[1].mean - self.groups[0].mean)
        return f"{shorten_setting(self.groups[1].name)}, worse by {difference:.3g}"

    def lines(self) -> list[str]:
        """Return the lines for the terminal: the table, then each unfinished job with its error and traceback file."""
        from tabulate import tabulate

        rows = self.rows()  # with the header, because tabulate widens the columns of separate headers
        table = tabulate(rows, tablefmt="plain", colalign=_alignments(rows), disable_numparse=True)
        out = ["", *table.splitlines(), ""] if len(rows) > 1 else []
        for job in self.rest:
            out.append(format_job(job, self.metric))
            if "traceback" in job:
                out.append(f"         {job['traceback']}")
        return out

    def summary(self, answers: list[str]) -> SweepSummary:
        """Return what the sweep's run in MLflow shows; ``answers`` are those of its study, one for each setting."""
        lead = self.lead()
        return SweepSummary(
            self.metric,
            self.winner,
            self.failed,
            self.markdown(),
            answers or ([f"one seed each; next: {lead}"] if lead else []),
        )

    def markdown(self) -> list[str]:
        """Return the lines of a Markdown description, with at most ``MAX_LISTED_JOBS`` rows."""
        from tabulate import tabulate

        header, *rows = self.rows()
        table = tabulate(rows[:MAX_LISTED_JOBS], header, "pipe", colalign=_alignments(rows), disable_numparse=True)
        unfinished = [f"- {format_job(job, self.metric)}" for job in self.rest[:MAX_LISTED_JOBS]]
        return [*table.splitlines(), "", *unfinished]


def shorten_setting(setting: str) -> str:
    """Return the name of a group for a line: ``optimizer=sgd optimizer.lr=0.1`` becomes ``sgd lr=0.1``."""

    def shorten(match: re.Match[str]) -> str:
        key = match[1]
        return "" if key in CONFIG_GROUPS else f"{key.rpartition('.')[2]}="

    return re.sub(r"\b([a-z_][\w.]*)=", shorten, setting)


def _alignments(rows: list[list[str]]) -> list[str] | None:
    # Names are aligned left, numbers right.
    return ["left"] + ["right"] * (len(rows[0]) - 1) if rows else None


def format_job(job: JobRecord, metric: str) -> str:
    """Return one line that describes how the job ended."""
    if job["status"] != "finished":
        return f"{job['status']:<8}  {job['name']}" + (f"  {job['error']}" if "error" in job else "")
    earlier = ", finished before" if job["before"] else ""
    best = f"{metric} {job['metric']:.5g} at epoch {job['best_epoch']}"
    return f"finished  {job['name']}  {best}, {job['seconds']:.1f} s{earlier}"
