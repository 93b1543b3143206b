"""What tracking costs: the same training tracked in several ways, in paired rounds.

Each measurement is a process of its own on a fresh store; each round measures every variant, beginning with another
one each time. See variants.py for what is measured. Takes 16 minutes with the defaults, on a machine that should do
nothing else.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import common
import tables

BATCH = 100
OFF = ("tracking.mlflow=false", "tracking.tensorboard=false")


def main() -> None:
    """Measure, print the table, write the results."""
    options = arguments()
    machine = common.machine()
    missing = [name for name in ("lightning",) if name in options.variants and name not in machine]
    variants = [name for name in tables.VARIANTS if name == "plain" or name in {*options.variants} - {*missing}]
    models: dict[str, Any] = {
        name: {"batch": BATCH, "epochs": epochs(options, name), "ms": {v: [] for v in variants}}
        for name in options.models
    }
    with common.project(options.folder, options.data) as folder:
        for number in range(options.rounds):
            first = number % len(variants)
            for name, model in models.items():
                for variant in variants[first:] + variants[:first]:
                    common.fresh(folder)
                    done = measure(folder, variant, overrides(options, name, variant))
                    # a DataLoader's processes draw and round otherwise
                    if variant != "dataloader" and model.setdefault("weights", done["weights"]) != done["weights"]:
                        sys.exit(f"{variant} trained other weights than the variants before it: not the same training")
                    model["iterations"], model["precision"] = done["iterations"], done["precision"]
                    model["ms"][variant].append(round(1000 * done["seconds"] / done["iterations"], 4))
                    told = f"{model['ms'][variant][-1]:7.2f} ms an iteration"
                    print(f"round {number + 1}/{options.rounds}  {name}  {told}  {variant}", file=sys.stderr)
    results = {
        "machine": machine,
        "data": options.data,
        "threads": done["threads"],
        "missing": missing,
        "models": models,
    }
    common.write(options.out, results)
    print(tables.tracking(results))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs-mlp", type=int, default=6)
    parser.add_argument("--epochs-cnn", type=int, default=6)
    parser.add_argument("--models", nargs="+", default=["mlp", "cnn"], choices=["mlp", "cnn"])
    parser.add_argument("--variants", nargs="+", default=[*tables.VARIANTS], choices=[*tables.VARIANTS])
    parser.add_argument("--data", default="mnist", help="a name in conf/data/")
    parser.add_argument("--folder", type=Path, help="where to work; by default a temporary folder")
    parser.add_argument("--out", type=Path, default=common.RESULTS / "tracking.json")
    return parser.parse_args()


def epochs(options: argparse.Namespace, model: str) -> int:
    """How many were asked for."""
    return int(options.epochs_mlp if model == "mlp" else options.epochs_cnn)


def overrides(options: argparse.Namespace, model: str, variant: str) -> list[str]:
    """What is trained; the rest is as params.yaml and conf/ have it."""
    given = [f"data={options.data}", f"model={model}", f"train.epochs={epochs(options, model)}"]
    off = OFF if variant == "bestepoch-off" else ()
    return [*given, f"train.batch_size={BATCH}", "device.name=cpu", *off]


def measure(folder: Path, variant: str, given: list[str]) -> dict[str, Any]:
    """One variant, once."""
    script = Path(__file__).with_name("variants.py")
    command = [sys.executable, str(script), variant, *given]
    environment = common.environment(folder)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{done.stderr}\n{variant} has failed ({done.returncode}); nothing is written")
    return dict(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()
