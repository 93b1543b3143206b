"""The journal, delivered to TensorBoard."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

from bestepoch.journal import Row
from bestepoch.run import Run
from bestepoch.tracking import PER_EPOCH, PER_ITERATION

EVALUATION = ".evaluate"  # how the name of its event file ends


class TensorBoardTracker:
    """Event files in the run's folder, so that TensorBoard shows the run under the same name as MLflow."""

    name = "TensorBoard"

    def __init__(self, run: Run) -> None:
        self.folder = run.folder
        self.place: dict[str, Any] = {}
        self._file: EventFile | None = None
        self._last: dict[str, int] | None = None

    @staticmethod
    def load() -> None:
        """See `Tracker`."""
        import tensorboard.backend.event_processing.event_file_loader
        import tensorboard.summary.writer.record_writer  # noqa: F401

    def open(self) -> None:
        """Look how far the event files of earlier attempts go."""
        if self._last is not None:
            return
        if "last" in self.place and self.place.get("files") == self._sizes():
            self._last = dict(self.place["last"])
            return
        self._last = last_steps(self._files())
        if self.place.get("last") != self._last:
            self.place.clear()  # files were deleted, or hold more than was noted: all is looked at again

    def write(self, iterations: list[Row], epochs: list[Row]) -> None:
        """One event a row, in a file of this attempt's own; a row that a file holds already is left out."""
        assert self._last is not None
        events = []
        for rows, keys, axis in ((iterations, PER_ITERATION, "iteration"), (epochs, PER_EPOCH, "epoch")):
            new = [row for row in rows if row[axis] > self._last[axis]]
            events += [scalars({key: row[key] for key in keys}, int(row[axis]), row["time"]) for row in new]
        if events and self._file is None:
            self._file = EventFile(self.folder, f".{len(self._files())}")
        last = {"iteration": iterations, "epoch": epochs}
        try:
            if self._file is not None:
                self._file.write(events)
        except OSError:
            # what came behind a torn record would not be read: look how far it goes, and begin another file
            self._file, self._last = None, None
            raise
        self._last = {k: max([self._last[k], *(int(row[k]) for row in rows[-1:])]) for k, rows in last.items()}
        self.place.update(last=dict(self._last), files=self._sizes())

    def _files(self) -> list[Path]:
        return [path for path in self.folder.glob("events.out.tfevents.*") if path.suffix != EVALUATION]

    def _sizes(self) -> dict[str, int]:
        return {path.name: path.stat().st_size for path in sorted(self._files())}

    def close(self, status: str) -> None:
        """Nothing is left to write."""
        if self._file is not None:
            self._file.close()
            self._file = None


class EventFile:
    """A TensorBoard event file, written many events at a time: its own writer wakes a thread for each."""

    def __init__(self, folder: Path, suffix: str) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}{suffix}"
        self._file = (folder / name).open("wb")
        self._records = RecordWriter(self._file)
        self.write([Event(wall_time=time.time(), file_version="brain.Event:2")])

    def write(self, events: list[Any]) -> None:
        """All of them are in the file when this returns. Raises OSError; the file then ends in a torn record."""
        for event in events:
            self._records.write(event.SerializeToString())
        self._file.flush()

    def close(self) -> None:
        """Nothing more is written to it."""
        self._file.close()


def last_steps(files: list[Path]) -> dict[str, int]:
    """The last iteration and the last epoch in a run's event files."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    last = {"iteration": 0, "epoch": 0}
    for path in files:
        for event in LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                axis = "iteration" if value.tag in PER_ITERATION else "epoch" if value.tag in PER_EPOCH else None
                if axis:
                    last[axis] = max(last[axis], event.step)
    return last


def scalars(values: dict[str, float], step: int, when: float) -> Any:
    """Several scalars of one step as one TensorBoard event."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    value = Summary.Value
    return Event(
        wall_time=when,
        step=step,
        summary=Summary(value=[value(tag=tag, simple_value=number) for tag, number in values.items()]),
    )


def show_evaluation(folder: Path, metrics: dict[str, float]) -> None:
    """Add an evaluation to a run's event files, in place of an earlier one."""
    for old in folder.glob(f"events.out.tfevents.*{EVALUATION}"):
        old.unlink()
    file = EventFile(folder, EVALUATION)
    file.write([scalars(metrics, 0, time.time())])
    file.close()
