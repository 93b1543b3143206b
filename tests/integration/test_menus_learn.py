"""Every network, optimizer, schedule and augmentation learns, alone and in a sweep over whole menus."""

from __future__ import annotations

import csv
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor

import live
from bestepoch.base.config import compose
from bestepoch.base.config.types import Activation
from bestepoch.components.data.augment import Augment
from bestepoch.components.data.split import Split, load_part
from bestepoch.components.schedules.learning_rate import learning_rate
from bestepoch.components.schedules.plan import TrainingPlan
from learners import CPU, EPOCHS, entries, train

CHECKOUT = live.CHECKOUT
ACTIVATIONS = get_args(Activation)


@pytest.fixture(autouse=True)
def one_thread_at_the_project(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(CHECKOUT)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def digits(sample: Split) -> tuple[Tensor, Tensor]:
    """450 images, 45 of each digit."""
    images, labels = load_part(sample.folder, "train")
    images, labels = images[4::9], labels[4::9]  # they lie sorted by digit
    assert labels.bincount().tolist() == [45] * 10
    return images, labels


def check_learned(losses: list[float], loss: float, accuracy: float) -> None:
    """The loss fell clearly from where guessing begins, and most images are told."""
    assert all(math.isfinite(value) for value in losses)
    assert sum(losses[-5:]) / 5 < 0.7 * losses[0], "the training loss did not fall"
    assert loss < 1.0, "the loss at the end is high"
    assert accuracy > 0.7, "few images are told"


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", entries("model"))
def test_every_network_learns_with_every_activation(
    name: str, activation: str, sample: Split, digits: tuple[Tensor, Tensor]
) -> None:
    overrides, epochs = [f"model={name}", f"model.activation={activation}"], EPOCHS
    if (name, activation) == ("lenet", "sigmoid"):
        # five layers of sigmoids let little gradient through: it is slow to leave the plateau at ln(10)
        overrides += ["optimizer.lr=0.005", "scheduler=constant"]
        epochs = 18
    losses, _, loss, accuracy = train(compose.load_config(overrides, False)[1], sample, digits, epochs)
    check_learned(losses, loss, accuracy)


@pytest.mark.parametrize("name", entries("optimizer"))
def test_every_optimizer_learns(name: str, sample: Split, digits: tuple[Tensor, Tensor]) -> None:
    settings = compose.load_config([f"optimizer={name}", "scheduler=constant", "model=mlp"], False)[1]
    losses, rates, loss, accuracy = train(settings, sample, digits)
    assert rates == [settings.optimizer.lr] * len(losses)
    check_learned(losses, loss, accuracy)


@pytest.mark.parametrize("name", entries("scheduler"))
def test_every_scheduler_learns_and_its_rates_are_those_that_were_used(
    name: str, sample: Split, digits: tuple[Tensor, Tensor]
) -> None:
    settings = compose.load_config([f"scheduler={name}", "model=mlp"], False)[1]
    losses, rates, loss, accuracy = train(settings, sample, digits)
    check_learned(losses, loss, accuracy)
    assert max(rates) == pytest.approx(settings.optimizer.lr, rel=0.05)
    # plateau waits for a loss that stops falling, which four epochs do not bring
    assert (len(set(rates)) > 1) == (name not in ("constant", "plateau"))


@pytest.mark.parametrize("name", entries("augment"))
def test_every_augmentation_learns(name: str, sample: Split, digits: tuple[Tensor, Tensor]) -> None:
    images, labels = digits
    settings = compose.load_config([f"augment={name}", "model=cnn"], False)[1]
    augment = Augment(settings.augment, 0, 1, len(images), CPU)
    changed = augment(images, torch.arange(len(images)))
    assert changed.shape == images.shape
    assert changed.dtype == torch.uint8
    same = (changed == images).flatten(1).all(1).double().mean().item()
    assert same == 1.0 if name == "none" else same < 0.2
    losses, _, loss, accuracy = train(settings, sample, (images, labels))
    check_learned(losses, loss, accuracy)


def test_a_network_that_does_not_learn_would_be_noticed(sample: Split, digits: tuple[Tensor, Tensor]) -> None:
    settings = compose.load_config(["model=mlp", "scheduler=constant", "optimizer.lr=1e-7"], False)[1]
    losses, _, loss, accuracy = train(settings, sample, digits)
    with pytest.raises(AssertionError, match="the training loss did not fall"):
        check_learned(losses, loss, accuracy)


# ---------------------------------------------------------------- other images


# ---------------------------------------------------------------- as it is typed


def test_a_sweep_over_whole_menus_from_the_shell(sample: Split, tmp_path: Path) -> None:
    """`-m` with all schedulers and ways to stop; the journals hold the rates of the formulas."""
    for name in ("conf", "src/bestepoch"):
        shutil.copytree(CHECKOUT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copyfile(CHECKOUT / name, tmp_path / name)
    shutil.copytree(sample.folder, tmp_path / "data/split")
    overrides = [
        *("data=mnist_sample", "model=mlp", "scheduler=glob(*)", "stopping=glob(*)", "train.iterations=4"),
        *("train.batch_size=1500", "tracking.mlflow=false", "tracking.tensorboard=false", "device.threads=1"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "bestepoch.train", "-m", *overrides],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "src")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    tables = list((tmp_path / "runs/sweeps").glob("*/jobs.csv"))
    assert len(tables) == 1
    with tables[0].open() as file:
        jobs = list(csv.DictReader(file))
    seen = set()
    for job in jobs:
        assert job["status"] == "finished"
        given = dict(part.split("=", 1) for part in job["overrides"].split())
        seen.add((given["scheduler"], given["stopping"]))
        with (tmp_path / job["run"] / "iterations.csv").open() as file:
            rows = list(csv.DictReader(file))
        plan = TrainingPlan(4050, 1500, 4)
        menu = compose.load_option("scheduler", given["scheduler"])
        expected = [learning_rate(menu, 0.01, plan, i, [9.0] if i > 3 else []) for i in range(1, 5)]
        assert [float(row["lr"]) for row in rows] == expected
        assert [int(row["epoch"]) for row in rows] == [1, 1, 1, 2]
        assert all(0 < float(row["train/loss"]) < 4 for row in rows)
    assert seen == {(a, b) for a in entries("scheduler") for b in entries("stopping")}
    assert len(jobs) == len(seen)
