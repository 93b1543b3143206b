"""What the benchmarks share: a project to work in, a store to begin with, and a look at what has arrived in it."""

from __future__ import annotations

import contextlib
import csv
import datetime
import json
import os
import platform
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path
from typing import Any

from bestepoch.base.config.compose import load_config
from bestepoch.splitting.ensure import ensure_split

CHECKOUT = Path(__file__).resolve().parents[1]
RESULTS = CHECKOUT / "benchmarks/results"
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_LOGGING_LEVEL": "WARNING"}


@contextlib.contextmanager
def project(where: Path | None, data: str) -> Iterator[Path]:
    """A folder with this checkout's settings, ``data`` split in it, and a store that holds nothing but its tables.

    Args:
        where: the folder; by default a temporary one, on the disk that ``TMPDIR`` names.
    """
    os.environ.update(QUIET)
    from mlflow import MlflowClient

    with contextlib.nullcontext(where) if where else tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        shutil.copytree(CHECKOUT / "conf", folder / "conf", dirs_exist_ok=True)
        for file in ("params.yaml", "dvc.yaml"):
            shutil.copy(CHECKOUT / file, folder)
        with contextlib.chdir(folder):
            split = ensure_split(load_config([f"data={data}"], False)[1])
        if split.offline_sample:
            sys.exit(f"{data} cannot be had, and the sample would give other figures; ask for it: --data mnist_sample")
        MlflowClient(tracking_uri=f"sqlite:///{folder / 'empty.db'}")
        yield folder


def fresh(folder: Path) -> None:
    """No runs, and the empty store."""
    shutil.rmtree(folder / "runs", ignore_errors=True)
    shutil.copyfile(folder / "empty.db", folder / "mlflow.db")
    os.sync()  # what one measurement left to be written shall not slow the next one


def environment(folder: Path) -> dict[str, str]:
    """As this process has it, but with the store in ``folder``."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "DVC_"))}
    return {**kept, **QUIET, "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"}


def trained(folder: Path, environ: dict[str, str], *overrides: str) -> float:
    """Seconds of training alone, as epochs.csv has them, by the command on a processor; on a fresh store.

    Args:
        environ: what is in the environment besides `environment`.
    """
    fresh(folder)
    command = [sys.executable, "-m", "bestepoch.train", "device.name=cpu", *overrides]
    subprocess.run(command, cwd=folder, env=environment(folder) | environ, check=True, capture_output=True)
    (table,) = folder.glob("runs/*/epochs.csv")
    with table.open(newline="") as file:
        return sum(float(row["seconds"]) for row in csv.DictReader(file))


def check(folder: Path, iterations: int) -> None:
    """Every update's loss and rate are in MLflow's database and in the event files, once. Raises ValueError."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as store:
        mlflow = store.execute("SELECT key, step FROM metrics").fetchall()
    paths = (folder / "runs").rglob("events.out.tfevents.*")
    events = (event for path in paths for event in LegacyEventFileLoader(str(path)).Load())
    board = [(value.tag, event.step) for event in events for value in event.summary.value]
    for tracker, points in (("MLflow", mlflow), ("TensorBoard", board)):
        for key in ("train/loss", "lr"):
            steps = Counter(step for name, step in points if name == key)
            first = min(steps, default=0)  # Lightning counts from 0
            if steps != Counter(range(first, first + iterations)):
                raise ValueError(f"{tracker} has {steps.total():,} points of {key}, not one for each of {iterations:,}")


def machine(device: str = "cpu") -> dict[str, Any]:
    """What the figures depend on besides the code."""
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", cpuinfo.read_text(encoding="utf-8")) if cpuinfo.exists() else []
    packages = [name for name in ("torch", "mlflow", "tensorboard", "lightning") if util.find_spec(name)]
    return {
        "cores": os.cpu_count(),
        "processor": names[0] if names else platform.machine(),
        **({"gpu": _gpu()} if device == "cuda" else {}),
        "python": platform.python_version(),
        **{name: metadata.version(name).partition("+")[0] for name in packages},
        "date": datetime.date.today().isoformat(),
    }


def _gpu() -> str:
    import torch

    return torch.cuda.get_device_name()


def write(path: Path, results: dict[str, Any]) -> None:
    """As JSON that git can compare."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
