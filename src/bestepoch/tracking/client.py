"""The trainer's handle of the process that brings its journal to the trackers, `bestepoch.tracking.worker`."""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from bestepoch.base import paths
from bestepoch.base.config.schema import TrackingConfig
from bestepoch.runs.run import Run

log = logging.getLogger("bestepoch")

MAX_RESTARTS = 3  # of a courier that dies; what it then still has to bring is left to `sync`


class TrackingWorker:
    """The process: one for all runs that this process trains one after the other, so that it is paid for once."""

    def __init__(self, trackers: list[str]) -> None:
        self.trackers, self.context = trackers, _inherited_context()
        self._requests: dict[str, list[dict[str, Any]]] = {}  # of the runs that are not closed yet
        self._cursors: dict[str, dict[str, Any]] = {}  # what each tracker noted when it had everything, by run
        self._changed = threading.Condition(threading.RLock())
        self._restarts = MAX_RESTARTS
        self._given_up = False  # dead for good, and all that it had said has been heard
        self._start()

    def open(self, run: Path, **request: Any) -> None:
        """Have a run's journal delivered from now on."""
        with self._changed:
            self._requests[str(run)], self._cursors[str(run)] = [], {}
            self._send_request(str(run), request)
            if self._process.poll() is not None:  # it died while there was nothing to do
                self._start_again()

    def close(self, run: Path, wait: float, status: str, **info: Any) -> dict[str, Any]:
        """Have the rest delivered and the run ended; the places of the trackers that have it all in time."""

        def over() -> bool:
            return self._given_up or len(self._cursors[str(run)]) == len(self.trackers)

        with self._changed:
            self._send_request(str(run), {"finish": status, **info})
            self._changed.wait_for(over, max(wait, 0.1))
            del self._requests[str(run)]
            return self._cursors.pop(str(run))

    def leave(self) -> None:
        """The process ends by itself: at once, unless a run is open."""
        with self._changed, contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._requests.clear()
            self._process.stdin.close()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bestepoch.tracking.worker", *self.trackers],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # a session of its own: Ctrl-C is meant for training, which then says how the run ended
            start_new_session=True,
        )
        threading.Thread(target=self._listen, args=(self._process,), name="courier", daemon=True).start()

    def _send_request(self, run: str, request: dict[str, Any]) -> None:
        self._requests[run].append({"run": run, **request})
        self._write_request(self._requests[run][-1])

    def _write_request(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has died: the next one is told
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            try:
                message = json.loads(line)
            except ValueError:
                sys.stderr.write(line)  # a library has something to say
                continue
            if "done" not in message:
                log.log(message["level"], "%s", message["message"])
                continue
            with self._changed:
                if message["run"] in self._cursors:
                    self._cursors[message["run"]][message["done"]] = message["place"]
                self._changed.notify_all()
        process.wait()
        with self._changed:
            if self._requests and process is self._process:
                self._start_again()

    def _start_again(self) -> None:
        """After its death: another one, which is told everything that is still to do."""
        if not self._restarts:
            self._given_up = True
            self._changed.notify_all()
            return
        self._restarts -= 1
        self._start()
        for request in [r for requests in self._requests.values() for r in requests]:
            self._write_request(request)


_worker: TrackingWorker | None = None


def ensure_worker(config: TrackingConfig) -> TrackingWorker | None:
    """The process for these settings, started where there is none; None where nothing is tracked.

    Called before the imports that training needs, it makes its own beside them, on another core.
    """
    global _worker
    trackers = [name for name, wanted in (("MLflow", config.mlflow), ("TensorBoard", config.tensorboard)) if wanted]
    if _worker is not None and (_worker.trackers, _worker.context) != (trackers, _inherited_context()):
        _worker.leave()
        _worker = None
    if _worker is None and trackers:
        _worker = TrackingWorker(trackers)
        atexit.register(_worker.leave)
    return _worker


def _inherited_context() -> tuple[str, dict[str, str]]:
    """What a process inherits that decides where it delivers to."""
    return str(Path.cwd()), {key: value for key, value in os.environ.items() if key.startswith("MLFLOW_")}


class RunTracking:
    """All trackers of one run."""

    def __init__(self, config: TrackingConfig, run: Run) -> None:
        self.config, self.run = config, run
        self.worker = ensure_worker(config)
        if self.worker is not None:
            self.worker.open(
                run.folder,
                experiment=config.experiment,
                patience=config.drain_seconds,
                system_metrics=config.system_metrics,
            )

    def close(self, status: str) -> None:
        """Deliver the rest, end each tracker's run, and say which could not take everything in time."""
        if self.worker is None:
            return
        told = ("ended", "reason", "best", "verdict", "stopped", "spent", "peak_memory")
        info = {key: self.run.info[key] for key in told if key in self.run.info} | {"asked": time.time()}
        cursors = self.worker.close(self.run.folder, self.config.drain_seconds, status, **info)
        for name in self.worker.trackers:
            if name not in cursors:
                log.warning(
                    "warning: %s has not taken everything. When it answers again: python -m bestepoch.sync run=%s",
                    name,
                    paths.display_path(self.run.folder),
                )
        if "MLflow" in cursors:
            self.run.update(mlflow={key: cursors["MLflow"][key] for key in ("uri", "run_id")})
