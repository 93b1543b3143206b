"""Brings journals to the trackers. Run as a process of its own by `bestepoch.tracking.client`; nobody types it.

In a thread, MLflow would take the interpreter from the training loop hundreds of times a second. A process takes an
idle core instead, and outlives a training that is killed: it then delivers the rest and ends the run as killed.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from bestepoch.base import files
from bestepoch.base.files import public
from bestepoch.runs.journal import Tail
from bestepoch.runs.run import Run, sweep_lock
from bestepoch.tracking.mlflow.run import MlflowTracker
from bestepoch.tracking.mlflow.store import Tracker, reason, store_uri
from bestepoch.tracking.mlflow.sweep import end_dead_sweep
from bestepoch.tracking.tensorboard.run import TensorBoardTracker

log = logging.getLogger("bestepoch")

EVERY_SECONDS = 2.0
LONGEST_PAUSE = 30.0
# How far it stands back: training may use every core, and each of its threads waits for the slowest one. What it does
# not come to meanwhile is done when training has ended and the cores are free.
NICENESS = 10
CHUNK = 5000  # rows held in memory at once, however far behind a tracker is


class Place:
    """How far one tracker has come with one run, kept in ``state/<tracker>.json`` between attempts."""

    def __init__(self, folder: Path, tracker: Tracker) -> None:
        self.path = folder / "state" / f"{tracker.name.lower()}.json"
        self.values: dict[str, Any] = {}
        with contextlib.suppress(files.UsageError):
            self.values = files.read_json(self.path, "")
        tracker.place = self.values

    def save(self) -> None:
        """Put it on the disk."""
        files.write_json(self.path, self.values)


def deliveries_of(folder: Path) -> FileLock:
    """Held by the one process that delivers this run: two writers would double the points of event files."""
    return FileLock(folder / "state" / ".delivery.lock")


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


_down: set[str] = set()  # trackers that failed last; shared by all runs, since an outage is one for all of them


class Delivery:
    """A tracker's thread: reads the journal every few seconds, tries again after a failure, ends when all is there."""

    def __init__(self, tracker: Tracker, folder: Path) -> None:
        self.tracker, self.folder = tracker, folder
        self._closing = threading.Event()
        self._status = "killed"
        # daemon: a tracker that hangs holds up neither the other one nor the end of the process
        self._thread = threading.Thread(target=self._deliver, name=tracker.name, daemon=True)

    def start(self) -> None:
        """Begin; the tracker is first met on its own thread."""
        self._thread.start()

    def finish(self, status: str) -> None:
        """Ask for the rest to be delivered and the tracker's run to be ended with ``status``."""
        self._status = status
        self._closing.set()

    def complete(self, wait: float | None = None) -> bool:
        """Whether that is done, or is within ``wait`` seconds."""
        self._thread.join(wait)
        return not self._thread.is_alive()

    def _deliver(self) -> None:
        place = Place(self.folder, self.tracker)  # read now: who delivered before may just have moved it
        pause = 0.0
        while True:
            closing = self._closing.wait(pause)
            try:
                if catch_up(self.tracker, self.folder, place.values):
                    place.save()
                if closing:
                    self.tracker.close(self._status)
                    _down.discard(self.tracker.name)
                    place.values["status"] = self._status
                    place.save()
                    say(done=self.tracker.name, run=str(self.folder), place=place.values)
                    return
                pause = EVERY_SECONDS
                _down.discard(self.tracker.name)
            except Exception as error:
                if self.tracker.name not in _down:
                    _down.add(self.tracker.name)
                    log.warning(
                        "warning: %s does not take the run's data (%s). Training goes on, the journal keeps everything "
                        "and it is tried again.",
                        self.tracker.name,
                        reason(error),
                    )
                if closing:
                    time.sleep(1.0)  # until the one who closes has waited long enough
                else:
                    pause = min(max(pause, EVERY_SECONDS) * 2, LONGEST_PAUSE)


