"""Set up a process of the project: garbage collection and messages."""

from __future__ import annotations

import atexit
import functools
import gc
import logging
import sys
from typing import TYPE_CHECKING

from bestepoch.cli.console import highlight_label
from bestepoch.training.distributed import DistributedContext

if TYPE_CHECKING:
    pass
# New objects until Python looks for garbage. Imports make some hundred thousand that stay; looking them through as
# often as Python does by itself (700, on 3.11) takes a tenth of a short stage. Not to look at all would cost an
# evaluation 30 MB.
GC_THRESHOLD = 50_000


class _CurrentStderrHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to what ``sys.stderr`` is at the time, which a progress bar exchanges for its own."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        return highlight_label(super().format(record))


@functools.cache
def configure_process() -> None:
    """What each process of the project begins with, once: in one process a sweep has many jobs."""
    gc.set_threshold(GC_THRESHOLD)
    # At its end Python looks through all objects twice more, half a second with PyTorch's; frozen ones it passes over.
    atexit.register(gc.freeze)
    _log_to_terminal()


def _log_to_terminal() -> None:
    """Show the package's messages, plain; other packages' loggers keep their own settings."""
    logger = logging.getLogger("bestepoch")
    if not logger.handlers:
        logger.addHandler(_CurrentStderrHandler())
        logger.setLevel(logging.INFO if DistributedContext.from_env().is_main else logging.CRITICAL)
        logger.propagate = False
