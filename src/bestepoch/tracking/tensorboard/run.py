"""Deliver a run's journal to TensorBoard."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bestepoch.base import errors, files
from bestepoch.base.config.overrides import flatten
from bestepoch.runs.run import Run
from bestepoch.runs.tables import Row
from bestepoch.tracking.base import EPOCH_METRICS, ITERATION_METRICS
from bestepoch.tracking.run_summary import describe_run
from bestepoch.tracking.tensorboard.events import (
    CONFIG_TAG,
    EventFile,
    config_table,
    hparams_event,
    hparams_session_end,
    layout_event,
    read_last_steps,
    scalars_event,
    text_event,
)

EVALUATION_SUFFIX = ".evaluate"  # of the evaluation's event file


class TensorBoardTracker:
    """Write event files into the run's folder, so that TensorBoard and MLflow show the run under the same name."""

    name = "TensorBoard"

    def __init__(self, run: Run) -> None:
        self.run, self.folder = run, run.folder
        self.cursor: dict[str, Any] = {}
        self._file: EventFile | None = None
        self._last: dict[str, int] | None = None

    @staticmethod
    def load() -> None:
        """Import TensorBoard's reader and writer of event files."""
        import tensorboard.summary.writer.record_writer  # noqa: F401

    def open(self) -> None:
        """Find the last steps in the event files of earlier attempts; write the configuration if they lack it."""
        if self._last is not None:
            return
        if "last" in self.cursor and self.cursor.get("files") == self._sizes():
            self._last = dict(self.cursor["last"])
            return
        self._last = read_last_steps(self._files())
        if self.cursor.get("last") != self._last:
            self.cursor.clear()  # the event files are not those of the cursor: compare every row again
        if not self._last.get("configuration"):
            config = flatten(self.run.info["config"])
            table = text_event(CONFIG_TAG, config_table(config))
            self._append([hparams_event(self.run, config), table, layout_event()])
            self._update_cursor(configuration=1)

    def write(self, iterations: list[Row], epochs: list[Row]) -> None:
        """Write one event per row into this attempt's file, except for rows that an event file holds already."""
        assert self._last is not None
        events = []
        for rows, keys, axis in ((iterations, ITERATION_METRICS, "iteration"), (epochs, EPOCH_METRICS, "epoch")):
            new = [row for row in rows if row[axis] > self._last[axis]]
            events += [
                scalars_event({key: row[key] for key in keys if key in row}, int(row[axis]), row["time"]) for row in new
            ]
        self._append(events)
        tables = {"iteration": iterations, "epoch": epochs}
        self._update_cursor(
            **{axis: max([self._last[axis], *(int(row[axis]) for row in rows[-1:])]) for axis, rows in tables.items()}
        )

    def _update_cursor(self, **last: int) -> None:
        assert self._last is not None
        self._last.update(last)
        self.cursor.update(last=dict(self._last), files=self._sizes())

    def _append(self, events: list[Any]) -> None:
        if events and self._file is None:
            self._file = EventFile(self.folder, f".{len(self._files())}")
        try:
            if self._file is not None:
                self._file.write(events)
        except OSError:
            # TensorBoard reads nothing after a torn record: read the last steps again and start another file.
            self._file, self._last = None, None
            raise

    def _files(self) -> list[Path]:
        return [path for path in self.folder.glob("events.out.tfevents.*") if path.suffix != EVALUATION_SUFFIX]

    def _sizes(self) -> dict[str, int]:
        return {path.name: path.stat().st_size for path in sorted(self._files())}

    def close(self, status: str) -> None:
        """Write the run's summary, once for each time the run ends."""
        ended = self.run.info.get("ended")
        if self.cursor.get("ended") != ended:
            events, best = [text_event("run/summary", describe_run(self.run.info))], {}
            if status == "finished":
                when = ended or time.time()
                # the hparams tab lists a run's results beside its settings, evaluated or not
                best = {key: value for key, value in self.run.info.get("best", {}).items() if key != "time"}
                events += [scalars_event(best, 0, when), hparams_session_end(when)]
            self._append(events)
            self.cursor.update(ended=ended, best=best, files=self._sizes())
        if self._file is not None:
            self._file.close()
            self._file = None


def write_evaluation(folder: Path, metrics: dict[str, float], summary: str, events: Iterable[Any]) -> None:
    """Add an evaluation to a run's event files, in place of an earlier one, which stays where this one fails.

    Args:
        folder: folder of the run.
        metrics: scalars by tag.
        summary: Markdown for the text tab.
        events: further TensorBoard events.

    Raises:
        OSError: the disk is full or the folder is read-only.
    """
    earlier = list(folder.glob(f"events.out.tfevents.*{EVALUATION_SUFFIX}"))
    known: dict[str, float] = {}  # the best epoch of the end of training; the event files hold it already
    with contextlib.suppress(errors.UsageError):
        known = files.read_json(folder / "state/tensorboard.json", "").get("best", {})
    metrics = {key: value for key, value in metrics.items() if known.get(key) != value}
    file = EventFile(folder, EVALUATION_SUFFIX)
    try:
        file.write([scalars_event(metrics, 0, time.time()), text_event("run/evaluation", summary), *events])
        file.close()
    except BaseException:
        with contextlib.suppress(OSError):  # TensorBoard reads nothing after a torn record
            file.path.unlink()
        raise
    for path in earlier:
        if path != file.path:
            path.unlink()
