"""End a command by Ctrl-C with one line in place of a traceback, from its first import to its last moment."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from bestepoch.base.rank import read_rank

LINE = "bestepoch: stopped by Ctrl-C; the same command goes on from here\n"
EXIT_CODE = 128 + signal.SIGINT  # the convention for a process that a signal ends


class _CtrlC(KeyboardInterrupt):
    """Raised in place of a plain KeyboardInterrupt, after which Python may end by the signal instead of the exit code.

    It does so where the exception has passed through an ``exec``, as libraries use it.
    """


def exit_on_interrupt() -> None:
    """Let Ctrl-C end the process at once, while a command is imported and composed and nothing has begun.

    An exception would pass through the libraries that are at work, and some turn it into an error of their own.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a script's background ignores Ctrl-C
        signal.signal(signal.SIGINT, _exit_at_once)


@contextlib.contextmanager
def raise_on_interrupt() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt in the block, which puts away what it has begun; then end the process.

    Raises:
        SystemExit: Ctrl-C was typed, whatever the block made of it.
    """
    came: list[int] = []

    def interrupt(signum: int, _frame: FrameType | None) -> None:
        came.append(signum)
        raise _CtrlC

    if threading.current_thread() is not threading.main_thread():
        yield  # Python allows signal handlers only in the main thread
        return
    previous = signal.getsignal(signal.SIGINT)
    if previous is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except SystemExit:  # whoever raised it has said why
        raise
    except BaseException as error:
        if not came and not isinstance(error, KeyboardInterrupt):
            raise
        _say_so()
        raise SystemExit(EXIT_CODE) from None
    finally:
        signal.signal(signal.SIGINT, previous)


def _exit_at_once(_signum: int, _frame: FrameType | None) -> NoReturn:
    with contextlib.suppress(Exception):  # closed, or in the middle of a write
        sys.stdout.flush()
    _say_so()
    os._exit(EXIT_CODE)


def _say_so() -> None:
    """Print the line once for all processes of a training."""
    if read_rank() == 0:
        with contextlib.suppress(OSError):
            os.write(2, LINE.encode())  # sys.stderr may be in the middle of a write
