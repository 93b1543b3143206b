"""Show the progress of a sweep: one status line per running job and one permanent line per ended job."""

from __future__ import annotations

import contextlib
import math
import threading

from bestepoch.base import errors
from bestepoch.base.config.schema import SelectionConfig
from bestepoch.cli.console import StatusLines
from bestepoch.evaluation.selection import best_epoch
from bestepoch.runs.tables import read_rows
from bestepoch.sweeps import leaderboard
from bestepoch.sweeps.jobs import JobRecord, JobRecords

EVERY_SECONDS = 0.5


def show_progress(jobs: JobRecords, selection: SelectionConfig, ended: threading.Event) -> None:
    """Show the jobs' progress until the event ``ended`` is set.

    Status lines of running jobs appear only on a terminal; lines of ended jobs are always printed.
    """
    reported: set[str] = set()
    best = math.inf
    sign = 1 if selection.mode == "min" else -1
    with StatusLines() as board:
        last = False
        while not last:
            last = ended.wait(EVERY_SECONDS)
            running, lines = [], []
            records = jobs.read_all()
            for i, record in enumerate(records, 1):
                prefix = f"{i:>{len(str(len(records)))}}/{len(records)}  "
                if record["status"] == "running":
                    running.append(prefix + _describe_running(jobs, record, selection))
                # A killed job is not reported, because a cluster may requeue it.
                elif record["status"] in ("finished", "failed") and record["overrides"] not in reported:
                    reported.add(record["overrides"])
                    leads = record["status"] == "finished" and sign * record["metric"] < best
                    best = sign * record["metric"] if leads else best
                    text = leaderboard.format_job(record, selection.metric)
                    lines.append(prefix + text + ("  (leads)" if leads else ""))
            board.show([] if last else running)  # before printing, so that no job appears twice
            for line in lines:
                board.line(line)


def _describe_running(jobs: JobRecords, record: JobRecord, selection: SelectionConfig) -> str:
    table = jobs.folder / record["name"] / "epochs.csv"
    epochs = read_rows(table) if table.is_file() else []
    if not epochs:
        return f"running   {record['name']}"
    with contextlib.suppress(errors.UsageError):  # raised while no epoch has a finite value
        best = best_epoch(epochs, selection.metric, selection.mode)
        value = f"{selection.metric} {best[selection.metric]:.5g} at epoch {best['epoch']:.0f}"
        return f"running   {record['name']}  {value} of {len(epochs)} so far"
    return f"running   {record['name']}  {len(epochs)} epochs"
