"""The search for the default experiment and for `quick`: sweeps over what they are made of, by validation alone.

Every fifth training image is held out and none of the test images is looked at. Two jobs at once, one thread each.
Takes an hour on two slow cores; a search that is not asked for keeps its results, and ``--sweep`` reads one that has
been run.
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import common
import tables

GOAL = ("selection.metric=val/accuracy", "selection.mode=max")  # losses do not compare where targets are smoothed
# the default of the first searches, but for its network
BEFORE = ["scheduler.pct_start=0.3"]
# that network, whose second block pools, and the one after it
POOLED = [*BEFORE, "model.kernel_sizes=[5,3]", "model.strides=[2,1]", "model.pool_sizes=[1,2,1]"]
STRIDED = [*BEFORE, "model.kernel_sizes=[5,4,3]", "model.strides=[2,2,1]"]
FOLDS = ["split.folds=5", "split.fold=0,1,2,3,4"]
SEARCHES = {
    "choices": [
        *POOLED,
        "model.tta_shift=0",
        "model.channels=[16,32,64],[24,48,96]",
        "train.batch_size=100,200",
        "augment=none,shift,affine",
        "loss.label_smoothing=0,0.1",
    ],
    "pooled": [*FOLDS, *POOLED, "model.channels=[24,48,96],[32,64,128]", "model.tta_shift=0"],
    "strided": [*FOLDS, *STRIDED, "model.channels=[32,64,128]", "model.tta_shift=0,1"],
    "default": [*FOLDS, "model.tta_shift=0,1"],
    "quick": [
        "+experiment=quick",
        "scheduler.pct_start=0.3",
        "model.channels=[8,16,32],[12,24,48]",
        "train.batch_size=100,200",
        "optimizer.lr=0.01,0.02",
        "augment=none,shift",
        "seed=0,1,2",
    ],
}


def main() -> None:
    """Search, print the tables, write the results."""
    options = arguments()
    results: dict[str, Any] = {"data": options.data, "searches": {}}
    if options.out.exists():
        results = json.loads(options.out.read_text())
        if results["data"] != options.data:
            sys.exit(f"{options.out} has searches on {results['data']}: give --out another name")
    with common.project(options.folder, options.data) as folder:
        for name in options.searches:
            sweep = options.sweep.get(name)
            if sweep is None:
                common.fresh(folder)
                command = [sys.executable, "-m", "bestepoch.train", *line(name, options)]
                subprocess.run(command, cwd=folder, env=common.environment(folder), check=True)
                (sweep,) = (path.parent for path in folder.glob("runs/sweeps/*/sweep.json"))
            shown = shlex.join(["python", "-m", "bestepoch.train", *line(name, options)])
            found, precision = jobs(sweep, search(name, options.change))
            machine = common.machine()
            results["searches"][name] = {"command": shown, "machine": machine, "precision": precision, "jobs": found}
            common.write(options.out, results)
    print(*(tables.recipe(results, name) for name in options.searches), sep="\n")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", nargs="+", choices=SEARCHES, default=list(SEARCHES))
    parser.add_argument("--validation", default="12000", help="images to hold out: a count or a share")
    parser.add_argument("--change", nargs="+", default=[], help="overrides in place of the searches' own")
    parser.add_argument("--data", default="mnist", help="a name in conf/data/")
    parser.add_argument("--folder", type=Path, help="where to work; by default a temporary folder")
    parser.add_argument("--out", type=Path, default=common.RESULTS / "recipe.json")
    parser.add_argument("--sweep", action="append", default=[], help="<search>=<folder> of one that has been run")
    options = parser.parse_args()
    options.sweep = {name: Path(folder).resolve() for name, folder in (one.split("=", 1) for one in options.sweep)}
    return options


def search(name: str, changes: list[str]) -> list[str]:
    """The overrides of a search, of which ``changes`` take the place of those with the same key."""
    changed = {text.partition("=")[0] for text in changes}
    return [text for text in SEARCHES[name] if text.partition("=")[0] not in changed] + changes


def line(name: str, options: argparse.Namespace) -> list[str]:
    """What follows `python -m bestepoch.train`."""
    given = [] if options.data == "mnist" else [f"data={options.data}"]
    if FOLDS[0] not in SEARCHES[name]:
        given.append(f"split.validation={options.validation}")
    return ["-m", "hydra/launcher=joblib", *given, *GOAL, *search(name, options.change)]


def jobs(sweep: Path, asked: list[str]) -> tuple[list[dict[str, Any]], str]:
    """Each job: what it varied, its last epoch's errors on the images that were held out, and its own seconds.

    Returns:
        them in the order in which they were asked for (the sweep's own table has the best one first), and the precision
        that they were trained in.
    """
    lists = dict(text.split("=", 1) for text in asked)
    with (sweep / "jobs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    given = [dict(text.split("=", 1) for text in row["overrides"].split()) for row in rows]
    varied = [key for key in given[0] if len({each[key] for each in given}) > 1]
    found = []
    for row, each in zip(rows, given, strict=True):
        run = sweep / Path(row["run"]).name
        info = json.loads((run / "run.json").read_text())
        with (run / "epochs.csv").open(newline="") as file:
            *_, last = csv.DictReader(file)
        held_out = info["data"]["sizes"]["validation"]
        found.append(
            {
                "settings": {key: each[key] for key in varied},
                "errors": round((1 - float(last["val/accuracy"])) * held_out),
                "held_out": held_out,
                "seconds": round(sum(info["time_by_section"].values()) - info["time_by_section"]["startup"], 2),
            }
        )
    found.sort(key=lambda job: [lists[key].index(value) for key, value in job["settings"].items()])
    return found, info["config"]["device"]["precision"]


if __name__ == "__main__":
    main()
