"""What a person sees of a sweep's jobs while they run: a line for each, which stays when the job has ended."""

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
    """One line for each job until ``ended``: on a terminal while it runs, and everywhere when it has ended."""
    told: set[str] = set()
    best = math.inf
    sign = 1 if selection.mode == "min" else -1
    with StatusLines() as board:
        last = False
        while not last:
            last = ended.wait(EVERY_SECONDS)
            running, news = [], []
            notes = jobs.read_all()
            for number, note in enumerate(notes, 1):
                begin = f"{number:>{len(str(len(notes)))}}/{len(notes)}  "
                if note["status"] == "running":
                    running.append(begin + _describe_running(jobs, note, selection))
                # one that was killed may yet go on, where a cluster queues it again
                elif note["status"] in ("finished", "failed") and note["overrides"] not in told:
                    told.add(note["overrides"])
                    leads = note["status"] == "finished" and sign * note["metric"] < best
                    best = sign * note["metric"] if leads else best
                    news.append(begin + leaderboard.format_job(note, selection.metric) + ("  (leads)" if leads else ""))
            board.show([] if last else running)  # first: no job shall stand there twice
            for text in news:
                board.line(text)


def _describe_running(jobs: JobRecords, note: JobRecord, selection: SelectionConfig) -> str:
    table = jobs.folder / note["name"] / "epochs.csv"
    epochs = read_rows(table) if table.is_file() else []
    if not epochs:
        return f"running   {note['name']}"
    with contextlib.suppress(errors.UsageError):  # no finite value yet
        best = best_epoch(epochs, selection.metric, selection.mode)
        value = f"{selection.metric} {best[selection.metric]:.5g} at epoch {best['epoch']:.0f}"
        return f"running   {note['name']}  {value} of {len(epochs)} so far"
    return f"running   {note['name']}  {len(epochs)} epochs"
