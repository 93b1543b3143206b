"""What the default experiment reaches and takes, beside the example that most people begin with, in paired rounds.

That example is `mnist/main.py` of pytorch/examples: its network, Adadelta, batches of 64, a DataLoader that normalises
one image at a time. It runs for 14 epochs, each with its test, and ends at 99.19 %; each round measures one such epoch
and one training stage of ours, whole, as a command. Needs three minutes a seed on two slow cores.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import common
import tables


def main() -> None:
    """Measure, print the table, write the results."""
    options = arguments()
    results: dict[str, Any] = {"machine": common.machine(), "data": options.data, "experiment": options.experiment}
    results.update(theirs=[], runs=[])
    with common.project(options.folder, options.data) as folder:
        for seed in options.seeds:
            if options.theirs:
                results["theirs"].append(published(folder, options))
            results["runs"].append(ours(folder, seed, options))
            run = results["runs"][-1]
            told = f"seed {seed}: {run['seconds']:.1f} s, test accuracy {run['test_accuracy']:.2%}"
            print(told + "".join(f"; an epoch of theirs {s:.1f} s" for s in results["theirs"][-1:]), file=sys.stderr)
    common.write(options.out, results)
    print(tables.default(results))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--experiment", help="a name in conf/experiment/; the default one without")
    parser.add_argument("--no-theirs", dest="theirs", action="store_false", help="measure our own alone")
    parser.add_argument("--their-images", type=int, help="train it on so many; all without")
    parser.add_argument("--data", default="mnist", help="a name in conf/data/")
    parser.add_argument("--folder", type=Path, help="where to work; by default a temporary folder")
    parser.add_argument("--out", type=Path, default=common.RESULTS / "default.json")
    return parser.parse_args()


def ours(folder: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """A training and its evaluation, as commands, and how each of its epochs does on the test images."""
    given = [f"+experiment={options.experiment}"] * bool(options.experiment)
    measured, run = training(folder, seed, options.data, given)
    # what the trackers are told of it is not looked at
    untracked = ["tracking.mlflow=false", "tracking.tensorboard=false"]
    command(folder, "evaluate", [f"data={options.data}", "device.name=cpu", *given, f"run={run}", *untracked])
    metrics = json.loads((run / "evaluate/metrics.json").read_text())
    return measured | {key: metrics[key] for key in ("best_epoch", "val_accuracy", "test_accuracy")}


def training(
    folder: Path, seed: int, data: str, overrides: list[str], device: str = "cpu"
) -> tuple[dict[str, Any], Path]:
    """A training as a command: what it took, how each of its epochs does on the test images; and its run's folder."""
    common.fresh(folder)
    began, started = time.time(), time.perf_counter()
    said = command(folder, "train", [f"data={data}", f"device.name={device}", *overrides, f"seed={seed}"])
    seconds = time.perf_counter() - started
    (run,) = (path.parent for path in (folder / "runs").glob("*/run.json"))
    with (run / "epochs.csv").open() as file:
        ends = [float(row["time"]) - began for row in csv.DictReader(file)]
    info = json.loads((run / "run.json").read_text())
    measured = {
        "seed": seed,
        "precision": info["config"]["device"]["precision"],
        "seconds": seconds,
        "start": float(re.findall(r"^start +(\S+) s", said, re.MULTILINE)[0]),
        "spent": info["time_by_section"],
        "ends": ends,
        "epochs_test_accuracy": tested(folder, run, len(ends), data, device),
    }
    return measured, run


def command(folder: Path, stage: str, given: list[str]) -> str:
    """What a stage says while it works; ends all if it fails."""
    line = [sys.executable, "-m", f"bestepoch.{stage}", *given]
    done = subprocess.run(line, cwd=folder, env=common.environment(folder), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{done.stderr}\n{stage} has failed ({done.returncode}); nothing is written")
    return done.stderr


def tested(folder: Path, run: Path, epochs: int, data_name: str, device: str = "cpu") -> list[float]:
    """Test accuracy after each epoch, looked at when all is chosen: to say when 99 % was passed."""
    from bestepoch.base.config.compose import load_config
    from bestepoch.components.data.split import load_part
    from bestepoch.components.models import inference, scoring
    from bestepoch.components.models.model_file import make_model_file, restore_network
    from bestepoch.runs import checkpoint
    from bestepoch.runs.run import Run
    from bestepoch.splitting.ensure import ensure_split

    with contextlib.chdir(folder):
        images, labels = load_part(ensure_split(load_config([f"data={data_name}"], False)[1]).folder, "test")
        info = Run.read(run).info
        saved = (checkpoint.load(checkpoint.weights_path(run, epoch)) for epoch in range(1, epochs + 1))
        networks = (restore_network(make_model_file(info, weights)).to(device) for weights in saved)
        logits = (inference.predict(network, images) for network in networks)
        return [scoring.score_examples(found, labels).accuracy for found in logits]


def published(folder: Path, options: argparse.Namespace) -> float:
    """Seconds that an epoch of the other example and its test take, with the same threads."""
    import torch
    from PIL import Image
    from torch import nn
    from torch.nn import functional
    from torch.utils.data import DataLoader, Dataset

    from bestepoch.base.config.compose import load_config
    from bestepoch.components.data.split import load_part
    from bestepoch.splitting.ensure import ensure_split

    with contextlib.chdir(folder):
        split = ensure_split(load_config([f"data={options.data}"], False)[1]).folder
    parts = [load_part(split, part) for part in ("train", "validation")]
    # it holds none out
    whole = [torch.cat([part[i] for part in parts])[: options.their_images] for i in (0, 1)]

    class Images(Dataset[Any]):
        def __init__(self, pictures: torch.Tensor, labels: torch.Tensor) -> None:
            self.pictures, self.labels = pictures, labels

        def __len__(self) -> int:
            return len(self.pictures)

        def __getitem__(self, i: int) -> tuple[Any, int]:
            pixels = bytearray(Image.fromarray(self.pictures[i].numpy()).tobytes())
            scaled = torch.frombuffer(pixels, dtype=torch.uint8).view(1, 28, 28).float().div(255)
            return scaled.sub(0.1307).div(0.3081), int(self.labels[i])

    network = nn.Sequential(
        *(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25)),
        *(nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10), nn.LogSoftmax(1)),
    )
    optimizer = torch.optim.Adadelta(network.parameters(), lr=1.0)
    started = time.perf_counter()
    for inputs, targets in DataLoader(Images(*whole), 64, shuffle=True):
        optimizer.zero_grad()
        functional.nll_loss(network(inputs), targets).backward()
        optimizer.step()
    network.eval()
    right, loss = 0, 0.0  # which it prints
    with torch.no_grad():
        for inputs, targets in DataLoader(Images(*load_part(split, "test")), 1000):
            outputs = network(inputs)
            loss += functional.nll_loss(outputs, targets, reduction="sum").item()
            right += int((outputs.argmax(1) == targets).sum())
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
