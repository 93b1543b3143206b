"""How fast the default experiment trains: against the machine's own limit, and over batch sizes, images and epochs.

Everything in one process with the data in memory, by `bestepoch.training.loop`, but for the curve over epochs, which is
a whole training with everything on. Draws docs/speed.png. Takes six minutes with the defaults.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import csv
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import tables

from bestepoch.base.config.compose import load_config
from bestepoch.splitting.ensure import ensure_split

SIDE, GPU_SIDE = 1024, 8192  # of the matrices whose product is the machine's limit
WARM = 10  # updates before the clock runs
WAYS: dict[str, dict[str, Any]] = {
    "float32": {"precision": "float32"},
    "bfloat16": {"precision": "bfloat16"},
}


def main() -> None:
    """Measure, print the table, draw, write the results."""
    options = arguments()
    machine = common.machine()
    with common.project(options.folder, options.data) as folder:
        common.fresh(folder)
        results = {"machine": machine, "data": options.data, **measured(folder, options)}
        results["epochs"] = over_epochs(folder, options)
    common.write(options.out, results)
    print(tables.speed(results))
    if options.picture is not None:
        draw(results, options.picture)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="at least, of each measurement")
    parser.add_argument("--ways", nargs="*", choices=[*WAYS], default=[*WAYS], help="of training, to compare")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[2**n for n in range(4, 13)])
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 3000, 10_000, 20_000, 40_000, 60_000])
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--data", default="mnist", help="a name in conf/data/")
    parser.add_argument("--folder", type=Path, help="where to work; by default a temporary folder")
    parser.add_argument("--out", type=Path, default=common.RESULTS / "speed.json")
    parser.add_argument("--picture", type=Path, default=None, help="where to draw the curves")
    return parser.parse_args()


class Unrecorded:
    """What `train_epoch` calls; nothing is recorded."""

    def on_step_end(self, iteration: int, loss: Any, lr: float, grad_norm: Any) -> None:
        """After an update."""

    def switch_section(self, section: str) -> None:
        """Before another kind of work."""


class Loop:
    """The default experiment's network and updates on some images, from the beginning each time."""

    def __init__(self, folder: Path, data_name: str, device: str = "cpu") -> None:
        import torch

        from bestepoch.components.data.split import load_part
        from bestepoch.components.models.networks import build_network
        from bestepoch.training.device import choose_device, resolve_auto

        self.torch = torch
        with contextlib.chdir(folder):
            config = load_config([f"data={data_name}", f"device.name={device}"], False)[1]
            split = ensure_split(config)
        self.device = choose_device(config.device)
        self.config = config = resolve_auto(config, self.device)
        self.precision = config.device.precision
        parts = [load_part(split.folder, part) for part in ("train", "validation")]
        self.images, self.labels = (torch.cat([part[i] for part in parts]).to(self.device) for i in (0, 1))
        values = split.values
        torch.manual_seed(config.seed)
        self.network = build_network(
            config.model, split.shape, split.classes, values["pixel_mean"], values["pixel_std"]
        ).to(self.device)

    def seconds(self, images: int, batch_size: int, updates: int | None = None, **way: Any) -> tuple[float, int]:
        """Of an epoch, or of its first updates, and how many images they saw.

        Args:
            way: settings of the device that are others than the experiment's.
        """
        from bestepoch.components.data.augment import Augment
        from bestepoch.components.data.order import epoch_permutation
        from bestepoch.training.cuda_graph import CUDAGraphStep
        from bestepoch.training.device import wrap_for_training
        from bestepoch.training.loop import EpochData, Learner, train_epoch
        from bestepoch.training.loss import Objective
        from bestepoch.training.optimizers import build_optimizer

        config, network = self.config, copy.deepcopy(self.network)
        optimizer = build_optimizer(config.optimizer, network)
        weights = tuple(p for p in network.parameters() if p.ndim > 1)
        objective = Objective(config.loss.label_smoothing, config.optimizer.l1, weights)
        lr = config.optimizer.lr / 100
        device = config.device.model_copy(update=way)
        graph = CUDAGraphStep(batch_size, network.parameters()) if device.cuda_graphs is True else None
        learner = Learner(wrap_for_training(device, network), objective, optimizer, graph)

        def train(epoch: int, images: int, updates: int | None) -> int:
            augment = Augment(config.augment, 0, epoch, images, self.device)
            permutation = epoch_permutation(0, epoch, images).to(self.device)
            batches = self.torch.split(permutation, batch_size)[:updates]
            data = EpochData(self.images, self.labels, batches, augment)
            train_epoch(learner, data, lambda _: lr, 1, Unrecorded())
            if self.device.type == "cuda":
                self.torch.cuda.synchronize()
            return sum(map(len, batches))

        train(0, len(self.images), WARM)
        began = time.perf_counter()
        seen = train(1, images, updates)
        return time.perf_counter() - began, seen

    def flops(self) -> int:
        """Of an image, forward and backward, as PyTorch counts them: two for each multiplication with its addition."""
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            self.network.train()(self.images[:2]).sum().backward()
        self.network.zero_grad()
        return int(counter.get_total_flops()) // 2

    def limit(self, seconds: float) -> float:
        """FLOP a second of a plain matrix product in the precision of training, all threads."""
        side = SIDE if self.device.type == "cpu" else GPU_SIDE
        a = self.torch.randn(side, side, device=self.device).to(getattr(self.torch, self.precision))
        return 2 * side**3 / self.pace(lambda: a @ a, seconds)

    def pace(self, work: Callable[[], Any], seconds: float) -> float:
        """Seconds that a call takes, of as many as fit in ``seconds``."""
        work()
        began, times = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            work()
            times += 1
            if self.device.type == "cuda":
                self.torch.cuda.synchronize()
        return (time.perf_counter() - began) / times


