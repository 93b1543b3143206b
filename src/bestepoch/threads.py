"""How PyTorch's threads wait for each other, which is settled before PyTorch is imported."""

from __future__ import annotations

import os
from pathlib import Path

# Looks of a thread of PyTorch's whether the others are done, before it sleeps; GNU OpenMP's own number is 300,000
SPINS = 50_000
CPUINFO = Path("/proc/cpuinfo")


def share_cores() -> None:
    """Let PyTorch's threads, which wait for each other, soon leave their cores to others. Before PyTorch is imported.

    A thread of GNU OpenMP's that waits for one that has no core keeps that one's core busy: on an Intel processor,
    beside one other busy process, two threads on two cores took 20 times as long to train. Whoever has set how they
    wait is left alone.
    """
    if {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(os.environ) or not CPUINFO.exists():
        return
    with CPUINFO.open() as file:
        has = set(file.read(8192).split())  # one processor's lines: those of hundreds take a while
    # A look lasts as long as the processor's PAUSE: some 140 cycles since Skylake, which has this instruction as well.
    # Before, it is over so soon that threads with cores of their own would fall asleep. On AMD's (Zen 5), where 300,000
    # looks take 7 ms, training beside a busy process took 2.4 times as long with all of them, and 8 times with 50,000
    if {"GenuineIntel", "clflushopt"} <= has:
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
