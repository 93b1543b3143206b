"""Brings the journal to one tracker, on a thread of its own: a tracker that hangs holds up nobody but itself."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from pathlib import Path
from typing import Any

from bestepoch import project
from bestepoch.journal import Tail
from bestepoch.run import Run
from bestepoch.schema import Tracking
from bestepoch.tracking import MlflowTracker, TensorBoardTracker, Tracker

log = logging.getLogger("bestepoch")

EVERY_SECONDS = 2.0
LONGEST_PAUSE = 30.0
CHUNK = 5000  # rows held in memory at once, however far behind a tracker is


class Place:
    """How far one tracker has come with one run, kept in ``state/<tracker>.json`` between attempts."""

    def __init__(self, folder: Path, tracker: Tracker) -> None:
        self.path = folder / "state" / f"{tracker.name.lower()}.json"
        self.values: dict[str, Any] = {}
        with contextlib.suppress(project.UsageError):
            self.values = project.read_json(self.path, "")
        tracker.place = self.values

    def save(self) -> None:
        """Put it on the disk."""
        project.write_json(self.path, self.values)


def catch_up(tracker: Tracker, folder: Path, place: dict[str, Any]) -> bool:
    """Deliver what the journal in ``folder`` holds beyond ``place``, which moves on; whether there was anything.

    Raises:
        Exception: whatever the tracker raised; ``place`` is then where the tracker's last success left it.
    """
    tracker.open()
    delivered = False
    while True:
        iterations = Tail(folder / "iterations.csv", place.get("iterations", 0))
        epochs = Tail(folder / "epochs.csv", place.get("epochs", 0))
        rows = iterations.read(CHUNK), epochs.read(CHUNK)
        if not any(rows):
            return delivered
        tracker.write(*rows)
        place.update(iterations=iterations.offset, epochs=epochs.offset)
        delivered = True


class Delivery:
    """A tracker's thread: reads the journal every few seconds, tries again after a failure, ends when all is there."""

    def __init__(self, tracker: Tracker, folder: Path) -> None:
        self.tracker, self.folder = tracker, folder
        self.place = Place(folder, tracker)
        self._closing = threading.Event()
        self._status = "failed"
        self._complete = False
        self._thread = threading.Thread(target=self._deliver, name=tracker.name, daemon=True)

    def start(self) -> None:
        """Begin; the tracker is first met on its own thread."""
        self._thread.start()

    def finish(self, status: str) -> None:
        """Ask for the rest to be delivered and the tracker's run to be ended with ``status``."""
        self._status = status
        self._closing.set()

    def complete(self, wait: float) -> bool:
        """Whether that is done, or is within ``wait`` seconds."""
        self._thread.join(wait)
        return self._complete

    def _deliver(self) -> None:
        pause, warned = EVERY_SECONDS, False
        while True:
            closing = self._closing.wait(pause)
            try:
                if catch_up(self.tracker, self.folder, self.place.values):
                    self.place.save()
                if closing:
                    self.tracker.close(self._status)
                    self.place.save()
                    self._complete = True
                    return
                pause, warned = EVERY_SECONDS, False
            except Exception as error:
                if not warned:
                    log.warning(
                        "warning: %s does not take the run's data (%s). Training goes on, the journal keeps everything "
                        "and it is tried again.",
                        self.tracker.name,
                        project.first_line(error),
                    )
                warned = True
                if closing:
                    pause = 1.0  # until the one who closes has waited long enough
                    time.sleep(pause)
                else:
                    pause = min(pause * 2, LONGEST_PAUSE)


class Deliveries:
    """All trackers of one run."""

    def __init__(self, settings: Tracking, run: Run, parent: str | None = None) -> None:
        self.settings, self.run = settings, run
        trackers: list[Tracker] = []
        if settings.mlflow:
            trackers.append(MlflowTracker(run, settings.experiment, parent))
        if settings.tensorboard:
            trackers.append(TensorBoardTracker(run))
        self.all = [Delivery(tracker, run.folder) for tracker in trackers]
        for delivery in self.all:
            delivery.tracker.load()  # before training: an import beside it would take the interpreter from it
            delivery.start()

    def close(self, status: str) -> None:
        """Deliver the rest, end each tracker's run, and say which could not take everything in time."""
        until = time.monotonic() + self.settings.drain_seconds
        for delivery in self.all:
            delivery.finish(status)  # all of them at once: one that hangs takes no time from the others
        for delivery in self.all:
            if not delivery.complete(max(until - time.monotonic(), 0.1)):
                log.warning(
                    "warning: %s has not taken everything. When it answers again: python -m bestepoch.sync run=%s",
                    delivery.tracker.name,
                    project.relative(self.run.folder),
                )
            elif delivery.tracker.name == MlflowTracker.name:
                self.run.update(mlflow={key: delivery.place.values[key] for key in ("uri", "run_id")})
