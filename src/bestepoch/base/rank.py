"""The place of this process among those that ``torchrun`` started, read from the environment."""

from __future__ import annotations

import os
import time

RANK0_GRACE_SECONDS = 10.0  # how long a failing worker waits so that rank 0 reports the error first; torchrun ends it


def read_rank() -> int:
    """Return the rank of this process; 0 where it runs alone."""
    return max(int(os.environ.get("RANK", "0")), 0) if read_world_size() > 1 else 0


def read_world_size() -> int:
    """Return the number of processes that train together; 1 without ``torchrun``."""
    return max(int(os.environ.get("WORLD_SIZE", "1")), 1) if "RANK" in os.environ else 1


def wait_for_rank0_error() -> None:
    """On a rank above 0, give rank 0 the time to report the error, so that it is reported once."""
    if read_rank() > 0:
        time.sleep(RANK0_GRACE_SECONDS)
