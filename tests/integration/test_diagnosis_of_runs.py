"""What the diagnosis says of real trainings that were made to show a fault."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import live
from bestepoch.base.errors import UsageError
from bestepoch.components.models.scoring import smoothed_ce_floor
from bestepoch.evaluation.diagnosis import diagnose
from bestepoch.runs import tables

Losses = list[float]


def line(n: int, start: float, end: float) -> Losses:
    return [start + (end - start) * i / max(n - 1, 1) for i in range(n)]


# ---------------------------------------------------------------- noise


# ---------------------------------------------------------------- what must not matter


# ---------------------------------------------------------------- what it says


# ---------------------------------------------------------------- trainings made to show each


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return live.with_split(live.project(tmp_path_factory.mktemp("diagnosis") / "project"))


MLP = (
    "loss.label_smoothing=0.0",
    *(*live.SAMPLE, "model=mlp", "augment=none", "train.batch_size=25", "scheduler=constant"),
    *("tracking.mlflow=false", "tracking.tensorboard=false"),
)


SWINGING = (
    *("optimizer=sgd", "optimizer.lr=2", "optimizer.weight_decay=0", "model.activation=tanh", "model.hidden=[32]"),
    *("train.batch_size=50", "train.epochs=15"),
)


@pytest.mark.slow
@pytest.mark.xdist_group("diagnosis")
@pytest.mark.parametrize(
    ("settings", "kind", "first", "last"),
    [
        # 135 training images: they are learned by heart in a few epochs
        (("split.validation=0.97", "optimizer=adam", "train.epochs=30"), "overfit", 5, 9),
        (("train.epochs=1",), "underfit", 1, 1),
        (("train.epochs=4", "train.batch_size=100", "optimizer.lr=0.0001"), "underfit", 4, 4),
        # the rate of AdamW × 100: the first updates throw the weights so far that units die, and it only guesses
        (("train.epochs=4", "model.hidden=[64]", "optimizer.lr=1"), "diverged", 1, 2),
        # that of SGD × 40, with units that cannot die: it learns, and loses it again, and learns
        (SWINGING, "oscillating", 1, 15),
        # slow enough to fall smoothly: at the menu's rate another processor's rounding makes another curve of it
        (
            ("optimizer=sgd", "optimizer.lr=0.005", "scheduler=cosine", "model.hidden=[64]", "train.epochs=15"),
            *("converged", 5, 12),
        ),
    ],
    ids=["few images", "one epoch", "a small rate", "AdamW at 100 times the rate", "SGD at 40 times", "cosine"],
)
def test_a_training_made_to_show_it(
    project: Path, tmp_path: Path, settings: tuple[str, ...], kind: str, first: int, last: int
) -> None:
    copied = shutil.copytree(project, tmp_path / "project")
    merged = {line.split("=")[0]: line for line in (*MLP, *settings)}
    live.run(copied, "train", *merged.values())
    run = live.only_run(copied)
    rows, smoothing = tables.read_rows(run / "epochs.csv"), json.loads((run / "run.json").read_text())["config"]["loss"]
    found = diagnose(rows, floor=smoothed_ce_floor(smoothing["label_smoothing"], 10))  # as `evaluate` asks
    assert (found.kind, found.evidence["epochs"]) == (kind, len(rows)), found
    assert first <= found.epoch <= last, found


@pytest.mark.slow
@pytest.mark.xdist_group("diagnosis")
def test_sgd_at_100_times_the_rate_finishes_no_epoch(project: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(project, tmp_path / "project")
    said = live.run(copied, "train", *MLP, "optimizer=sgd", "optimizer.lr=5", "train.epochs=2", code=2)
    assert "The loss is nan at iteration" in said
    with pytest.raises(UsageError, match="No epoch was finished"):
        diagnose(tables.read_rows(live.only_run(copied) / "epochs.csv"))
