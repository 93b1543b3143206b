"""The losses of the first 20 iterations stay what they were when they were recorded: to every digit on one machine.

Where a change means to move them, say so in its commit and record them anew:
``PYTHONPATH=tests python tests/integration/test_golden_curve.py``
"""

from __future__ import annotations

import json
import platform
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

import live

RECORDED = Path(__file__).parent / "golden"
CASES = {
    "cnn-adamw-onecycle-shift": ("model=cnn", "optimizer=adamw", "scheduler=onecycle", "augment=shift"),
    "mlp-sgd-cosine-affine": ("model=mlp", "optimizer=sgd", "scheduler=cosine", "augment=affine", "model.dropout=0.2"),
    "lenet-rmsprop-step-l1": ("model=lenet", "optimizer=rmsprop", "scheduler=step", "optimizer.l1=1e-4"),
}
# so that a change of the defaults moves nothing here
FIXED = (
    *("seed=7", "split.validation=0.1", "split.seed=0", "train.epochs=null", "train.iterations=20"),
    *("train.batch_size=100", "loss.label_smoothing=0.1", "optimizer.lr=0.01", "optimizer.weight_decay=0.01"),
    *("tracking.mlflow=false", "tracking.tensorboard=false"),
)


def machine() -> dict[str, str]:
    """What the last digits of a loss depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    found = dict(re.findall(r"^(model name|cpu family|model|stepping)\s*: (.+)$", text, re.MULTILINE))
    capability = torch.backends.cpu.get_cpu_capability()
    return {"processor": platform.processor(), **found, "capability": capability, "torch": torch.__version__}


def train(folder: Path, name: str) -> list[float]:
    live.with_split(live.project(folder))
    live.run(folder, "train", *live.SAMPLE, *FIXED, *CASES[name])
    return [float(row["train/loss"]) for row in live.table(live.only_run(folder) / "iterations.csv")]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_golden_curve(name: str, tmp_path: Path) -> None:
    golden: dict[str, Any] = json.loads((RECORDED / f"{name}.json").read_text())
    losses = train(tmp_path, name)
    assert len(losses) == 20
    if golden["machine"] == machine():
        assert losses == golden["train/loss"]
    else:  # other instructions round differently, and 20 updates carry that on
        assert losses == pytest.approx(golden["train/loss"], rel=2e-3)


if __name__ == "__main__":
    RECORDED.mkdir(exist_ok=True)
    for case in CASES:
        with tempfile.TemporaryDirectory() as place:
            record = {"machine": machine(), "train/loss": train(Path(place), case)}
        (RECORDED / f"{case}.json").write_text(json.dumps(record, indent=1) + "\n")
