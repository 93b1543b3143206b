"""How PyTorch's threads wait for each other, which is settled before PyTorch is imported."""

from __future__ import annotations

import os
from pathlib import Path

# Looks of a thread of PyTorch's whether the others are done, before it sleeps; GNU OpenMP's own number is 300,000
SPINS = 50_000
CPUINFO = Path("/proc/cpuinfo")


def share_cores() -> None:
    """Let PyTorch's threads, which wait for each other, soon leave their cores to others. Before PyTorch is imported.

    A thread of GNU OpenMP's that waits for one that has no core keeps that one's core busy: beside one other busy
    process, two threads on two cores took 20 times as long to train. Whoever has set how they wait is left alone.
    """
    if {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(os.environ) or not CPUINFO.exists():
        return
    with CPUINFO.open() as file:
        has = set(file.read(8192).split())  # one processor's lines: those of hundreds take a while
    # A look lasts as long as the processor's PAUSE: from 40 to 150 cycles since Skylake and Zen 2, which have these
    # instructions as well. On the ones before it is over so soon that threads with cores of their own would fall asleep
    if {"GenuineIntel", "clflushopt"} <= has or {"AuthenticAMD", "clwb"} <= has:
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
