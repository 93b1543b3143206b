"""A multirun: one parent run, one child a job, a line for each job as it ends, and a table of all of them.

Jobs may run in this process or, by a launcher, in others and on other machines. What they share is the sweep's folder:
each job notes there how it fares (`bestepoch.sweeps.jobs`), and the process that began the sweep reads it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import Timeout

from bestepoch.base import shutdown
from bestepoch.base.config.overrides import job_overrides, short_override, slug
from bestepoch.base.config.schema import Config, SelectionConfig, TrackingConfig
from bestepoch.base.errors import UsageError, first_line
from bestepoch.base.files import digest, explain_disk_error, write_json
from bestepoch.base.paths import display_path, main_checkout
from bestepoch.base.paths import project_root as files_root
from bestepoch.evaluation.selection import best_epoch
from bestepoch.runs.identity import TRAINING_FOLDERS, hash_code
from bestepoch.runs.run import Run, sweep_lock
from bestepoch.runs.tables import read_rows
from bestepoch.sweeps import launcher, leaderboard
from bestepoch.sweeps.jobs import JobRecord, JobRecords, job_id, planned_jobs
from bestepoch.sweeps.progress import show_progress

log = logging.getLogger("bestepoch")


@dataclass
class Sweep:
    """``folder`` is ``runs/sweeps/<name>``; the same command leads to the same folder, where finished jobs stay.

    Args:
        overrides: as they were typed, without those that say how, not what, to run.
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
        """Where its jobs have their runs and their notes."""
        return self.jobs.folder

    @classmethod
    def from_overrides(cls, overrides: list[str], first: Config) -> tuple[Sweep, list[str]]:
        """The sweep that a command line asks for; nothing is made yet.

        Returns:
            also what is to be added to the overrides: the threads of each job, where several run at once, and what the
            launcher needs.
        """
        if isinstance(first.sweep, str):
            raise UsageError("sweep=<folder> belongs to `python -m bestepoch.promote`; leave it out.")
        plan = launcher.plan_multirun(overrides)
        more = [] if plan.threads is None else [f"device.threads={plan.threads}"]
        how = ("sweep.", "hydra/launcher=", "hydra.", "train.epochs=null")  # the last comes with train.iterations
        told = [line for line in overrides if not line.lstrip("+").startswith(how)]
        told += more
        base = first.training()
        for setting in ("name", "threads"):  # the same sweep on another machine
            del base["device"][setting]
        number = digest(told, base, hash_code(TRAINING_FOLDERS))[:6]
        lines = sorted((line for line in told if line not in more), key=lambda line: not re.search(r"[,(]", line))
        name = slug([short_override(line) for line in lines])[:60].rstrip("-_.") or "sweep"  # what varies comes first
        folder = main_checkout() / "runs" / "sweeps" / f"{name}-{number}"
        jobs = JobRecords(folder, planned_jobs([job + more for job in plan.jobs or []], told))
        sweep = cls(files_root(), told, jobs, first.selection, first.tracking, first.sweep.fail_fast)
        return sweep, more + plan.of_hydra

    def _prepare(self) -> None:
        self.jobs.begin()
        for old in self.folder.glob("*.error.log"):
            old.unlink()
        write_json(self.folder / "sweep.json", {"overrides": self.overrides, "selection": self.selection.model_dump()})
        if self.tracking.mlflow:
            from bestepoch.tracking.mlflow.sweep import begin_sweep

            try:
                self.parent = begin_sweep(self.tracking.experiment, self.folder, self.overrides)
            except Exception as error:  # the jobs train all the same, each on its own in MLflow
                log.warning("warning: MLflow does not take the sweep's parent run (%s)", first_line(error))
        count = f", {len(self.jobs.planned)} jobs" if self.jobs.planned else ""
        log.info("sweep    %s%s", display_path(self.folder), count)

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """Around the jobs, in the process that began the sweep.

        Makes the folder and the parent run before any job starts, says how each job ended, and in the end the table.

        Raises:
            UsageError: the sweep is being run already.
            SystemExit: a job is not finished, or a signal came.
        """

        def stop(number: int, _frame: Any) -> None:
            raise SystemExit(128 + number)

        self.folder.mkdir(parents=True, exist_ok=True)
        lock = sweep_lock(self.folder)
        try:
            lock.acquire(timeout=1.0)  # others look into it for moments
        except Timeout:
            where = display_path(self.folder)
            raise UsageError(f"{where} is being run already by another process. Wait for it, or stop it") from None
        before = signal.signal(signal.SIGTERM, stop)
        broken: Exception | None = None
        ended, good = threading.Event(), False
        try:
            self._prepare()
            seen = (self.jobs, self.selection, ended)
            watcher = threading.Thread(target=show_progress, args=seen, name="sweep", daemon=True)
            watcher.start()
            try:
                yield
            except KeyboardInterrupt:
                raise SystemExit(128 + signal.SIGINT) from None
            except Exception as error:  # not of a job, whose error is in its row
                broken = error
            finally:
                ended.set()
                watcher.join()
                good = self._finish()
        finally:
            signal.signal(signal.SIGTERM, before)
            lock.release()
        if broken is not None:
            self._report_launcher_error(broken)
        if broken is not None or not good:
            raise SystemExit(1)

    def _report_launcher_error(self, error: Exception) -> None:
        """What became of the launcher, after the table."""
        from hydra.errors import CompactHydraException

        if isinstance(error, (CompactHydraException, UsageError)):  # they are meant to be read
            log.error("bestepoch: %s", error)
            return
        where = self.folder / "launcher.error.log"
        where.write_text("".join(traceback.format_exception(error)))
        log.error("bestepoch: The launcher gave up: %s", first_line(error))
        log.error("         %s", display_path(where))
        log.error("         The same command again goes on with what is not finished.")

    def chdir_to_project(self) -> None:
        """Go to the project, in a process that was started elsewhere.

        Raises:
            UsageError: this machine does not have it.
        """
        if not (self.root / "dvc.yaml").is_file():
            raise UsageError(
                f"{self.root} is not there on {socket.gethostname()}. The machines of a sweep share the project's "
                f"folder, at the same path on each"
            )
        if self.root not in (Path.cwd(), *Path.cwd().parents):
            os.chdir(self.root)

    @contextlib.contextmanager
    def job(self) -> Iterator[tuple[Path, JobRecord]]:
        """Around one job, in whichever process: yields the folder for its run and its row of the table.

        An error ends here, in that row and a file with the traceback, so that the other jobs go on.
        """
        overrides = job_overrides()
        number = job_id(overrides)
        planned = self.jobs.planned.get(number) or planned_jobs([overrides], self.overrides)[number]
        row = {**planned, "status": "running", "host": socket.gethostname(), "process": os.getpid()}
        name = str(row["name"])
        self.jobs.write(number, row)
        child = os.getppid() == self.process and self.jobs.host == socket.gethostname()
        if child:
            shutdown.stop_when_exits(self.process)  # killed, it leaves its processes running
        told = log.level
        log.setLevel(logging.WARNING)  # a job has one line, which the process that began the sweep prints
        try:
            yield self.folder / name, row
            row["status"] = "finished"
        except SystemExit:
            row["status"] = "killed"
            raise
        except Exception as error:
            kind = "" if isinstance(error, UsageError) else f"{type(error).__name__}: "
            # beside the folder, which belongs to the run and may not be there yet
            where = self.folder / f"{name}.error.log"
            row.update(status="failed", error=kind + first_line(error), traceback=display_path(where))
            where.write_text(traceback.format_exc())
        finally:
            log.setLevel(told)
            self.jobs.write(number, row)
            if child and os.getppid() != self.process:
                os._exit(1)  # a worker of joblib would take its next job, or wait for one that nobody gives it any more

    def should_stop(self) -> bool:
        """Whether no further job is to be started, because one has failed and ``sweep.fail_fast`` says so."""
        return self.fail_fast and any(note["status"] == "failed" for note in self.jobs.read_all())

    def job_result(self, run: Run) -> dict[str, Any]:
        """What the table says of a job that trained to its end."""
        epochs = read_rows(run.folder / "epochs.csv")
        best = best_epoch(epochs, self.selection.metric, self.selection.mode)
        return {
            "best_epoch": int(best["epoch"]),
            "metric": best[self.selection.metric],
            "seconds": round(sum(row["seconds"] for row in epochs), 1),
            "run": display_path(run.folder),
            "before": run.info["ended"] < self.began,
        }

    def _finish(self) -> bool:
        """The table of all jobs, on the terminal, as files, and in the parent run; whether all are finished."""
        notes = self.jobs.read_all()
        table = leaderboard.Leaderboard.from_records(notes, self.selection)
        try:
            files = table.write(self.folder)
        except OSError as error:  # what it would have said is said below all the same
            files = []
            log.warning("warning: %s", explain_disk_error(error) or error)
        for text in table.lines():
            log.info("%s", text)
        log.info("table    %s", display_path(self.folder / "jobs.csv"))
        if table.repeated:
            from bestepoch.sweeps.study import run_study

            run_study(table.runs, self.selection, self.tracking, self.folder / "study")
        if table.winner is not None:
            log.info("test it  python -m bestepoch.promote sweep=%s", display_path(self.folder))
        if self.parent is not None:
            from bestepoch.tracking.mlflow.sweep import end_sweep

            try:
                end_sweep(self.parent, self.folder, files, table)
            except Exception as error:
                log.warning("warning: MLflow does not take the sweep's table (%s)", first_line(error))
        return not table.failed
