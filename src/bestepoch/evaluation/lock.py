"""The lock of a run's evaluation."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from filelock import FileLock, Timeout

from bestepoch.base.paths import display_path, main_checkout
from bestepoch.runs.run import Run

log = logging.getLogger("bestepoch")


@contextlib.contextmanager
def evaluation_lock(run: Run) -> Iterator[None]:
    """Context manager that keeps other processes from evaluating the run; wait for one that does.

    Where no lock can be written, as on a full disk, nobody else can take it either, and the evaluation goes on.
    """
    runs = main_checkout() / "runs"
    lock = FileLock(runs / f".evaluate-{run.info['uuid'][:16]}.lock")
    with contextlib.suppress(OSError):
        runs.mkdir(exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.warning("another process is evaluating %s; waiting for it", display_path(run.folder))
            lock.acquire()
    try:
        yield
    finally:
        lock.release()