class Shipment:
    """All trackers of one run."""

    def __init__(self, folder: Path, trackers: list[str], experiment: str, system_metrics: bool = False) -> None:
        self.run = Run.read(folder)
        self.asked = False  # to finish
        wanted = [build(name, self.run, experiment, system_metrics) for name in trackers]
        self.all = [Delivery(tracker, folder) for tracker in wanted]
        self._thread = threading.Thread(target=self._carry, name=self.run.name, daemon=True)
        self._thread.start()

    def _carry(self) -> None:
        # the process of an earlier attempt, which was killed, may still be bringing that one's rest
        with deliveries_of(self.run.folder):
            for delivery in self.all:
                delivery.start()
            for delivery in self.all:
                delivery.complete()

    def finish(self, status: str, **info: Any) -> None:
        """Ask for the rest to be delivered and the run to be ended; ``info``: what run.json will say."""
        self.run.info.update(status=status, **info)
        self.asked = True
        for delivery in self.all:
            delivery.finish(status)

    def complete(self, wait: float) -> bool:
        """Whether everything is delivered, or is within ``wait`` seconds."""
        self._thread.join(wait)
        return not self._thread.is_alive()


def build(name: str, run: Run, experiment: str, system_metrics: bool = False) -> Tracker:
    """A tracker by its name."""
    return MlflowTracker(run, experiment, system_metrics) if name == MlflowTracker.name else TensorBoardTracker(run)


def say(**message: Any) -> None:
    """One line to the training process, if it is still there."""
    with contextlib.suppress(OSError):
        os.write(sys.__stdout__.fileno(), json.dumps(message).encode() + b"\n")  # type: ignore[union-attr]


class _Told(logging.Handler):
    """Log messages appear where the training process shows its own."""

    def emit(self, record: logging.LogRecord) -> None:
        say(level=record.levelno, message=record.getMessage())


def dead_runs() -> Iterator[Run]:
    """Runs that ended, or were killed on this machine, and that their MLflow store still has as running."""
    uri, host = public(store_uri()), socket.gethostname()
    runs = files.home() / "runs"
    for path in sorted([*runs.glob("*/run.json"), *runs.glob("sweeps/*/*/run.json")]):
        with contextlib.suppress(files.UsageError, OSError, LookupError):
            run = Run.read(path.parent)
            place = files.read_json(run.folder / "state" / "mlflow.json", "")
            alive = run.info["environment"]["host"] != host or place["uri"] != uri
            if alive or place.get("status") == run.status or not run.lock():
                continue
            try:
                if run.status == "running":
                    run.update(status="killed")
            finally:
                run.close()
            yield run


def end_dead_sweeps() -> None:
    """The same for the parent runs of sweeps."""
    uri, host = public(store_uri()), socket.gethostname()
    for note in sorted((files.home() / "runs/sweeps").glob("*/parent.json")):
        with contextlib.suppress(Exception):  # another time, then
            known = files.read_json(note, "")
            if (known["uri"], known["host"], known["status"]) == (uri, host, "running"):
                with sweep_lock(note.parent).acquire(timeout=0):  # free: its process is gone
                    end_dead_sweep(note)


def main(wanted: list[str]) -> None:
    """Serve one training process: its requests come on standard input, whose end is its death or farewell."""
    log.addHandler(_Told())
    log.setLevel(logging.INFO)
    log.propagate = False
    gc.disable()  # hundreds of thousands of objects of the imports, not to be looked through again and again
    for name in wanted:
        (MlflowTracker if name == MlflowTracker.name else TensorBoardTracker).load()
    gc.freeze()
    gc.enable()
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    shipments: dict[str, Shipment] = {}
    left: list[Shipment] = []
    patience = 0.0
    for line in sys.stdin:
        request = json.loads(line)
        folder, finish = request.pop("run"), request.pop("finish", None)
        if finish is not None:
            shipments[folder].finish(finish, **request)
            continue
        patience = request["patience"]
        first = not shipments
        shipments[folder] = Shipment(Path(folder), wanted, request["experiment"], request["system_metrics"])
        if first and MlflowTracker.name in wanted:
            for run in dead_runs():
                left.append(Shipment(run.folder, [MlflowTracker.name], request["experiment"]))
                left[-1].finish(run.status)
            threading.Thread(target=end_dead_sweeps, name="sweeps", daemon=True).start()
    until = time.monotonic() + patience
    for shipment in shipments.values():
        if not shipment.asked:
            shipment.finish("killed", ended=time.time())
            left.append(shipment)
    for shipment in left:
        shipment.complete(max(until - time.monotonic(), 0.1))
    os._exit(0)  # not waiting for threads that a tracker holds


if __name__ == "__main__":
    main(sys.argv[1:])
