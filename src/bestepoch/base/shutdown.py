"""SIGTERM and Ctrl-C as a wish that training meets at its next iteration."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import psutil

log = logging.getLogger("bestepoch")


class Interrupted(Exception):
    """A signal asked to stop, and the state is saved."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def stop_when_dvc_exits() -> None:
    """Started by DVC, ask this process to stop when DVC is gone; killed, DVC leaves it running.

    DVC may be gone already. Then no process above this one is DVC, and it stops at once: a shell between the two, or
    whoever takes in orphans, is no reason to go on. Nor is a program that runs DVC as a library: it has no name by
    which to tell it from those.
    """
    if "DVC_STAGE" in os.environ:
        _stop_after(next(filter(is_dvc, _above()), None), "dvc is gone; stopping as well")


def _above() -> Iterator[psutil.Process]:
    """The parent of this process, that one's parent and so on, as far as they are there."""
    import psutil

    process = psutil.Process()
    with contextlib.suppress(psutil.NoSuchProcess):
        while (process := process.parent()) is not None:
            yield process


def is_dvc(process: psutil.Process) -> bool:
    """Whether it is DVC: ``dvc``, ``python .../dvc`` or ``python -m dvc``, which a queue's workers are as well."""
    import psutil

    words: list[str] = []
    with contextlib.suppress(psutil.Error):
        if _stem(process.name()) == "dvc":
            return True
        words = process.cmdline()
    program, *rest = [*words, ""]
    if not _stem(program).startswith(("python", "pypy")):
        return _stem(program) == "dvc"
    options = iter(rest)
    for word in options:
        if word == "-m":
            return next(options, "").partition(".")[0] == "dvc"
        if word in ("-W", "-X"):
            next(options, "")
        elif word == "-c":
            return False
        elif not word.startswith("-"):
            return _stem(word) == "dvc"
    return False


def _stem(path: str) -> str:
    return Path(path).name.removesuffix(".exe")


@functools.cache
def stop_when_exits(number: int) -> None:
    """Ask this process to stop when the process of that number, which is there now, is gone."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        _stop_after(psutil.Process(number), "the process that began the sweep is gone; stopping as well")


def is_alive(number: int) -> bool:
    """Whether there is a process of that number on this machine."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        return _is_running(psutil.Process(number))
    return False


def _is_running(process: psutil.Process) -> bool:
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _stop_after(other: psutil.Process | None, told: str) -> None:
    def watch() -> None:
        while other is not None and _is_running(other):
            time.sleep(0.5)
        log.warning("%s", told)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="watch", daemon=True).start()


@contextlib.contextmanager
def catch_stop_signals() -> Iterator[list[int]]:
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

    old = {number: signal.signal(number, note) for number in (_preemption_signal() or signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _preemption_signal() -> signal.Signals | None:
    """The signal for which submitit has a handler, which queues the job again."""
    if "SUBMITIT_EXECUTOR" not in os.environ:
        return None
    return signal.Signals[f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}"]


def exit_by_signal(number: int) -> NoReturn:
    """End this process for a signal that was noted, now that all is saved: by submitit's handler where that is it."""
    if number == _preemption_signal():
        signal.raise_signal(number)
    raise SystemExit(128 + number)
