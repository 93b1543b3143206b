"""Measure where the time of a training run goes, and its peak memory."""

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
"""The section names of `SectionTimer` and their display names."""


class SectionTimer:
    """Attribute wall-clock time to sections; exactly one section is active at any time.

    GPU work is asynchronous: the wait for the GPU counts towards the section in which the host blocks.
    """

    def __init__(self, age: float = 0.0) -> None:
        """Start in section ``startup``, as if ``age`` seconds ago."""
        self.seconds = dict.fromkeys(SECTIONS, 0.0)
        self.current = "startup"
        self._since = time.perf_counter() - age

    @classmethod
    def since_process_start(cls) -> SectionTimer:
        """Return a timer that includes the start of the interpreter and all imports."""
        return cls(process_age())

    def switch(self, section: str) -> None:
        """End the current section and start ``section``."""
        now = time.perf_counter()
        self.seconds[self.current] += now - self._since
        self.current, self._since = section, now

    @contextlib.contextmanager
    def section(self, section: str) -> Iterator[None]:
        """Switch to ``section`` inside a ``with`` block, then back to the previous section."""
        before = self.current
        self.switch(section)
        try:
            yield
        finally:
            self.switch(before)

    def read(self) -> dict[str, float]:
        """Return the seconds of each section up to now."""
        self.switch(self.current)
        return dict(self.seconds)

    def merge(self, earlier: Mapping[str, float]) -> None:
        """Add the seconds of the earlier attempt that this run resumes."""
        for section in self.seconds:
            self.seconds[section] += earlier.get(section, 0.0)


def process_age() -> float:
    """Return the seconds since the operating system started this process."""
    import psutil

    created = psutil.Process().create_time()
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return float(time.time() - created)
    # psutil adds the boot time, rounded to a second, to Linux's time since boot; subtracting it restores the precision
    return float(time.clock_gettime(time.CLOCK_BOOTTIME) - (created - psutil.boot_time()))


def peak_memory() -> int | None:
    """Return this process's peak resident size in bytes, or None where the system does not report it."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        # on Linux, getrusage(2) starts from the peak of the parent process
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(re.findall(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)[0]) * 1024
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2) reports bytes on macOS and KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def format_breakdown(spent: Mapping[str, float], memory: int | None = None) -> str:
    """Return one line with the total seconds, the seconds of each section, and the peak ``memory`` given in bytes."""
    parts = ", ".join(f"{name} {spent[section]:.1f}" for section, name in SECTIONS.items())
    peak = f"; {memory / 1e6:,.0f} MB at the peak" if memory else ""
    return f"{sum(spent.values()):.1f} s: {parts}{peak}"
