"""Whole trainings, watched: order, rates, losses, memorising, shuffled labels, and no look at the test split."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax

import live
from bestepoch.base.config import compose
from bestepoch.base.config.schema import Config
from bestepoch.base.errors import UsageError
from bestepoch.components.data.order import epoch_permutation as split_order
from bestepoch.components.data.order import evaluation_subset
from bestepoch.components.data.split import Split, load_part
from bestepoch.components.models import inference, networks, scoring
from bestepoch.runs import checkpoint
from bestepoch.runs.run import Run
from bestepoch.runs.tables import read_rows
from bestepoch.training import loop, optimizers
from bestepoch.training.loop import EpochData, Learner
from bestepoch.training.session import Session, train
from updates import MODELS, digits, fresh, teach

CHECKOUT = live.CHECKOUT


@pytest.fixture(autouse=True)
def as_torch_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, at the project, without a word; what training sets for the whole process is set back."""
    monkeypatch.chdir(CHECKOUT)
    logger = logging.getLogger("bestepoch")
    level, threads, deterministic = logger.level, torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    logger.setLevel(logging.ERROR)
    torch.set_num_threads(1)
    yield
    logger.setLevel(level)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    return scoring.score_examples(inference.predict(network, images), labels).accuracy


# ---------------------------------------------------------------- the order of the data


# ---------------------------------------------------------------- a real training, watched


@dataclasses.dataclass
class Watched:
    """What a training did, noted while it ran."""

    run: Run
    config: Config
    batches: list[list[Tensor]]  # of each epoch: the index of each batch
    rates: list[float]  # what the optimizer had when it stepped
    journal: list[dict[str, float]]
    epochs: list[dict[str, float]]


def really_trained(monkeypatch: pytest.MonkeyPatch, folder: Path, sample: Split, *overrides: str) -> Watched:
    """`session.train` itself, in a project of its own."""
    shutil.copytree(CHECKOUT / "conf", folder / "conf", dirs_exist_ok=True)
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copyfile(CHECKOUT / name, folder / name)
    monkeypatch.chdir(folder)
    plain = ["data=mnist_sample", "tracking.mlflow=false", "tracking.tensorboard=false", "device.threads=1"]
    settings = compose.load_config([*plain, "device.name=cpu", *overrides], False)[1]
    batches: list[list[Tensor]] = []
    rates: list[float] = []
    inner, make = loop.train_epoch, optimizers.build_optimizer

    def train_epoch(learner: Learner, data: EpochData, *rest: Any) -> None:
        batches.append(list(data.batches))
        inner(learner, data, *rest)

    def build(*arguments: Any) -> torch.optim.Optimizer:
        made = make(*arguments)
        made.register_step_pre_hook(lambda o, _a, _k: rates.append(o.param_groups[0]["lr"]))
        return made

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_epoch", train_epoch)
        patch.setattr(optimizers, "build_optimizer", build)
        run = train(settings, sample, Session(overrides))
    run.close()
    return Watched(
        run, settings, batches, rates, read_rows(run.folder / "iterations.csv"), read_rows(run.folder / "epochs.csv")
    )


@pytest.fixture(scope="module")
def watched(sample: Split, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """Three epochs of 17 batches, the last of which holds 50 of 250 images; 4,050 in all."""
    with pytest.MonkeyPatch.context() as patch:
        return really_trained(
            patch,
            tmp_path_factory.mktemp("watched"),
            sample,
            *("model=mlp", "model.dropout=0.2", "augment=shift", "train.epochs=3", "train.batch_size=250"),
            "scheduler.pct_start=0.3",
        )


def test_training_visits_each_image_once_an_epoch_in_another_order_each_time(watched: Watched) -> None:
    orders = [torch.cat(batches) for batches in watched.batches]
    assert len(orders) == 3
    for epoch, visited in enumerate(orders, 1):
        assert visited.sort().values.tolist() == list(range(4050))
        assert torch.equal(visited, split_order(watched.config.seed, epoch, 4050))
        assert [len(batch) for batch in watched.batches[epoch - 1]] == [250] * 16 + [50]
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[1], orders[2])


def test_the_rate_in_the_journal_is_the_one_that_the_update_used(watched: Watched) -> None:
    logged = [row["lr"] for row in watched.journal]
    assert len(logged) == 51
    assert logged == watched.rates
    assert logged[1:] != watched.rates[:-1]  # the rate of the next update would not pass


