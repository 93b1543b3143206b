"""Real trainings with a fault each: whoever types the override that the verdict suggests is better off."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import live
from bestepoch.base.config import compose
from bestepoch.components.data.split import Split
from bestepoch.evaluation.diagnosis import Diagnosis, diagnose_run
from bestepoch.runs.tables import read_rows
from bestepoch.training.session import Session, train

PLAIN = (*live.SAMPLE, "model=mlp", "augment=none", "scheduler=constant", "loss.label_smoothing=0.0")
ADAM = ("optimizer=adam", "optimizer.lr=0.001")
FAULTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "adam far too fast": ("rate too high", ("optimizer=adam", "optimizer.lr=0.1", "train.epochs=6")),
    "adam faster still": ("rate too high", ("optimizer=adam", "optimizer.lr=1.0", "train.epochs=6")),
    "rmsprop, exploded": ("diverged", ("optimizer=rmsprop", "optimizer.lr=0.3", "train.epochs=5")),
    "sgd far too slow": ("rate too low", ("optimizer=sgd", "optimizer.lr=0.0001", "train.epochs=8")),
    "adam far too slow": ("rate too low", ("optimizer=adam", "optimizer.lr=1e-5", "train.epochs=8")),
    "two units": ("underfit", (*ADAM, "model.hidden=[2]", "train.epochs=20")),
    "dead units": ("underfit", ("optimizer=adam", "optimizer.lr=0.003", "model.hidden=[2,2]", "train.epochs=10")),
    "L2": ("penalty too strong", (*ADAM, "optimizer.weight_decay=1.0", "train.epochs=6")),
    "L1": ("penalty too strong", (*ADAM, "optimizer.l1=0.1", "train.epochs=6")),
    "too much dropout": ("penalty too strong", (*ADAM, "model.dropout=0.9", "train.epochs=10")),
    "learnt by heart": ("overfit", (*ADAM, "train.epochs=20")),
    "learnt by heart with dropout": ("overfit", (*ADAM, "model.dropout=0.5", "train.epochs=30")),
    "450 images": ("overfit", (*ADAM, "split.validation=0.9", "train.epochs=30")),
    "two epochs": ("still falling", (*ADAM, "train.epochs=2")),
    "small batches": ("oscillating", (*ADAM, "train.batch_size=10", "train.epochs=8")),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = live.with_split(live.project(tmp_path_factory.mktemp("suggestions") / "project"))
    before, threads = Path.cwd(), torch.get_num_threads()
    torch.set_num_threads(1)
    os.chdir(folder)
    yield folder
    os.chdir(before)
    torch.set_num_threads(threads)


def judged(overrides: list[str], caplog: pytest.LogCaptureFixture) -> tuple[Diagnosis, float]:
    """Train in this process; return the verdict and the lowest validation loss."""
    from bestepoch.splitting.ensure import ensure_split

    config = compose.load_config([*overrides, "tracking.mlflow=false", "tracking.tensorboard=false"], False)[1]
    with caplog.at_level(logging.ERROR, "bestepoch"):
        split: Split = ensure_split(config)
        run = train(config, split, Session(overrides=overrides))
    run.close()
    rows: Any = read_rows(run.folder / "epochs.csv")
    return diagnose_run(run.info, rows), min(row["val/loss"] for row in rows)


@pytest.mark.slow
@pytest.mark.xdist_group("suggestions")
@pytest.mark.parametrize("fault", FAULTS)
def test_following_the_suggestion_helps(fault: str, project: Path, caplog: pytest.LogCaptureFixture) -> None:
    kind, settings = FAULTS[fault]
    overrides = {line.split("=")[0]: line for line in (*PLAIN, *settings)}
    found, loss = judged(list(overrides.values()), caplog)
    assert found.kind == kind, found.sentence
    assert found.override and not found.override.startswith("-m")
    overrides |= {line.split("=")[0]: line for line in found.override.split()}
    then, lower = judged(list(overrides.values()), caplog)
    assert then.kind != kind or loss - lower > found.evidence["noise"], (found, then)
