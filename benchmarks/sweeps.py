"""What a sweep costs beyond its jobs' training, and what two jobs at once gain over one after the other.

Paired rounds. Takes seven minutes with the defaults, on a machine that should do nothing else.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import time
from pathlib import Path

import common
import tables


def main() -> None:
    """Measure, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2, help="of the two jobs of the default experiment")
    parser.add_argument("--jobs", type=int, default=12, help="of the sweep of small jobs")
    parser.add_argument("--data", default="mnist", help="a name in conf/data/")
    parser.add_argument("--folder", type=Path, help="where to work; by default a temporary folder")
    parser.add_argument("--out", type=Path, default=common.RESULTS / "sweeps.json")
    options = parser.parse_args()
    beyond: list[float] = []
    wall: dict[str, list[float]] = {"basic": [], "joblib": []}
    with common.project(options.folder, options.data) as folder:
        for number in range(options.rounds):
            # the difference of a long and a short one: what is paid once, such as imports, falls out
            few, many = (small(folder, count, options.data) for count in (2, options.jobs))
            beyond.append((many - few) / (options.jobs - 2))
            print(f"round {number + 1}/{options.rounds}  {beyond[-1]:7.3f} s a job beyond training", file=sys.stderr)
            for launcher in [*wall][:: -1 if number % 2 else 1]:
                given = [f"hydra/launcher={launcher}", "seed=0,1", f"train.epochs={options.epochs}"]
                wall[launcher].append(swept(folder, options.data, given)[0])
                print(f"round {number + 1}/{options.rounds}  {wall[launcher][-1]:7.2f} s  {launcher}", file=sys.stderr)
    results = {
        "machine": common.machine(),
        "data": options.data,
        "epochs": options.epochs,
        "jobs": options.jobs,
        "beyond": [round(value, 4) for value in beyond],
        "wall": {name: [round(value, 3) for value in values] for name, values in wall.items()},
    }
    common.write(options.out, results)
    print(tables.sweeps(results))


def small(folder: Path, count: int, data: str) -> float:
    """Seconds of a sweep of small jobs that are not training itself, all jobs together."""
    seconds, training = swept(folder, data, ["model=mlp", "train.epochs=1", f"seed=range({count})"])
    return seconds - training


def swept(folder: Path, data: str, given: list[str]) -> tuple[float, float]:
    """Seconds from the command to its end, and of them training alone, as the journals have it."""
    common.fresh(folder)
    command = [sys.executable, "-m", "bestepoch.train", "-m", f"data={data}", "device.name=cpu", *given]
    begin = time.perf_counter()
    subprocess.run(command, cwd=folder, env=common.environment(folder), check=True, capture_output=True)
    took = time.perf_counter() - begin
    training = 0.0
    for table in folder.glob("runs/sweeps/*/*/epochs.csv"):
        with table.open(newline="") as file:
            training += sum(float(row["seconds"]) for row in csv.DictReader(file))
    return took, training


if __name__ == "__main__":
    main()
