"""Records of a sweep's jobs: one JSON file per job in the sweep's folder.

Jobs may run in other processes and on other machines, and the records can be read after the sweep has ended.
"""

from __future__ import annotations

import json
import socket
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bestepoch.base import files, shutdown
from bestepoch.base.config.overrides import short_override, slug

JobRecord = dict[str, Any]
RECORDS_FOLDER = ".jobs"  # in the sweep's folder


def job_id(overrides: list[str]) -> str:
    """Return the identifier of the job with these overrides."""
    return files.digest(overrides)


def planned_jobs(jobs: list[list[str]], fixed: list[str] | None = None) -> dict[str, JobRecord]:
    """Return the records of jobs that have not started, by `job_id`.

    A job's name consists of the overrides that not all jobs share; a single job's name omits those in ``fixed``.
    """
    # Compare jobs with each other, not with the command line: Hydra rewrites values (1e-2 becomes 0.01).
    common = set(fixed or ()) if len(jobs) < 2 else set.intersection(*map(set, jobs))
    names = [slug([short_override(line) for line in job if line not in common] or ["job"]) for job in jobs]
    name_counts = Counter(names)
    return {
        job_id(job): {
            "overrides": " ".join(job),
            "name": name if name_counts[name] == 1 else f"{name}-{job_id(job)[:6]}",
            "status": "not started",
        }
        for job, name in zip(jobs, names, strict=True)
    }


@dataclass
class JobRecords:
    """The job records in a sweep's folder.

    Args:
        folder: the sweep's folder.
        planned: result of `planned_jobs`; empty if a sweeper chooses jobs as it goes or the plan is not known any more.
        host: name of this machine; processes on other machines cannot be checked.
    """

    folder: Path
    planned: dict[str, JobRecord] = field(default_factory=dict)
    host: str = field(default_factory=socket.gethostname)
    _ended: dict[str, JobRecord] = field(default_factory=dict, init=False)  # cache

    def begin(self) -> None:
        """Create the records folder and delete records of an earlier run of the sweep."""
        (self.folder / RECORDS_FOLDER).mkdir(parents=True, exist_ok=True)
        for path in (self.folder / RECORDS_FOLDER).glob("*.json"):
            path.unlink()

    def write(self, job: str, record: JobRecord) -> None:
        """Write the record of the job with identifier ``job``."""
        files.write_json(self.folder / RECORDS_FOLDER / f"{job}.json", record)

    def read_all(self) -> list[JobRecord]:
        """Return all records in job order, including planned jobs that have not started."""
        paths = {path.stem: path for path in (self.folder / RECORDS_FOLDER).glob("*.json")}
        records = [self._read(paths.pop(job)) if job in paths else planned for job, planned in self.planned.items()]
        return records + [self._read(path) for _, path in sorted(paths.items())]

    def _read(self, path: Path) -> JobRecord:
        """Read a record; mark a running job as killed if its process has died."""
        if path.stem in self._ended:
            return self._ended[path.stem]
        record: JobRecord = json.loads(path.read_text(encoding="utf-8"))
        if record["status"] in ("finished", "failed"):
            self._ended[path.stem] = record
        if record["status"] == "running" and record["host"] == self.host and not shutdown.is_alive(record["process"]):
            record["status"] = "killed"
        return record
