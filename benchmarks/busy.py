"""What another busy process costs training, as PyTorch's threads wait by themselves and where they give up sooner.

Paired rounds on the default experiment's first updates. Takes six minutes with the defaults on two cores, on a machine
that should do nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import common
import tables

from bestepoch import threads

# by the names in tables.BUSY: how the threads wait, and overrides
WAYS: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "pytorch": (common.PYTORCH_WAITS, ()),
    "sooner": ({"GOMP_SPINCOUNT": str(threads.SPINS)}, ()),  # said, so that a processor shows what it would do there
    "one": ({}, ("device.threads=1",)),
}


def main() -> None:
    """Measure, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--data", default="mnist", help="a name in conf/data/")
    parser.add_argument("--folder", type=Path, help="where to work; by default a temporary folder")
    parser.add_argument("--out", type=Path, default=common.RESULTS / "busy.json")
    options = parser.parse_args()
    given = (f"data={options.data}", f"train.iterations={options.iterations}")
    seconds: dict[str, dict[str, list[float]]] = {name: {"alone": [], "beside": []} for name in WAYS}
    with common.project(options.folder, options.data) as folder:
        for number in range(options.rounds):
            first = number % len(WAYS)
            for place in ("alone", "beside"):
                for name in [*WAYS][first:] + [*WAYS][:first]:
                    waits, more = WAYS[name]
                    with busy() if place == "beside" else contextlib.nullcontext():
                        took = common.trained(folder, waits, *given, *more)
                    seconds[name][place].append(round(took, 3))
                    print(f"round {number + 1}/{options.rounds}  {took:7.2f} s  {name} {place}", file=sys.stderr)
    results = {"machine": common.machine(), "data": options.data, "iterations": options.iterations, "seconds": seconds}
    common.write(options.out, results)
    print(tables.busy(results))


@contextlib.contextmanager
def busy() -> Iterator[None]:
    """A process that computes and never waits."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


if __name__ == "__main__":
    main()
