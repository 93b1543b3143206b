"""The trainer's handle on `bestepoch.tracking.worker`, the process that delivers its journal to the trackers."""

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
from bestepoch.base.config.schema import SelectionConfig, TrackingConfig
from bestepoch.runs.run import Run

log = logging.getLogger("bestepoch")

MAX_RESTARTS = 3  # of a worker that dies; afterwards `sync` delivers the remaining rows


class TrackingWorker:
    """The worker process, shared by all runs that this process trains in turn so that its imports are paid for once."""

    def __init__(self, trackers: list[str]) -> None:
        self.trackers, self.context = trackers, _inherited_context()
        self._requests: dict[str, list[dict[str, Any]]] = {}  # of each open run, to repeat to a new worker
        self._cursors: dict[str, dict[str, Any]] = {}  # final cursor by run and tracker
        self._changed = threading.Condition(threading.RLock())
        self._restarts = MAX_RESTARTS
        self._given_up = False  # no restart is left and the last output has been read
        self._start()

    def open(self, run: Path, **request: Any) -> None:
        """Start delivering the journal in the folder ``run``."""
        with self._changed:
            self._requests[str(run)], self._cursors[str(run)] = [], {}
            self._send_request(str(run), request)
            if self._process.poll() is not None:  # the worker died while no run was open
                self._start_again()

    def close(self, run: Path, wait: float, status: str, **info: Any) -> dict[str, Any]:
        """Deliver the remaining rows and end the run.

        Returns:
            The final cursors, by name, of the trackers that stored all rows within ``wait`` seconds.
        """

        def is_done() -> bool:
            return self._given_up or len(self._cursors[str(run)]) == len(self.trackers)

        with self._changed:
            self._send_request(str(run), {"finish": status, **info})
            self._changed.wait_for(is_done, max(wait, 0.1))
            del self._requests[str(run)]
            return self._cursors.pop(str(run))

    def leave(self) -> None:
        """Close the worker's stdin: the worker exits at once unless a run is open."""
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
            encoding="utf-8",
            errors="replace",  # of what a library prints
            # Keep Ctrl-C away from the worker: training handles the signal and reports how the run ended.
            start_new_session=True,
        )
        threading.Thread(target=self._listen, args=(self._process,), name="tracking worker", daemon=True).start()

    def _send_request(self, run: str, request: dict[str, Any]) -> None:
        self._requests[run].append({"run": run, **request})
        self._write_request(self._requests[run][-1])

    def _write_request(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # the worker died: its successor gets the request again
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            try:
                message = json.loads(line)
            except ValueError:
                sys.stderr.write(line)  # output of a library
                continue
            if "done" not in message:
                log.log(message["level"], "%s", message["message"])
                continue
            with self._changed:
                if message["run"] in self._cursors:
                    self._cursors[message["run"]][message["done"]] = message["cursor"]
                self._changed.notify_all()
        process.wait()
        with self._changed:
            if self._requests and process is self._process:
                self._start_again()

    def _start_again(self) -> None:
        """Replace a dead worker, and repeat the requests of all open runs to the new one."""
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
    """Return the worker for ``config``, started if necessary; None if no tracker is enabled.

    Call this before importing PyTorch: the worker then imports its own libraries meanwhile on another core.
    """
    global _worker
    trackers = [name for name, enabled in (("MLflow", config.mlflow), ("TensorBoard", config.tensorboard)) if enabled]
    if _worker is not None and (_worker.trackers, _worker.context) != (trackers, _inherited_context()):
        _worker.leave()
        _worker = None
    if _worker is None and trackers:
        _worker = TrackingWorker(trackers)
        atexit.register(_worker.leave)
    return _worker


def _inherited_context() -> tuple[str, dict[str, str]]:
    """Return the inherited state that selects the store: working directory and MLflow's environment variables."""
    return str(Path.cwd()), {key: value for key, value in os.environ.items() if key.startswith("MLFLOW_")}


class RunTracking:
    """All trackers of one run, from its start to `close`."""

    def __init__(self, config: TrackingConfig, run: Run, selection: SelectionConfig | None = None) -> None:
        self.config, self.run = config, run
        self.worker = ensure_worker(config)
        if self.worker is not None:
            # in run.json, where the worker reads them without importing PyTorch
            chosen = {} if selection is None else {"selection": selection.model_dump()}
            run.update(**chosen)
            self.worker.open(
                run.folder,
                experiment=config.experiment,
                patience=config.drain_seconds,
                system_metrics=config.system_metrics,
            )

    def close(self, status: str) -> dict[str, Any]:
        """Deliver the remaining rows, end the run, and warn about each tracker that did not store all rows in time.

        Returns:
            What ``run.json`` says of the trackers.
        """
        if self.worker is None:
            return {}
        keys = ("ended", "reason", "best", "verdict", "stopped", "time_by_section", "peak_memory")
        info = {key: self.run.info[key] for key in keys if key in self.run.info} | {"finish_requested_at": time.time()}
        cursors = self.worker.close(self.run.folder, self.config.drain_seconds, status, **info)
        for name in self.worker.trackers:
            if name not in cursors:
                log.warning(
                    "warning: %s has not taken everything. When it answers again: python -m bestepoch.sync run=%s",
                    name,
                    paths.display_path(self.run.folder),
                )
        if "MLflow" not in cursors:
            return {}
        return {"mlflow": {key: cursors["MLflow"][key] for key in ("uri", "run_id")}}
