"""Configure standard streams, garbage collection, logging and the user of a process."""

from __future__ import annotations

import atexit
import functools
import gc
import getpass
import io
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path

from bestepoch.base.rank import read_rank
from bestepoch.cli.console import highlight_label

# Allocations between garbage collections. Imports create some hundred thousand permanent objects; scanning them at
# Python's default (700 on 3.11) takes a tenth of a short stage. Disabling collection costs an evaluation 30 MB.
GC_THRESHOLD = 50_000


class _CurrentStderrHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Write to the current ``sys.stderr``, which a progress bar replaces while it is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        return highlight_label(super().format(record))


@functools.cache
def configure_process() -> None:
    """Configure the process once, even if it runs many jobs of a sweep."""
    _open_closed_streams()
    ensure_user()
    _print_every_character()
    gc.set_threshold(GC_THRESHOLD)
    # Python collects twice more at exit, half a second with PyTorch loaded; frozen objects are skipped.
    atexit.register(gc.freeze)
    _log_to_terminal()


def _open_closed_streams() -> None:
    """Open the null device for each standard stream that the caller closed; a file of a run would take its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115, PTH123


def _print_every_character() -> None:
    """Write what the terminal's encoding lacks, such as × and ÷, as an escape where Python would raise."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def ensure_user() -> None:
    """Give the process a user name and a home where the system has none for its user, as in a container.

    MLflow asks for both, and the processes that this one starts inherit them.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = f"uid-{os.getuid()}"
    try:
        Path.home()
    except RuntimeError:
        # of this process alone: what others can write, such as /tmp itself, would give MLflow their settings
        os.environ["HOME"] = tempfile.mkdtemp(prefix="bestepoch-home-")
        atexit.register(shutil.rmtree, os.environ["HOME"], ignore_errors=True)


def _log_to_terminal() -> None:
    """Print the package's log messages on rank 0; the loggers of other packages are left unchanged."""
    logger = logging.getLogger("bestepoch")
    if not logger.handlers:
        logger.addHandler(_CurrentStderrHandler())
        logger.setLevel(logging.INFO if read_rank() == 0 else logging.CRITICAL)
        logger.propagate = False
