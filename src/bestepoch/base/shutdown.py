"""Turn SIGTERM and Ctrl-C into a flag that training checks after each iteration."""

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
    """Training was stopped by the signal ``number``, and its state is saved."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.number = signum


def stop_when_dvc_exits() -> None:
    """Send SIGTERM to this process when the DVC that started it exits. A killed DVC leaves its stages running.

    Stop at once if no ancestor of this process is DVC: DVC has exited already. A program that runs DVC as a library is
    not recognised as DVC.
    """
    if "DVC_STAGE" in os.environ:
        _stop_after(next(filter(is_dvc, _ancestors()), None), "dvc is gone; stopping as well")


def _ancestors() -> Iterator[psutil.Process]:
    """Yield the running ancestors of this process, its parent first."""
    import psutil

    process = psutil.Process()
    with contextlib.suppress(psutil.NoSuchProcess):
        while (process := process.parent()) is not None:
            yield process


def is_dvc(process: psutil.Process) -> bool:
    """Return whether a process is DVC: ``dvc``, ``python .../dvc`` or ``python -m dvc`` (DVC's queue workers)."""
    import psutil

    command: list[str] = []
    with contextlib.suppress(psutil.Error):
        if _stem(process.name()) == "dvc":
            return True
        command = process.cmdline()
    program, *args = [*command, ""]
    if not _stem(program).startswith(("python", "pypy")):
        return _stem(program) == "dvc"
    remaining = iter(args)
    for arg in remaining:
        if arg == "-m":
            return next(remaining, "").partition(".")[0] == "dvc"
        if arg in ("-W", "-X"):
            next(remaining, "")
        elif arg == "-c":
            return False
        elif not arg.startswith("-"):
            return _stem(arg) == "dvc"
    return False


def _stem(path: str) -> str:
    return Path(path).name.removesuffix(".exe")


@functools.cache
def stop_when_exits(pid: int) -> None:
    """Send SIGTERM to this process when the process ``pid`` exits. Does nothing if there is no such process now."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        _stop_after(psutil.Process(pid), "the process that began the sweep is gone; stopping as well")


def is_alive(pid: int) -> bool:
    """Return whether the process ``pid`` runs on this machine."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        return _is_running(psutil.Process(pid))
    return False


def _is_running(process: psutil.Process) -> bool:
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _stop_after(process: psutil.Process | None, message: str) -> None:
    def watch() -> None:
        while process is not None and _is_running(process):
            time.sleep(0.5)
        log.warning("%s", message)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="watch", daemon=True).start()


@contextlib.contextmanager
def catch_stop_signals() -> Iterator[list[int]]:
    """Context manager that yields a list and appends to it the number of the first SIGTERM, SIGINT (Ctrl-C) or SIGHUP.

    A second signal raises KeyboardInterrupt. In a submitit job, the cluster's preemption signal takes the place of
    SIGTERM, which submitit handles. Outside the main thread the list stays empty.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # Python allows signal handlers only in the main thread
        return

    def record(signum: int, frame: FrameType | None) -> None:
        if received:
            signal.default_int_handler(signum, frame)
        received.append(signum)

    signals = [_preemption_signal() or signal.SIGTERM, signal.SIGINT]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # which nohup sets
        signals.append(signal.SIGHUP)  # the terminal was closed
    old_handlers = {signum: signal.signal(signum, record) for signum in signals}
    try:
        yield received
    finally:
        for signum, handler in old_handlers.items():
            signal.signal(signum, handler)


def _preemption_signal() -> signal.Signals | None:
    """Return the signal whose submitit handler requeues the job, or None outside submitit."""
    if "SUBMITIT_EXECUTOR" not in os.environ:
        return None
    return signal.Signals[f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}"]


def exit_by_signal(signum: int) -> NoReturn:
    """Exit with code 128 + ``signum``; for submitit's preemption signal, call submitit's handler first."""
    if signum == _preemption_signal():
        signal.raise_signal(signum)
    raise SystemExit(128 + signum)
