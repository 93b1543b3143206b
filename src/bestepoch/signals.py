"""SIGTERM and Ctrl-C as a wish that training meets at its next iteration."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

log = logging.getLogger("bestepoch")


class Interrupted(Exception):
    """A signal asked to stop, and the state is saved."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


SHELLS = {"sh", "bash", "dash", "zsh", "ksh", "fish", "busybox"}


def stop_with_dvc() -> None:
    """Started by DVC, ask this process to stop when DVC is gone: killed, it leaves its commands running."""
    if "DVC_STAGE" not in os.environ:
        return
    import psutil

    # a shell between the two may outlive DVC as well
    dvc = next((parent for parent in psutil.Process().parents() if parent.name() not in SHELLS), None)

    def watch() -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            while dvc is not None and dvc.is_running() and dvc.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.5)
        log.warning("dvc is gone; stopping as well")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="watch dvc", daemon=True).start()


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
