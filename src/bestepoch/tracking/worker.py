"""Deliver journals to the trackers, in a process that `bestepoch.tracking.client` starts.

In a thread, MLflow would take the interpreter lock from the training loop hundreds of times a second. A process uses
an idle core instead, and survives a killed trainer: it then delivers the remaining rows and ends the run as killed.
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
# Training may use every core, and each of its threads waits for the slowest one: the worker yields to all of them.
NICENESS = 10

_unavailable: set[str] = set()  # trackers whose last attempt failed, over all runs: one warning per outage


class TrackerThread:
    """Deliver new journal rows to one tracker every few seconds, retry after a failure, and end with the run."""

    def __init__(self, tracker: Tracker, folder: Path) -> None:
        self.tracker, self.folder = tracker, folder
        self._closing = threading.Event()
        self._status = "killed"
        # daemon: a tracker that hangs must not keep the process alive
        self._thread = threading.Thread(target=self._deliver, name=tracker.name, daemon=True)

    def start(self) -> None:
        """Start the thread, which also makes the first call of the tracker."""
        self._thread.start()

    def finish(self, status: str) -> None:
        """Request delivery of the remaining rows, then the end of the tracker's run with ``status``."""
        self._status = status
        self._closing.set()

    def complete(self, wait: float | None = None) -> bool:
        """Wait up to ``wait`` seconds (None: without limit) and return whether the thread has ended."""
        self._thread.join(wait)
        return not self._thread.is_alive()

    def _deliver(self) -> None:
        cursor = DeliveryCursor(self.folder, self.tracker)  # read now: an earlier process may just have moved it
        pause = 0.0
        while True:
            closing = self._closing.wait(pause)
            try:
                if deliver_pending(self.tracker, self.folder, cursor.values):
                    cursor.save()
                if closing:
                    self.tracker.close(self._status)
                    _unavailable.discard(self.tracker.name)
                    cursor.values["status"] = self._status
                    cursor.save()
                    send_message(done=self.tracker.name, run=str(self.folder), cursor=cursor.values)
                    return
                pause = DELIVERY_INTERVAL_S
                _unavailable.discard(self.tracker.name)
            except Exception as error:
                if self.tracker.name not in _unavailable:
                    _unavailable.add(self.tracker.name)
                    log.warning(
                        "warning: %s does not take the run's data (%s). Training goes on, the journal keeps everything "
                        "and it is tried again.",
                        self.tracker.name,
                        failure_reason(error),
                    )
                if closing:
                    time.sleep(1.0)  # retry until the trainer stops waiting and the process exits
                else:
                    pause = min(max(pause, DELIVERY_INTERVAL_S) * 2, MAX_RETRY_PAUSE_S)


class RunDelivery:
    """Deliver one run to its trackers, one `TrackerThread` each."""

    def __init__(self, folder: Path, trackers: list[str], experiment: str, system_metrics: bool = False) -> None:
        self.run = Run.read(folder)
        self.finish_requested = False
        self.threads = [
            TrackerThread(make_tracker(name, self.run, experiment, system_metrics), folder) for name in trackers
        ]
        self._thread = threading.Thread(target=self._deliver, name=self.run.name, daemon=True)
        self._thread.start()

    def _deliver(self) -> None:
        # The worker of an earlier, killed attempt may still be delivering that attempt's rows.
        with delivery_lock(self.run.folder):
            for thread in self.threads:
                thread.start()
            for thread in self.threads:
                thread.complete()

    def finish(self, status: str, **info: Any) -> None:
        """Request delivery of the remaining rows and the end of the run; ``info`` holds the new fields of run.json."""
        self.run.info.update(status=status, **info)
        self.finish_requested = True
        for thread in self.threads:
            thread.finish(status)

    def complete(self, wait: float) -> bool:
        """Wait up to ``wait`` seconds and return whether every tracker has stored all rows."""
        self._thread.join(wait)
        return not self._thread.is_alive()


