"""A multirun: one parent run, one child a job, and a table of all of them at the end."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bestepoch import app, project
from bestepoch.journal import read, write_table
from bestepoch.run import Run, short, slug
from bestepoch.schema import Selection, Settings, Tracking
from bestepoch.selection import best_epoch

log = logging.getLogger("bestepoch")
COLUMNS = ["overrides", "status", "best_epoch", "metric", "seconds", "run", "error"]


@dataclass
class Sweep:
    """``folder`` is ``runs/sweeps/<name>``; the same overrides lead to the same folder, where finished jobs stay."""

    folder: Path
    overrides: list[str]
    selection: Selection
    tracking: Tracking
    parent: str | None

    @classmethod
    def start(cls, overrides: list[str], first: Settings) -> Sweep:
        """Make the folder and the parent run, before any job starts."""
        name = slug([short(line) for line in overrides])[:60].rstrip("-_.") + "-" + project.digest(overrides)[:6]
        folder = project.home() / "runs" / "sweeps" / name
        shutil.rmtree(folder / ".jobs", ignore_errors=True)
        (folder / ".jobs").mkdir(parents=True)
        parent = None
        if first.tracking.mlflow:
            from bestepoch.tracking import begin_sweep

            try:
                parent = begin_sweep(first.tracking.experiment, folder, overrides)
            except Exception as error:  # the jobs train all the same, each on its own in MLflow
                log.warning("warning: MLflow does not take the sweep's parent run (%s)", project.first_line(error))
        log.info("sweep    %s", project.relative(folder))
        return cls(folder, overrides, first.selection, first.tracking, parent)

    @contextlib.contextmanager
    def job(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Around one job: yields the folder for its run and its row of the table, and notes how it ended."""
        overrides = app.overrides()
        name = self._job_name(overrides)
        row: dict[str, Any] = {"overrides": " ".join(overrides), "status": "failed"}
        log.info("job      %s", row["overrides"])
        try:
            yield self.folder / name, row
            row["status"] = "finished"
        except SystemExit:
            row["status"] = "killed"
            raise
        except BaseException as error:
            row["error"] = project.first_line(error)
            # beside the folder, which belongs to the run and may not be there yet
            (self.folder / f"{name}.error.log").write_text(traceback.format_exc())
            raise
        finally:
            # by the overrides themselves: two of them may make the same name
            project.write_json(self.folder / ".jobs" / f"{project.digest(overrides)}.json", row)

    def outcome(self, run: Run) -> dict[str, Any]:
        """What the table says of a job that trained to its end."""
        epochs = read(run.folder / "epochs.csv")
        best = best_epoch(epochs, self.selection.metric, self.selection.mode)
        return {
            "best_epoch": int(best["epoch"]),
            "metric": best[self.selection.metric],
            "seconds": round(sum(row["seconds"] for row in epochs), 1),
            "run": project.relative(run.folder),
        }

    def _job_name(self, overrides: list[str]) -> str:
        """What varies in the sweep, since the rest is the same for all of its jobs."""
        return slug([short(line) for line in overrides if line not in self.overrides] or ["job"])

    def finish(self) -> None:
        """The table of all jobs, best first, on the terminal, in ``jobs.csv`` and in the parent run."""
        notes = [json.loads(path.read_text()) for path in sorted((self.folder / ".jobs").glob("*.json"))]
        metric = self.selection.metric
        sign = 1 if self.selection.mode == "min" else -1
        notes.sort(key=lambda n: (n["status"] != "finished", sign * n.get("metric", 0.0)))
        columns = [metric if c == "metric" else c for c in COLUMNS]
        try:
            with project.naming(self.folder / "jobs.csv"):
                write_table(self.folder / "jobs.csv", columns, [[note.get(c, "") for c in COLUMNS] for note in notes])
        except OSError as error:  # what it would have said is said below all the same
            log.warning("warning: %s", project.disk_error(error) or error)
        for note in notes:
            result = (
                f"best epoch {note['best_epoch']}  {metric} {note['metric']:.5g}  {note['seconds']} s"
                if note["status"] == "finished"
                else f"{note['status']}: {note.get('error', '')}"
            )
            log.info("%-60s %s", note["overrides"], result)
        log.info("table    %s", project.relative(self.folder / "jobs.csv"))
        self._study([Run.read(project.home() / note["run"]) for note in notes if note["status"] == "finished"])
        if self.parent is not None:
            from bestepoch.tracking import end_sweep

            good = bool(notes) and all(note["status"] == "finished" for note in notes)
            try:
                end_sweep(self.parent, self.folder, good)
            except Exception as error:
                log.warning("warning: MLflow does not take the sweep's table (%s)", project.first_line(error))

    def _study(self, runs: list[Run]) -> None:
        """Over seeds or folds, where there are any: how many epochs are enough."""
        from bestepoch import study

        if runs and len(study.group(runs)) < len(runs):
            study.conduct(runs, self.selection, self.tracking, self.folder / "study")
