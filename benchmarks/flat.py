"""What recording costs at the beginning and at the end of a million iterations, without training.

One process calls the journal, with MLflow and TensorBoard on, some times faster than any training would; this one
watches it, its children and its files from outside. Takes two to three minutes with the defaults.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from statistics import quantiles
from typing import Any

import common
import numpy as np
import psutil
import tables

WINDOW = 1000  # iterations timed together
EARLY, LATE = (0.05, 0.15), (0.85, 0.95)  # shares of what is delivered, between which processes are compared
FILES = ("mlflow.db", "runs/*/events.out.tfevents.*", "runs/*/iterations.csv")


def main() -> None:
    """Measure, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=1_000_000, help=f"a multiple of {WINDOW:,}")
    parser.add_argument("--rate", type=int, default=8000, help="iterations a second; 0: as fast as possible")
    parser.add_argument("--folder", type=Path, help="where to work; by default a temporary folder")
    parser.add_argument("--out", type=Path, default=common.RESULTS / "flat.json")
    parser.add_argument("--record", action="store_true", help=argparse.SUPPRESS)  # be the process that is watched
    options = parser.parse_args()
    if options.record:
        record(options.iterations, options.rate)
        return
    with common.project(options.folder, "mnist_sample") as folder:
        common.fresh(folder)
        command = [sys.executable, __file__, "--record", f"--iterations={options.iterations}", f"--rate={options.rate}"]
        samples = watch(subprocess.Popen(command, cwd=folder, env=common.environment(folder)), folder)
        common.check(folder, options.iterations)
        windows = json.loads((folder / "windows.json").read_text())
    results = {"machine": common.machine(), "iterations": options.iterations, "rate": options.rate}
    results |= summary(samples, windows, options.iterations)
    common.write(options.out, results)
    print(tables.flat(results))


def record(iterations: int, rate: int) -> None:
    """The calls that training makes; the processor seconds of each window go into windows.json."""
    from bestepoch.base.config.compose import load_config
    from bestepoch.runs.journal import Journal
    from bestepoch.runs.run import Run
    from bestepoch.splitting.ensure import ensure_split
    from bestepoch.tracking.client import RunTracking

    config = load_config(["data=mnist_sample", "tracking.drain_seconds=36000"], False)[1]
    run = Run.open(config, ensure_split(config), "cpu")
    journal, tracker = Journal(run.folder), RunTracking(config.tracking, run)
    values = [(random.random(), random.random()) for _ in range(WINDOW)]  # as many digits as real ones have
    windows = []
    begin = time.monotonic()
    for first in range(1, iterations + 1, WINDOW):
        if rate:
            time.sleep(max(begin + first / rate - time.monotonic(), 0))
        start = time.thread_time()
        for iteration, (loss, lr) in enumerate(values, first):
            journal.log_iteration(iteration, 1, loss, lr)
        windows.append(time.thread_time() - start)
    journal.close()
    run.info.update(status="finished", ended=time.time())
    tracker.close("finished")
    run.close()
    Path("windows.json").write_text(json.dumps(windows), encoding="utf-8")


def watch(process: subprocess.Popen[bytes], folder: Path) -> Any:
    """Rows of processor seconds and resident bytes of it and its children, and the sizes of `FILES`, until it ends."""
    samples: list[list[float]] = []
    running = True
    while running:
        running = process.poll() is None
        processor, resident = 0.0, 0
        with contextlib.suppress(psutil.NoSuchProcess):
            it = psutil.Process(process.pid)
            for one in (it, *it.children(recursive=True)):
                processor += sum(one.cpu_times()[:2])
                resident += one.memory_info().rss  # pages that they share count for each
        sizes = [sum(path.stat().st_size for path in folder.glob(pattern)) for pattern in FILES]
        samples.append([processor, resident, *sizes])
        if len(samples) % 40 == 1:
            print(*(f"{pattern} {n / 1e6:,.1f} MB " for pattern, n in zip(FILES, sizes, strict=True)), file=sys.stderr)
        time.sleep(0.25)
    if process.returncode:
        sys.exit("recording has failed; nothing is written")
    return np.array(samples)


def summary(samples: Any, windows: list[float], iterations: int) -> dict[str, Any]:
    """The figures of the table, early and late."""
    processor, resident = np.maximum.accumulate(samples[:, 0]), samples[:, 1]
    growth = samples[:, 2:] - samples[0, 2:]
    delivered = growth[:, 0] / growth[-1, 0]  # an iteration adds as many bytes early as late
    few = max(len(windows) // 20, 1)

    def work(low: float, high: float) -> float:
        begin, end = np.interp((low, high), delivered, processor)
        return float(1000 * (end - begin) / (iterations * (high - low)))

    def settled(low: float, high: float) -> float:
        begin, end = np.searchsorted(delivered, (low, high))
        return float(np.median(resident[begin : end + 1])) / 1e6

    return {
        # the lower quartile: what else goes on makes some windows longer, none shorter
        "recording": [1e6 / WINDOW * quantiles(part)[0] for part in (windows[:few], windows[-few:])],
        "work": [work(*EARLY), work(*LATE)],
        "memory": [settled(*EARLY), settled(*LATE)],
        "peak": resident.max() / 1e6,
        "bytes": dict(zip(("mlflow", "tensorboard", "journal"), growth[-1] / iterations, strict=True)),
    }


if __name__ == "__main__":
    main()
