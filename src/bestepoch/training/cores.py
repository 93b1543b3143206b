"""Notice that other processes keep the cores busy, so that the threads of training wait for them and each other."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import torch

# Of the main thread, on Linux: seconds on a core, seconds in the queue for one (both in ns), and number of turns.
SCHEDSTAT = Path("/proc/self/schedstat")
# Of two threads on two cores each waits 13 to 23 % of an epoch where nothing but their own tracking process runs beside
# them, and 36 to 40 % beside one busy process (six and eight epochs of the default's cnn on the sample).
NOTICEABLE_SHARE = 0.3


class CoreWatch:
    """Watch how long the main thread waits for a core, and say so once.

    Args:
        device: where the training happens; only the threads of a CPU are watched.
    """

    def __init__(self, device: torch.device) -> None:
        self.threads = torch.get_num_threads() if device.type == "cpu" else 1
        self._since, self._waited = time.monotonic(), seconds_in_queue()

    def describe_wait(self) -> str | None:
        """Return a line if the threads have waited for a large share of the time since the last call, else None."""
        now, waited = time.monotonic(), seconds_in_queue()
        if self.threads < 2 or waited is None or self._waited is None:
            return None
        share = (waited - self._waited) / max(now - self._since, 1e-9)
        self._since, self._waited = now, waited
        if share < NOTICEABLE_SHARE:
            return None
        threads, self.threads = self.threads, 1  # once a run is enough
        waited_for = f"the {threads} threads waited {share:.0%} of this epoch for a core"
        return f"busy     {waited_for}; device.threads=1 may be faster"


def seconds_in_queue() -> float | None:
    """Return how long the main thread has waited for a core since it began, or None where the system does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(SCHEDSTAT.read_text(encoding="utf-8").split()[1]) / 1e9
    return None