def check_epoch_loss(epoch_loss: float, losses: list[float], sizes: list[int]) -> None:
    expected = sum(loss * n for loss, n in zip(losses, sizes, strict=True)) / sum(sizes)
    assert epoch_loss == pytest.approx(expected, rel=1e-12), "not the mean over images"


def test_the_last_smaller_batch_counts_for_as_much_as_it_holds(watched: Watched) -> None:
    for row in watched.epochs:
        losses = [r["train/loss"] for r in watched.journal if r["epoch"] == row["epoch"]]
        sizes = [len(batch) for batch in watched.batches[int(row["epoch"]) - 1]]
        check_epoch_loss(row["train/epoch_loss"], losses, sizes)
        with pytest.raises(AssertionError, match="not the mean over images"):
            check_epoch_loss(sum(losses) / len(losses), losses, sizes)
    batches = [torch.zeros(100), torch.zeros(100), torch.zeros(50)]
    assert loop.mean_loss([1.0, 2.0, 4.0], batches) == (100 + 200 + 200) / 250


def test_validation_is_of_the_plain_images_with_the_weights_after_the_epoch(watched: Watched, sample: Split) -> None:
    images, labels = load_part(sample.folder, "validation")
    seen = set()
    for row in watched.epochs:
        network = fresh("mlp", sample)  # its dropout is 0
        saved = checkpoint.load(checkpoint.weights_path(watched.run.folder, int(row["epoch"])))
        assert saved["epoch"] == row["epoch"]
        network.load_state_dict(saved["network"])
        network.eval()
        with torch.no_grad():
            logits = network(images)
        surprise = -log_softmax(logits.double(), 1)
        by_hand = surprise[torch.arange(len(labels)), labels].mean().item()
        assert row["val/loss"] == pytest.approx(by_hand, rel=1e-6)
        assert row["val/accuracy"] == pytest.approx((logits.argmax(1) == labels).double().mean().item(), abs=1e-12)
        seen.add(by_hand)
    assert len(seen) == 3


def test_training_images_are_scored_as_they_are_like_those_of_validation(watched: Watched, sample: Split) -> None:
    images, labels = load_part(sample.folder, "train")
    count = sample.values["sizes"]["validation"]
    chosen = evaluation_subset(images, labels, count, watched.config.split.seed)
    assert chosen is not None and len(chosen[0]) == len(chosen[1]) == count
    assert len({image.numpy().tobytes() for image in chosen[0]}) > 0.99 * count, "each once"
    for row in watched.epochs:
        network = fresh("mlp", sample)
        network.load_state_dict(
            checkpoint.load(checkpoint.weights_path(watched.run.folder, int(row["epoch"])))["network"]
        )
        scored = scoring.score_examples(inference.predict(network, chosen[0]), chosen[1])
        assert row["train/eval_loss"] == pytest.approx(scored.loss, rel=1e-6)
        assert row["train/eval_accuracy"] == scored.accuracy


