"""Run one job of a sweep and record how it ended."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import socket
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bestepoch.base.config.overrides import job_overrides
from bestepoch.base.config.schema import Config
from bestepoch.base.errors import UsageError, first_line
from bestepoch.base.paths import display_path
from bestepoch.base.shutdown import stop_when_exits
from bestepoch.evaluation.selection import best_epoch
from bestepoch.evaluation.summary import summarize_run
from bestepoch.runs.run import Run
from bestepoch.runs.tables import read_rows
from bestepoch.runs.timing import SectionTimer
from bestepoch.splitting.ensure import ensure_split
from bestepoch.sweeps.jobs import JobRecord, job_id, planned_jobs
from bestepoch.sweeps.sweep import Sweep
from bestepoch.tracking.client import RunTracking, ensure_worker
from bestepoch.training.session import Session, train

log = logging.getLogger("bestepoch")


def run_job(sweep: Sweep, config: Config) -> float:
    """Train one job below the sweep's folder; return its best selection metric, or NaN where it failed."""
    if sweep.should_stop():
        return math.nan
    overrides = job_overrides()
    with _record_job(sweep, overrides) as (folder, record):
        timer = SectionTimer()
        ensure_worker(config.tracking)
        session = Session(
            overrides,
            folder,
            sweep.parent,
            timer=timer,
            track=functools.partial(RunTracking, config.tracking, selection=config.selection),
            summarize=functools.partial(summarize_run, config.selection),
        )
        run = train(config, ensure_split(config), session)
        run.close()
        record.update(_job_result(sweep, run))
    return float(record.get("metric", math.nan))


@contextlib.contextmanager
def _record_job(sweep: Sweep, overrides: list[str]) -> Iterator[tuple[Path, JobRecord]]:
    """Yield the folder for the job's run and the job's record; write the record before and after.

    An error ends here, in the record and in a file with the traceback, so that the other jobs go on.
    """
    key = job_id(overrides)
    planned = sweep.jobs.planned.get(key) or planned_jobs([overrides], sweep.overrides)[key]
    record = {**planned, "status": "running", "host": socket.gethostname(), "process": os.getpid()}
    name = str(record["name"])
    sweep.jobs.write(key, record)
    is_child = os.getppid() == sweep.process and sweep.jobs.host == socket.gethostname()
    if is_child:
        stop_when_exits(sweep.process)  # a killed process leaves its children running
    level = log.level
    log.setLevel(logging.WARNING)  # the process that started the sweep prints one line for the job
    try:
        yield sweep.folder / name, record
        record["status"] = "finished"
    except (SystemExit, KeyboardInterrupt):
        record["status"] = "killed"
        raise
    except Exception as error:
        prefix = "" if isinstance(error, UsageError) else f"{type(error).__name__}: "
        # beside the run's folder, which may not exist yet
        path = sweep.folder / f"{name}.error.log"
        record.update(status="failed", error=prefix + first_line(error), traceback=display_path(path))
        path.write_text(traceback.format_exc(), encoding="utf-8")
    finally:
        log.setLevel(level)
        sweep.jobs.write(key, record)
        if is_child and os.getppid() != sweep.process:
            os._exit(1)  # an orphaned worker of joblib would take its next job, or wait for one without end


def _job_result(sweep: Sweep, run: Run) -> dict[str, Any]:
    """Return what the table shows of a job that trained to its end."""
    metric = sweep.selection.metric
    epochs = read_rows(run.folder / "epochs.csv")
    best = best_epoch(epochs, metric, sweep.selection.mode)
    return {
        "best_epoch": int(best["epoch"]),
        "metric": best[metric],
        "accuracy": best["val/accuracy"],
        "updates": int(epochs[-1]["iteration"]),
        "seconds": round(sum(row["seconds"] for row in epochs), 1),
        "run": display_path(run.folder),
        "before": run.info["ended"] < sweep.began,
    }
