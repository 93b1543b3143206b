"""What a GPU makes of the experiments: replayed updates beside plain ones, whole trainings, and the floor below both.

Each way of training is measured in one process with the data on the GPU, by `bestepoch.training.loop`, nothing
recorded; then whole trainings as commands, with everything on. Took two minutes with three seeds.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import common
import default
import speed
import tables

# as good as the default by validation (docs/recipe.md), in two thirds of its updates, which are what takes time here
BATCH = 200
LARGER = f"train.batch_size={BATCH} train.epochs=8 optimizer.lr=0.02"
EXPERIMENTS = (LARGER, "+experiment=accurate", "+experiment=quick")
WAYS: dict[str, dict[str, Any]] = {
    "float32, step by step": {"precision": "float32", "cuda_graphs": False},
    "bfloat16, step by step": {"precision": "bfloat16", "cuda_graphs": False},
    "float32, replayed": {"precision": "float32"},
    "bfloat16, replayed": {"precision": "bfloat16"},
}
ADAMW = 8 * 4  # bytes a weight: it, its gradient and two means are read and written, in single precision


def main() -> None:
    """Measure, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="at least, of a matrix product and of a copy")
    parser.add_argument("--ways", nargs="*", choices=[*WAYS], default=[*WAYS], help="of training, to compare")
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[100, 200, 500, 1000, 2000, 4000])
    parser.add_argument("--batch", type=int, default=BATCH, help="images in a batch where ways are compared")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--experiments", nargs="*", default=[*EXPERIMENTS], help="overrides, in quotes")
    parser.add_argument("--data", default="mnist", help="a name in conf/data/")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu: to try this program")
    parser.add_argument("--folder", type=Path, help="where to work; by default a temporary folder")
    parser.add_argument("--out", type=Path, default=common.RESULTS / "gpu.json")
    options = parser.parse_args()
    results: dict[str, Any] = {"machine": common.machine(options.device), "data": options.data}
    with common.project(options.folder, options.data) as folder:
        results.update(measured(folder, options))
        results["experiments"] = {}
        for given in options.experiments:
            results["experiments"][given] = [training(folder, seed, given.split(), options) for seed in options.seeds]
            common.write(options.out, results)
    print(tables.gpu(results), tables.gpu_updates(results), sep="\n")


def measured(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Images a second of each way and batch size, and what the GPU itself allows."""
    loop = speed.Loop(folder, options.data, options.device)
    images, batch = len(loop.images), options.batch
    ways: dict[str, list[float]] = {way: [] for way in options.ways}
    pace: dict[str, list[float]] = {str(size): [] for size in options.batch_sizes if size <= images}
    loop.seconds(images, batch, 50)  # libraries are loaded
    for number in range(options.rounds):
        for way in ways:
            given = WAYS[way] if options.device == "cuda" else {**WAYS[way], "cuda_graphs": False}
            took, seen = loop.seconds(images, batch, **given)
            ways[way].append(seen / took)
        for size in pace:
            took, seen = loop.seconds(images, int(size))
            pace[size].append(seen / took)
        print(f"round {number + 1}/{options.rounds}", file=sys.stderr)
    weights = sum(p.numel() for p in loop.network.parameters())
    return {
        "batch": batch,
        "precision": loop.precision,
        "ways": ways,
        "images_a_second": pace,
        "flops": loop.flops(),
        "limit": loop.limit(options.seconds),
        "copy": copied(loop, options.seconds),
        "bytes": batch * loop.images[0].numel() + weights * ADAMW,
        **kernels(loop, batch),
    }


def copied(loop: speed.Loop, seconds: float) -> float:
    """Bytes a second that are read and written when much is copied on the device."""
    size = 2**30 if loop.device.type == "cuda" else 2**26
    one, other = (loop.torch.empty(size, dtype=loop.torch.uint8, device=loop.device) for _ in range(2))
    return 2 * size / loop.pace(lambda: other.copy_(one), seconds)


def kernels(loop: speed.Loop, batch: int, updates: int = 100) -> dict[str, Any]:
    """How many kernels an update is, and the microseconds that they run."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    if loop.device.type != "cuda":
        return {"kernels": None, "busy": None}
    found = []
    for count in (updates, 2 * updates):  # the difference is without what comes before
        with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
            loop.seconds(len(loop.images), batch, count)
        events = [event for event in profiler.events() or [] if event.device_type == DeviceType.CUDA]
        found.append((len(events), sum(event.time_range.elapsed_us() for event in events)))
    return {"kernels": (found[1][0] - found[0][0]) / updates, "busy": (found[1][1] - found[0][1]) / updates}


def training(folder: Path, seed: int, overrides: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """A training as `default.training` measures it, with its pace within an epoch."""
    measured, run = default.training(folder, seed, options.data, overrides, options.device)
    info = json.loads((run / "run.json").read_text())
    with (run / "epochs.csv").open() as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    best = measured["epochs_test_accuracy"][int(info["best"]["best/epoch"]) - 1]
    print(
        f"seed {seed} {overrides}: {measured['seconds']:.1f} s, {measured['start']:.1f} s of it start-up, {best:.2%}",
        file=sys.stderr,
    )
    return measured | {
        "images_a_second": int(info["data"]["sizes"]["train"]) / statistics.median(seconds[1:] or seconds),
        "test_accuracy": best,
    }


if __name__ == "__main__":
    main()