def measured(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All that one process can tell; the rounds go through everything, so that a slow moment is not one point's."""
    loop = Loop(folder, options.data)
    batch = loop.config.train.batch_size
    pace: dict[str, list[float]] = {str(size): [] for size in options.batch_sizes}
    epoch: dict[str, list[float]] = {str(n): [] for n in options.images if n <= len(loop.images)}
    ways: dict[str, list[float]] = {way: [] for way in options.ways}
    limits, shares = [], []
    flops = loop.flops()
    for number in range(options.rounds):
        limits.append(loop.limit(options.seconds))
        seconds, images = loop.seconds(len(loop.images), batch, None if number else max(len(loop.images) // batch, 1))
        shares.append(flops * images / seconds / limits[-1])
        for way in ways:
            updates = max(round(images / seconds * options.seconds / batch), 2)
            took, seen = loop.seconds(len(loop.images), batch, updates, **WAYS[way])
            ways[way].append(seen / took)
        for size in options.batch_sizes:
            rate = images / seconds  # a guess at first
            updates = max(round(rate * options.seconds / size), 2)
            took, seen = loop.seconds(len(loop.images), min(size, len(loop.images)), updates)
            pace[str(size)].append(seen / took)
        for n in epoch:
            epoch[n].append(loop.seconds(int(n), min(batch, int(n)))[0])
        print(f"round {number + 1}/{options.rounds}  {seconds:.2f} s for {images:,} images", file=sys.stderr)
    return {
        "threads": loop.torch.get_num_threads(),
        "precision": loop.precision,
        "batch": batch,
        "flops": flops,
        "limit": limits,
        "share": shares,
        "ways": ways,
        "images_a_second": pace,
        "seconds_an_epoch": epoch,
    }


def over_epochs(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Trainings on the sample with everything on: what each epoch took, and the memory of many epochs and of few."""

    def train(epochs: int) -> tuple[list[float], dict[str, Any]]:
        common.fresh(folder)
        given = ["data=mnist_sample", "device.name=cpu", f"train.epochs={epochs}"]
        command = [sys.executable, "-m", "bestepoch.train", *given]
        done = subprocess.run(command, cwd=folder, env=common.environment(folder), capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{done.stderr}\nthe training over {epochs} epochs has failed; nothing is written")
        (run,) = (path.parent for path in (folder / "runs").glob("*/run.json"))
        with (run / "epochs.csv").open() as file:
            seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
        return seconds, json.loads((run / "run.json").read_text())

    train(1)  # the first training splits the sample, which takes memory of its own
    few = train(min(3, options.epochs))[1]
    seconds, info = train(options.epochs)
    return {
        "images": info["data"]["sizes"]["train"],
        "seconds": seconds,
        "memory": [few["peak_memory"], info["peak_memory"]],
    }


def draw(results: dict[str, Any], path: Path) -> None:
    """The three curves beside each other."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (batch, images, epochs) = pyplot.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    for axes, curve in ((batch, results["images_a_second"]), (images, results["seconds_an_epoch"])):
        sizes = [int(size) for size in curve]
        low, high = [min(values) for values in curve.values()], [max(values) for values in curve.values()]
        axes.fill_between(sizes, low, high, alpha=0.25, linewidth=0)
        axes.plot(sizes, [statistics.median(values) for values in curve.values()], marker="o", markersize=3)
        axes.set_ylim(bottom=0)
    batch.set(title="Images a second", xlabel="batch size", xscale="log")
    batch.set_xticks([int(size) for size in results["images_a_second"]], list(results["images_a_second"]), rotation=60)
    batch.minorticks_off()
    images.set(title="Seconds an epoch", xlabel=f"training images, batches of {results['batch']}", xlim=(0, None))
    seconds = results["epochs"]["seconds"]
    epochs.plot(range(1, len(seconds) + 1), seconds, linewidth=1)
    epochs.set(
        title="Seconds an epoch, everything on", xlabel=f"epoch, {results['epochs']['images']:,} images", ylim=(0, None)
    )
    for axes in (batch, images, epochs):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
