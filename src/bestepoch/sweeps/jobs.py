"""A sweep's jobs, and what each notes of how it fares.

The notes lie in the sweep's folder, a file for each job: jobs may run in other processes and on other machines, and
who wants to know may ask after the sweep.
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
RECORDS_FOLDER = ".jobs"  # in a sweep's folder


def job_id(overrides: list[str]) -> str:
    """By which a job is known."""
    return files.digest(overrides)


def planned_jobs(jobs: list[list[str]], fixed: list[str] | None = None) -> dict[str, JobRecord]:
    """What is noted of jobs that have not begun, by their `key`.

    Each is named by what it does not have in common with all others, or with ``fixed``.
    """
    # among the jobs, since Hydra writes a value in its own way: what was typed as 1e-2 is 0.01 in each
    common = set(fixed or ()) if len(jobs) < 2 else set.intersection(*map(set, jobs))
    names = [slug([short_override(line) for line in job if line not in common] or ["job"]) for job in jobs]
    alike = Counter(names)
    return {
        job_id(job): {
            "overrides": " ".join(job),
            "name": name if alike[name] == 1 else f"{name}-{job_id(job)[:6]}",
            "status": "not started",
        }
        for job, name in zip(jobs, names, strict=True)
    }


@dataclass
class JobRecords:
    """The notes in a sweep's ``folder``.

    Args:
        planned: as `waiting` has them; empty where a sweeper chooses them on the way, or nobody knows any more.
        host: whose processes can be looked for.
    """

    folder: Path
    planned: dict[str, JobRecord] = field(default_factory=dict)
    host: str = field(default_factory=socket.gethostname)
    _ended: dict[str, JobRecord] = field(default_factory=dict, init=False)  # the notes that change no more

    def begin(self) -> None:
        """Forget what was noted when the sweep was run before."""
        (self.folder / RECORDS_FOLDER).mkdir(parents=True, exist_ok=True)
        for old in (self.folder / RECORDS_FOLDER).glob("*.json"):
            old.unlink()

    def write(self, job: str, note: JobRecord) -> None:
        """How the job of this `key` fares now."""
        files.write_json(self.folder / RECORDS_FOLDER / f"{job}.json", note)

    def read_all(self) -> list[JobRecord]:
        """What the jobs have noted, in the order of their numbers; those that nobody has begun are "not started"."""
        there = {path.stem: path for path in (self.folder / RECORDS_FOLDER).glob("*.json")}
        rows = [self._read(there.pop(name)) if name in there else job for name, job in self.planned.items()]
        return rows + [self._read(path) for _, path in sorted(there.items())]

    def _read(self, path: Path) -> JobRecord:
        """A job's note; one whose process died before it could say so was killed."""
        if path.stem in self._ended:
            return self._ended[path.stem]
        note: JobRecord = json.loads(path.read_text())
        if note["status"] in ("finished", "failed"):
            self._ended[path.stem] = note
        if note["status"] == "running" and note["host"] == self.host and not shutdown.is_alive(note["process"]):
            note["status"] = "killed"
        return note
