"""SIGTERM and Ctrl-C as a wish that training meets at its next iteration."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from bestepoch import project

log = logging.getLogger("bestepoch")


class Interrupted(Exception):
    """A signal asked to stop, and the state is saved."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


SHELLS = {"sh", "bash", "dash", "zsh", "ksh", "fish", "busybox"}


def stop_with_dvc(out: Path) -> None:
    """Started by DVC to make ``out``, ask this process to stop when DVC is gone; killed, DVC leaves it running."""
    if "DVC_STAGE" not in os.environ:
        return
    import psutil

    # It may be gone already, and its heir be the parent now: DVC's lock file has the process that is at work here.
    # Where that cannot be read, the parent it is; a shell between the two may outlive DVC as well.
    holder = _holder(out)
    parents = psutil.Process().parents()
    wanted = (parent for parent in parents if (parent.pid == holder if holder else parent.name() not in SHELLS))
    dvc = next(wanted, None)

    def watch() -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            while dvc is not None and dvc.is_running() and dvc.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.5)
        log.warning("dvc is gone; stopping as well")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="watch dvc", daemon=True).start()


def _holder(out: Path) -> int | None:
    """The process that makes ``out`` by DVC's lock file, dead or alive; None where the file does not say."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError, StopIteration):
        lock = json.loads((project.root() / ".dvc/tmp/rwlock").read_text(encoding="utf-8"))
        held = ((Path(path), info) for path, info in lock["write"].items())
        return next(int(info["pid"]) for path, info in held if out in (path, *path.parents))
    return None


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """While inside, SIGTERM and Ctrl-C only leave their number in the list that this yields."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may be told
        return

    def note(number: int, _frame: FrameType | None) -> None:
        if received:
            signal.default_int_handler(number, _frame)  # asked twice: at once
        received.append(number)

    old = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
