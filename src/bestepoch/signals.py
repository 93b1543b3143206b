"""SIGTERM and Ctrl-C as a wish that training meets at its next iteration."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from bestepoch import project

if TYPE_CHECKING:
    import psutil

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
    _stop_after(next(wanted, None), "dvc is gone; stopping as well")


@functools.cache
def stop_with(number: int) -> None:
    """Ask this process to stop when the process of that number, which is there now, is gone."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        _stop_after(psutil.Process(number), "the process that began the sweep is gone; stopping as well")


def alive(number: int) -> bool:
    """Whether there is a process of that number on this machine."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        return _lives(psutil.Process(number))
    return False


def _lives(process: psutil.Process) -> bool:
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _stop_after(other: psutil.Process | None, told: str) -> None:
    def watch() -> None:
        while other is not None and _lives(other):
            time.sleep(0.5)
        log.warning("%s", told)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="watch", daemon=True).start()


def _holder(out: Path) -> int | None:
    """The process that makes ``out`` by DVC's lock file, dead or alive; None where the file does not say."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError, StopIteration):
        lock = json.loads((project.root() / ".dvc/tmp/rwlock").read_text(encoding="utf-8"))
        held = ((Path(path), info) for path, info in lock["write"].items())
        return next(int(info["pid"]) for path, info in held if out in (path, *path.parents))
    return None


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """While inside, SIGTERM and Ctrl-C only leave their number in the list that this yields.

    In a job of submitit it is the signal by which a cluster takes the machine back, while SIGTERM is submitit's.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may be told
        return

    def note(number: int, frame: FrameType | None) -> None:
        if received:
            signal.default_int_handler(number, frame)  # asked twice: at once
        received.append(number)

    old = {number: signal.signal(number, note) for number in (_taken_back() or signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _taken_back() -> signal.Signals | None:
    """The signal for which submitit has a handler, which queues the job again."""
    if "SUBMITIT_EXECUTOR" not in os.environ:
        return None
    return signal.Signals[f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}"]


def leave(number: int) -> NoReturn:
    """End this process for a signal that was noted, now that all is saved: by submitit's handler where that is it."""
    if number == _taken_back():
        signal.raise_signal(number)
    raise SystemExit(128 + number)
