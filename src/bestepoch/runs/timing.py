"""Where the time of a training goes, and how much memory it took."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

SECTIONS = {
    "startup": "start-up",
    "data": "data",
    "forward_backward": "forward+backward",
    "optimizer": "optimizer",
    "evaluation": "evaluation",
    "tracking": "tracking",
    "checkpoints": "checkpoints",
}
"""What time is spent on, and how that is shown."""


class SectionTimer:
    """Each second is on one account: there is always one open, and opening another closes it.

    On a GPU the host only queues what is to be done: its waiting is on the account that is open where it has to wait.
    """

    def __init__(self, age: float = 0.0) -> None:
        """Begin ``age`` seconds ago, with ``startup``."""
        self.seconds = dict.fromkeys(SECTIONS, 0.0)
        self.current = "startup"
        self._since = time.perf_counter() - age

    @classmethod
    def since_process_start(cls) -> SectionTimer:
        """One that has run since the process began: with the interpreter's own start and all imports."""
        return cls(process_age())

    def switch(self, section: str) -> None:
        """From now on time goes to ``account``."""
        now = time.perf_counter()
        self.seconds[self.current] += now - self._since
        self.current, self._since = section, now

    @contextlib.contextmanager
    def section(self, section: str) -> Iterator[None]:
        """Time inside goes to ``account``, and after it to the one before."""
        before = self.current
        self.switch(section)
        try:
            yield
        finally:
            self.switch(before)

    def read(self) -> dict[str, float]:
        """Seconds on each account until now; they add up to the time that the clock has run."""
        self.switch(self.current)
        return dict(self.seconds)

    def merge(self, earlier: Mapping[str, float]) -> None:
        """What an attempt before this one spent, which this one goes on from."""
        for section in self.seconds:
            self.seconds[section] += earlier.get(section, 0.0)


def process_age() -> float:
    """Seconds since the operating system started this process."""
    import psutil

    created = psutil.Process().create_time()
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return float(time.time() - created)
    # Linux counts from boot, and psutil adds a time of boot that is rounded to a second: here it is taken off again
    return float(time.clock_gettime(time.CLOCK_BOOTTIME) - (created - psutil.boot_time()))


def peak_memory() -> int | None:
    """The largest resident size of this process so far, in bytes; None where the system does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        # on Linux getrusage(2) begins with the peak of the process that started this one
        return int(re.findall(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)[0]) * 1024
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2) differs
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def format_breakdown(spent: Mapping[str, float], memory: int | None = None) -> str:
    """In a line: the whole, its parts, and the memory."""
    parts = ", ".join(f"{name} {spent[section]:.1f}" for section, name in SECTIONS.items())
    peak = f"; {memory / 1e6:,.0f} MB at the peak" if memory else ""
    return f"{sum(spent.values()):.1f} s: {parts}{peak}"