def make_tracker(name: str, run: Run, experiment: str, system_metrics: bool = False) -> Tracker:
    """Return the tracker called ``name`` for ``run``."""
    return MlflowTracker(run, experiment, system_metrics) if name == MlflowTracker.name else TensorBoardTracker(run)


def send_message(**message: Any) -> None:
    """Write one line of JSON to the trainer; do nothing if the trainer has exited."""
    with contextlib.suppress(OSError):
        os.write(sys.__stdout__.fileno(), json.dumps(message).encode() + b"\n")  # type: ignore[union-attr]


class ForwardToParentHandler(logging.Handler):
    """Forward log messages to the trainer, which prints them with its own."""

    def emit(self, record: logging.LogRecord) -> None:
        """Send the level and the message of ``record``."""
        send_message(level=record.levelno, message=record.getMessage())


def stale_runs() -> Iterator[Run]:
    """Yield runs of this machine whose end, possibly by a kill, the MLflow store does not have yet.

    The copy of a run is no run of its own in MLflow, and may be older than the run.
    """
    uri, host = redact_credentials(store_uri()), socket.gethostname()
    runs = paths.main_checkout() / "runs"
    for path in sorted([*runs.glob("*/run.json"), *runs.glob("sweeps/*/*/run.json")]):
        with contextlib.suppress(errors.UsageError, OSError, LookupError):
            run = Run.read(path.parent)
            cursor = files.read_json(run.folder / "state" / "mlflow.json", "")
            elsewhere = run.info["environment"]["host"] != host or cursor["uri"] != uri
            if run.original is not None or elsewhere or cursor.get("status") == run.status or not run.lock():
                continue
            try:
                if run.status == "running":
                    run.update(status="killed")
            finally:
                run.close()
            yield run


def end_stale_sweeps() -> None:
    """Mark the parent runs of this machine's killed sweeps as killed in the MLflow store."""
    uri, host = redact_credentials(store_uri()), socket.gethostname()
    for path in sorted((paths.main_checkout() / "runs/sweeps").glob("*/parent.json")):
        with contextlib.suppress(Exception):  # a later worker tries again
            parent = files.read_json(path, "")
            if (parent["uri"], parent["host"], parent["status"]) == (uri, host, "running"):
                with sweep_lock(path.parent).acquire(timeout=0):  # the lock is free: the sweep's process is gone
                    end_stale_sweep(path)


def main(trackers: list[str]) -> None:
    """Serve one trainer: read JSON requests from stdin until EOF (the trainer exited or left)."""
    log.addHandler(ForwardToParentHandler())
    log.setLevel(logging.INFO)
    log.propagate = False
    gc.disable()  # the imports create hundreds of thousands of objects, which the collector would scan repeatedly
    for name in trackers:
        (MlflowTracker if name == MlflowTracker.name else TensorBoardTracker).load()
    gc.freeze()
    gc.enable()
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    deliveries: dict[str, RunDelivery] = {}
    unfinished: list[RunDelivery] = []  # to complete after EOF
    patience = 0.0
    for line in sys.stdin:
        request = json.loads(line)
        folder, finish = request.pop("run"), request.pop("finish", None)
        if finish is not None:
            deliveries[folder].finish(finish, **request)
            continue
        patience = request["patience"]
        first = not deliveries
        deliveries[folder] = RunDelivery(Path(folder), trackers, request["experiment"], request["system_metrics"])
        if first and MlflowTracker.name in trackers:
            for run in stale_runs():
                unfinished.append(RunDelivery(run.folder, [MlflowTracker.name], request["experiment"]))
                unfinished[-1].finish(run.status)
            threading.Thread(target=end_stale_sweeps, name="sweeps", daemon=True).start()
    deadline = time.monotonic() + patience
    for delivery in deliveries.values():
        if not delivery.finish_requested:
            delivery.finish("killed", ended=time.time())
            unfinished.append(delivery)
    for delivery in unfinished:
        delivery.complete(max(deadline - time.monotonic(), 0.1))
    os._exit(0)  # do not wait for the trackers' own threads


if __name__ == "__main__":
    main(sys.argv[1:])