@pytest.mark.parametrize(("asked", "scored"), [(0, None), (7, 7), (100_000, 4050)])
def test_as_many_training_images_are_scored_as_asked_for(
    asked: int, scored: int | None, sample: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ["model=mlp", "train.iterations=2", "train.epochs=null", f"train.eval_images={asked}"]
    (row,) = really_trained(monkeypatch, tmp_path, sample, *common).epochs
    if scored is None:
        assert not any(column.startswith("train/eval") for column in row)
    else:  # a share of so many images
        assert round(row["train/eval_accuracy"] * scored, 6) in range(scored + 1)


def test_the_gradients_norm_is_that_of_the_update_in_each_row(
    sample: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain SGD moves the weights by the rate times the gradient."""
    sgd = ["optimizer=sgd", "optimizer.momentum=0.0", "optimizer.nesterov=false", "optimizer.weight_decay=0.0"]
    common = ["model=mlp", "scheduler=constant", "optimizer.lr=0.1", "train.iterations=1", "train.epochs=null", *sgd]
    measured = really_trained(monkeypatch, tmp_path, sample, *common)
    after = checkpoint.load(checkpoint.weights_path(measured.run.folder, 1))["network"]
    before = fresh("mlp", sample, measured.config.seed)
    moved = sum((after[name] - value).double().square().sum() for name, value in before.named_parameters())
    assert measured.journal[0]["train/grad_norm"] == pytest.approx(math.sqrt(float(moved)) / 0.1, rel=1e-3)
    without = really_trained(monkeypatch, tmp_path, sample, *common, "seed=1", "tracking.grad_norm=false")
    assert "train/grad_norm" not in without.journal[0]


def test_the_first_batch_of_a_training_is_met_with_a_guess(watched: Watched) -> None:
    assert watched.journal[0]["train/loss"] == pytest.approx(math.log(10), abs=0.3)
    assert watched.journal[-1]["train/loss"] < 1.0


def test_l1_reaches_the_loss_of_a_real_training(sample: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    common = ["model=cnn", "train.iterations=1", "train.epochs=null", "train.batch_size=100"]
    plain = really_trained(monkeypatch, tmp_path, sample, *common)
    penalised = really_trained(monkeypatch, tmp_path, sample, *common, "optimizer.l1=0.001")
    matrices = [p for p in fresh("cnn", sample, plain.config.seed).parameters() if p.ndim > 1]
    penalty = 0.001 * sum(p.detach().double().abs().sum().item() for p in matrices)
    assert penalty > 0.1
    assert penalised.journal[0]["train/loss"] - plain.journal[0]["train/loss"] == pytest.approx(penalty, rel=1e-5)
    assert penalised.run.folder != plain.run.folder


def test_views_reach_validation_and_neither_training_nor_the_weights_that_are_kept(
    sample: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ["model=cnn", "model.channels=[4,8]", "train.iterations=20", "train.epochs=null", "train.batch_size=100"]
    plain = really_trained(monkeypatch, tmp_path, sample, *common, "model.tta_shift=0")
    viewed = really_trained(monkeypatch, tmp_path, sample, *common, "model.tta_shift=1")
    assert [row["train/loss"] for row in viewed.journal] == [row["train/loss"] for row in plain.journal]
    one, other = (checkpoint.load(checkpoint.weights_path(run.run.folder, 1))["network"] for run in (plain, viewed))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    network = networks.build_network(
        viewed.config.model, sample.shape, 10, *(sample.values[f"pixel_{key}"] for key in ("mean", "std"))
    )
    network.load_state_dict(one)
    images, labels = load_part(sample.folder, "validation")
    for run, shift in ((plain, 0), (viewed, 1)):
        logits = inference.predict(networks.ShiftedViews(network, shift), images)
        by_hand = cross_entropy(logits, labels).item()
        assert run.epochs[0]["val/loss"] == pytest.approx(by_hand, rel=1e-5)
    assert abs(viewed.epochs[0]["val/loss"] - plain.epochs[0]["val/loss"]) > 1e-3


def test_label_smoothing_reaches_training_and_not_validation(
    sample: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ["model=mlp", "augment=none", "train.iterations=1", "train.epochs=null", "train.batch_size=100"]
    smooth = really_trained(monkeypatch, tmp_path, sample, *common, "loss.label_smoothing=0.25")
    images, labels = load_part(sample.folder, "train")
    index = split_order(0, 1, 4050)[:100]
    logits = fresh("mlp", sample)(images[index])
    expected = cross_entropy(logits, labels[index], label_smoothing=0.25).item()
    assert smooth.journal[0]["train/loss"] == pytest.approx(expected, rel=1e-6)
    assert abs(expected - cross_entropy(logits, labels[index]).item()) > 1e-4
    network = fresh("mlp", sample)
    network.load_state_dict(checkpoint.load(checkpoint.weights_path(smooth.run.folder, 1))["network"])
    held_images, held_labels = load_part(sample.folder, "validation")
    logits = inference.predict(network, held_images)
    assert smooth.epochs[0]["val/loss"] == pytest.approx(cross_entropy(logits, held_labels).item(), rel=1e-5)


def test_a_loss_that_is_no_number_ends_a_real_training_with_a_plain_message(
    sample: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ["model=mlp", "optimizer=sgd", "scheduler=constant", "optimizer.lr=1e30"]
    with pytest.raises(UsageError) as caught:
        really_trained(monkeypatch, tmp_path, sample, *overrides)
    run = Run.read(next((tmp_path / "runs").glob("*/run.json")).parent)
    rows = read_rows(run.folder / "iterations.csv")
    assert rows  # the updates before it are in the record
    assert all(math.isfinite(row["train/loss"]) for row in rows)
    assert f"at iteration {len(rows) + 1:,} (learning rate 1e+30)" in str(caught.value)
    assert "optimizer.lr=1e+29" in str(caught.value)
    assert run.status == "failed"
    assert run.info["reason"] == str(caught.value)


# ---------------------------------------------------------------- outputs are logits


# ---------------------------------------------------------------- the first loss


# ---------------------------------------------------------------- it can learn, and only what is there


def check_memorised(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    fared = scoring.score_examples(inference.predict(network, images), labels)
    assert fared.accuracy == 1.0, f"{fared.accuracy:.0%} of the images are known by heart"
    assert fared.loss < 0.1


@pytest.mark.parametrize("name", MODELS)
def test_64_images_can_be_memorised(name: str, sample: Split) -> None:
    images, labels = digits(sample, "train", 64)
    labels = labels[torch.randperm(64, generator=torch.Generator().manual_seed(0))]  # nothing else helps
    network = fresh(name, sample)
    teach(network, images, labels, 60, 32)
    check_memorised(network, images, labels)


@pytest.mark.parametrize("name", MODELS)
def test_labels_that_slip_against_their_images_would_be_found(name: str, sample: Split) -> None:
    images, labels = digits(sample, "train", 64)
    network = fresh(name, sample)
    teach(network, images, labels, 60, 32, labels_of=lambda epoch: labels.roll(7 * epoch))
    with pytest.raises(AssertionError, match="known by heart"):
        check_memorised(network, images, labels)


def check_chance(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    right = accuracy(network, images, labels)
    assert right < 0.25, f"{right:.0%} of images whose labels say nothing"


def test_shuffled_labels_give_chance_accuracy_on_validation(sample: Split) -> None:
    images, labels = digits(sample, "train", 1000)
    held_images, held_labels = digits(sample, "validation", 450)
    shuffled = labels[torch.randperm(1000, generator=torch.Generator().manual_seed(0))]
    network = fresh("mlp", sample)
    teach(network, images, shuffled, 25, 50)
    assert accuracy(network, images, shuffled) > 0.9  # it knows them by heart
    check_chance(network, held_images, held_labels)
    # the same with the real labels is far from chance
    honest = fresh("mlp", sample)
    teach(honest, images, labels, 10, 50)
    with pytest.raises(AssertionError, match="whose labels say nothing"):
        check_chance(honest, held_images, held_labels)
    # and validation images that are also training images give the leak away
    with pytest.raises(AssertionError, match="whose labels say nothing"):
        check_chance(network, images[:300], shuffled[:300])


# ---------------------------------------------------------------- weight decay, L1, label smoothing


# ---------------------------------------------------------------- augmentation


# ---------------------------------------------------------------- a loss that is no number


# ---------------------------------------------------------------- the test split


def project_with_split(folder: Path, sample: Split) -> Path:
    for name in ("conf", "src/bestepoch"):
        shutil.copytree(CHECKOUT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copyfile(CHECKOUT / name, folder / name)
    shutil.copytree(sample.folder, folder / "data/split")
    return folder


def trained_from_the_shell(folder: Path) -> subprocess.CompletedProcess[str]:
    settings = ["data=mnist_sample", "model=mlp", "train.iterations=20", "device.threads=1"]
    return subprocess.run(
        [sys.executable, "-m", "bestepoch.train", *settings, "tracking.mlflow=false", "tracking.tensorboard=false"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder / "src")},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_training_gets_by_without_the_test_split(sample: Split, tmp_path: Path) -> None:
    folder = project_with_split(tmp_path, sample)
    (folder / "data/split/test.npz").unlink()
    done = trained_from_the_shell(folder)
    assert done.returncode == 0, done.stderr
    runs = list((folder / "runs").glob("*/run.json"))
    assert len(runs) == 1
    run = Run.read(runs[0].parent)
    assert run.status == "finished"
    assert [row["iteration"] for row in read_rows(run.folder / "iterations.csv")] == list(range(1, 21))
    assert [row["epoch"] for row in read_rows(run.folder / "epochs.csv")] == [1]
    assert not (folder / "data/prepared").exists()  # no other split was made instead


def test_training_that_opens_the_test_split_would_be_found(sample: Split, tmp_path: Path) -> None:
    folder = project_with_split(tmp_path, sample)
    (folder / "data/split/test.npz").unlink()
    source = folder / "src/bestepoch/training/trainer.py"
    source.write_text(
        source.read_text().replace('load_cached(split, "validation", device)', 'load_cached(split, "test", device)')
    )
    done = trained_from_the_shell(folder)
    assert done.returncode == 2
    assert "data/split/test.npz is not there" in done.stderr
