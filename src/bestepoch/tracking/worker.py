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

from bestepoch.base import errors, files, paths
from bestepoch.base.errors import redact_credentials
from bestepoch.runs.run import Run, sweep_lock
from bestepoch.tracking.base import Tracker, failure_reason
from bestepoch.tracking.cursor import DeliveryCursor, deliver_pending, delivery_lock
from bestepoch.tracking.mlflow.run import MlflowTracker
from bestepoch.tracking.mlflow.store import store_uri
from bestepoch.tracking.mlflow.sweep import end_stale_sweep
from bestepoch.tracking.tensorboard.run import TensorBoardTracker

log = logging.getLogger("bestepoch")

DELIVERY_INTERVAL_S = 2.0
MAX_RETRY_PAUSE_S = 30.0
# How far it stands back: training may use every core, and each of its threads waits for the slowest one. What it does
# not come to meanwhile is done when training has ended and the cores are free.
NICENESS = 10


_down: set[str] = set()  # trackers that failed last; shared by all runs, since an outage is one for all of them


class TrackerThread:
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
        cursor = DeliveryCursor(self.folder, self.tracker)  # read now: who delivered before may just have moved it
        pause = 0.0
        while True:
            closing = self._closing.wait(pause)
            try:
                if deliver_pending(self.tracker, self.folder, cursor.values):
                    cursor.save()
                if closing:
                    self.tracker.close(self._status)
                    _down.discard(self.tracker.name)
                    cursor.values["status"] = self._status
                    cursor.save()
                    send_message(done=self.tracker.name, run=str(self.folder), cursor=cursor.values)
                    return
                pause = DELIVERY_INTERVAL_S
                _down.discard(self.tracker.name)
            except Exception as error:
                if self.tracker.name not in _down:
                    _down.add(self.tracker.name)
                    log.warning(
                        "warning: %s does not take the run's data (%s). Training goes on, the journal keeps everything "
                        "and it is tried again.",
                        self.tracker.name,
                        failure_reason(error),
                    )
                if closing:
                    time.sleep(1.0)  # until the one who closes has waited long enough
                else:
                    pause = min(max(pause, DELIVERY_INTERVAL_S) * 2, MAX_RETRY_PAUSE_S)


class RunDelivery:
    """All trackers of one run."""

    def __init__(self, folder: Path, trackers: list[str], experiment: str, system_metrics: bool = False) -> None:
        self.run = Run.read(folder)
        self.asked = False  # to finish
        wanted = [make_tracker(name, self.run, experiment, system_metrics) for name in trackers]
        self.all = [TrackerThread(tracker, folder) for tracker in wanted]
        self._thread = threading.Thread(target=self._carry, name=self.run.name, daemon=True)
        self._thread.start()

    def _carry(self) -> None:
        # the process of an earlier attempt, which was killed, may still be bringing that one's rest
        with delivery_lock(self.run.folder):
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


def make_tracker(name: str, run: Run, experiment: str, system_metrics: bool = False) -> Tracker:
    """A tracker by its name."""
    return MlflowTracker(run, experiment, system_metrics) if name == MlflowTracker.name else TensorBoardTracker(run)


def send_message(**message: Any) -> None:
    """One line to the training process, if it is still there."""
    with contextlib.suppress(OSError):
        os.write(sys.__stdout__.fileno(), json.dumps(message).encode() + b"\n")  # type: ignore[union-attr]


class ForwardToParentHandler(logging.Handler):
    """Log messages appear where the training process shows its own."""

    def emit(self, record: logging.LogRecord) -> None:
        send_message(level=record.levelno, message=record.getMessage())


def stale_runs() -> Iterator[Run]:
    """Runs that ended, or were killed on this machine, and that their MLflow store still has as running."""
    uri, host = redact_credentials(store_uri()), socket.gethostname()
    runs = paths.main_checkout() / "runs"
    for path in sorted([*runs.glob("*/run.json"), *runs.glob("sweeps/*/*/run.json")]):
        with contextlib.suppress(errors.UsageError, OSError, LookupError):
            run = Run.read(path.parent)
            cursor = files.read_json(run.folder / "state" / "mlflow.json", "")
            alive = run.info["environment"]["host"] != host or cursor["uri"] != uri
            if alive or cursor.get("status") == run.status or not run.lock():
                continue
            try:
                if run.status == "running":
                    run.update(status="killed")
            finally:
                run.close()
            yield run


def end_stale_sweeps() -> None:
    """The same for the parent runs of sweeps."""
    uri, host = redact_credentials(store_uri()), socket.gethostname()
    for note in sorted((paths.main_checkout() / "runs/sweeps").glob("*/parent.json")):
        with contextlib.suppress(Exception):  # another time, then
            known = files.read_json(note, "")
            if (known["uri"], known["host"], known["status"]) == (uri, host, "running"):
                with sweep_lock(note.parent).acquire(timeout=0):  # free: its process is gone
                    end_stale_sweep(note)


def main(wanted: list[str]) -> None:
    """Serve one training process: its requests come on standard input, whose end is its death or farewell."""
    log.addHandler(ForwardToParentHandler())
    log.setLevel(logging.INFO)
    log.propagate = False
    gc.disable()  # hundreds of thousands of objects of the imports, not to be looked through again and again
    for name in wanted:
        (MlflowTracker if name == MlflowTracker.name else TensorBoardTracker).load()
    gc.freeze()
    gc.enable()
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    shipments: dict[str, RunDelivery] = {}
    left: list[RunDelivery] = []
    patience = 0.0
    for line in sys.stdin:
        request = json.loads(line)
        folder, finish = request.pop("run"), request.pop("finish", None)
        if finish is not None:
            shipments[folder].finish(finish, **request)
            continue
        patience = request["patience"]
        first = not shipments
        shipments[folder] = RunDelivery(Path(folder), wanted, request["experiment"], request["system_metrics"])
        if first and MlflowTracker.name in wanted:
            for run in stale_runs():
                left.append(RunDelivery(run.folder, [MlflowTracker.name], request["experiment"]))
                left[-1].finish(run.status)
            threading.Thread(target=end_stale_sweeps, name="sweeps", daemon=True).start()
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
