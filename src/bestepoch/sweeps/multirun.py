"""Run a sweep in the process that started it: prepare, watch the jobs, write the table."""

from __future__ import annotations

import contextlib
import logging
import shlex
import signal
import threading
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import Timeout

from bestepoch.base import files
from bestepoch.base.config.overrides import quote_override
from bestepoch.base.config.schema import Config
from bestepoch.base.errors import UsageError, first_line
from bestepoch.base.interrupt import raise_on_interrupt
from bestepoch.base.paths import display_path
from bestepoch.runs.run import sweep_lock
from bestepoch.sweeps.job import run_job
from bestepoch.sweeps.leaderboard import Leaderboard
from bestepoch.sweeps.progress import show_progress
from bestepoch.sweeps.study import read_answers, run_study
from bestepoch.sweeps.sweep import Sweep

log = logging.getLogger("bestepoch")


class SweepMultirun:
    """The multirun that ``python -m bestepoch.train -m ...`` asks for; see `bestepoch.cli.launch.Multirun`."""

    def __init__(self, overrides: list[str], first: Config) -> None:
        typed = [line for line in overrides if line != "train.epochs=null"]  # which `compose_job` adds
        self.command = shlex.join(["python", "-m", "bestepoch.train", "-m", *typed])
        self.sweep, added = Sweep.from_overrides(overrides, first)
        self.added_overrides: Sequence[str] = [*added, f"hydra.sweep.dir={quote_override(str(self.sweep.folder))}"]

    def enter(self) -> None:
        """Change to the project."""
        self.sweep.chdir_to_project()

    def run_job(self, config: Config) -> float:
        """Train one job; return its best selection metric, or NaN where it failed."""
        return run_job(self.sweep, config)

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """Lock the sweep, create its parent run, show the jobs while they run, and write the table at the end.

        Raises:
            UsageError: another process runs the sweep.
            SystemExit: a job is not finished, or a signal came.
        """

        def stop(signum: int, _frame: Any) -> None:
            raise SystemExit(128 + signum)

        sweep = self.sweep
        sweep.folder.mkdir(parents=True, exist_ok=True)
        lock = sweep_lock(sweep.folder)
        try:
            lock.acquire(timeout=1.0)  # others look into the folder for moments
        except Timeout:
            raise UsageError(
                f"{display_path(sweep.folder)} is being run already by another process. Wait for it, or stop it"
            ) from None
        previous_handler = signal.signal(signal.SIGTERM, stop)
        launcher_error: Exception | None = None
        ended, complete, stopped = threading.Event(), False, False
        try:
            _prepare(sweep)
            arguments = (sweep.jobs, sweep.selection, ended)
            watcher = threading.Thread(target=show_progress, args=arguments, name="sweep", daemon=True)
            watcher.start()
            try:
                with raise_on_interrupt():
                    yield
            except SystemExit:
                stopped = True
                raise
            except Exception as error:  # the launcher's; the error of a job is in its record
                launcher_error = error
            finally:
                ended.set()
                watcher.join()
                complete = _finish(sweep)
                if stopped:
                    log.info("again    %s", self.command)
        finally:
            signal.signal(signal.SIGTERM, previous_handler)
            lock.release()
        if launcher_error is not None:
            _report_launcher_error(sweep, launcher_error)
        if launcher_error is not None or not complete:
            raise SystemExit(1)


def _prepare(sweep: Sweep) -> None:
    """Remove the records of an earlier attempt, and begin the parent run."""
    sweep.jobs.begin()
    for old in sweep.folder.glob("*.error.log"):
        old.unlink()
    values = {"overrides": sweep.overrides, "selection": sweep.selection.model_dump()}
    files.write_json(sweep.folder / "sweep.json", values)
    if sweep.tracking.mlflow:
        from bestepoch.tracking.mlflow.sweep import begin_sweep

        try:
            sweep.parent = begin_sweep(sweep.tracking.experiment, sweep.folder, sweep.overrides)
        except Exception as error:  # the jobs train all the same, each as a run without a parent
            log.warning("warning: MLflow does not take the sweep's parent run (%s)", first_line(error))
    count = f", {len(sweep.jobs.planned)} jobs" if sweep.jobs.planned else ""
    log.info("sweep    %s%s", display_path(sweep.folder), count)


def _finish(sweep: Sweep) -> bool:
    """Print and write the table of all jobs, and end the parent run; return whether all jobs are finished."""
    table = Leaderboard.from_records(sweep.jobs.read_all(), sweep.selection)
    try:
        written = table.write(sweep.folder)
        if table.groups:
            written.append(_draw(table, sweep.folder / "sweep.png"))
    except OSError as error:  # the terminal shows the table all the same
        written = []
        log.warning("warning: %s", files.explain_disk_error(error) or error)
    for text in table.lines():
        log.info("%s", text)
    if (lead := table.lead()) is not None:
        log.info("next     %s with one seed each: add seed=range(3)", lead)
    log.info("table    %s", display_path(sweep.folder / "jobs.csv"))
    answers: list[str] = []
    if table.repeated:
        run_study(table.runs, sweep.selection, sweep.tracking, sweep.folder / "study")
        answers = read_answers(sweep.folder / "study")
    if table.winner is not None:
        log.info("promote  python -m bestepoch.promote sweep=%s", display_path(sweep.folder))
    if sweep.parent is not None:
        from bestepoch.tracking.mlflow.sweep import end_sweep

        try:
            end_sweep(sweep.parent, sweep.folder, written, table.summary(answers))
        except Exception as error:
            log.warning("warning: MLflow does not take the sweep's table (%s)", first_line(error))
    return not table.failed


def _draw(table: Leaderboard, path: Path) -> Path:
    from bestepoch.sweeps.figure import plot_sweep

    with files.name_path_in_errors(path):
        plot_sweep(table).savefig(path, dpi=110)
    return path


def _report_launcher_error(sweep: Sweep, error: Exception) -> None:
    """Log why the launcher gave up; its traceback goes into a file."""
    from hydra.errors import CompactHydraException

    if isinstance(error, (CompactHydraException, UsageError)):  # these messages are meant to be read
        log.error("bestepoch: %s", error)
        return
    path = sweep.folder / "launcher.error.log"
    path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    log.error("bestepoch: The launcher gave up: %s", first_line(error))
    log.error("         %s", display_path(path))
    log.error("         The same command again goes on with what is not finished.")
