"""On a GPU: every update's loss without waiting for one, and replayed updates that are what they replay, to the bit."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import live
from bestepoch.base.config import compose
from bestepoch.base.errors import UsageError
from bestepoch.components.data.augment import Augment
from bestepoch.components.data.order import epoch_permutation as split_order
from bestepoch.components.data.split import Split, load_cached
from bestepoch.components.models import networks
from bestepoch.runs import checkpoint
from bestepoch.runs.run import Run
from bestepoch.runs.tables import read_rows
from bestepoch.training import loop, optimizers
from bestepoch.training.cuda_graph import WARMUP_STEPS, CUDAGraphStep
from bestepoch.training.device import choose_device
from bestepoch.training.loop import EpochData, Learner
from bestepoch.training.loss import Objective
from bestepoch.training.session import Session, train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU of CUDA's")
GPU = ("data=mnist_sample", "device.name=cuda", "device.precision=float32")
OFF = ("tracking.mlflow=false", "tracking.tensorboard=false")
SHORT = ("train.epochs=2", "train.batch_size=200")  # 20 whole batches an epoch, and 50 images


@pytest.fixture
def trained(sample: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """Trains in this process, each time in a project of its own."""
    monkeypatch.chdir(live.CHECKOUT)
    count = itertools.count()

    def trains(*overrides: str) -> Run:
        given = [*GPU, *OFF, *overrides]
        settings = compose.load_config(given, False)[1]
        folder = tmp_path / str(next(count))
        folder.mkdir()
        (folder / "dvc.yaml").touch()
        with monkeypatch.context() as patch:
            patch.chdir(folder)
            return train(settings, sample, Session(given))

    return trains


def losses(run: Run) -> list[float]:
    return [row["train/loss"] for row in read_rows(run.folder / "iterations.csv")]


def weights(run: Run, epoch: int = 2) -> dict[str, Any]:
    return dict(checkpoint.load(checkpoint.weights_path(run.folder, epoch))["network"])


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("device.precision=bfloat16",),
        ("+experiment=quick", *SHORT),
        ("+experiment=accurate", *SHORT),
        ("model=mlp", "model.dropout=0.3"),
        ("model=lenet", "augment=none"),
        ("model.dropout=0.3", "model.activation=gelu"),
        ("optimizer=sgd", "optimizer.lr=0.05"),
        ("optimizer=adam",),
        ("optimizer=rmsprop", "optimizer.momentum=0.9"),
        ("optimizer.l1=0.001", "scheduler=plateau"),
        ("augment=affine", "loss.label_smoothing=0"),
        ("train.batch_size=4050",),  # one batch an epoch: there is nothing to replay
    ],
    ids=" ".join,
)
def test_replayed_updates_are_what_they_replay_to_the_bit(
    overrides: tuple[str, ...], trained: Callable[..., Run]
) -> None:
    replayed, plain = (trained(*SHORT, *overrides, f"device.cuda_graphs={on}") for on in ("true", "false"))
    assert losses(replayed) == losses(plain)
    assert len(set(losses(replayed))) > 1
    assert same(weights(replayed), weights(plain))
    assert [row["val/loss"] for row in read_rows(replayed.folder / "epochs.csv")] == [
        row["val/loss"] for row in read_rows(plain.folder / "epochs.csv")
    ]


@dataclasses.dataclass
class AfterUpdate:
    """What `train_epoch` tells, of which a test takes the updates alone."""

    after: Callable[[int, Any, float], Any]

    def on_step_end(self, iteration: int, loss: Any, lr: float, grad_norm: Any) -> None:
        self.after(iteration, loss, lr)

    def switch_section(self, section: str) -> None:
        pass


class Bench:
    """A network and what an epoch of it takes, without a run."""

    def __init__(self, sample: Split, *overrides: str) -> None:
        self.config = settings = compose.load_config([*GPU, *overrides], False)[1]
        self.device = choose_device(settings.device)
        self.images, self.labels = load_cached(sample, "train", self.device)
        torch.manual_seed(0)
        self.network = networks.build_network(settings.model, sample.shape, sample.classes, 33.0, 78.0).to(self.device)
        self.optimizer = optimizers.build_optimizer(settings.optimizer, self.network)
        self.calls = 0
        self.network.register_forward_pre_hook(lambda *_: self._called())

    def _called(self) -> None:
        self.calls += 1

    def graph(self, batch_size: int) -> CUDAGraphStep:
        return CUDAGraphStep(batch_size, self.network.parameters())

    def prepare(self, epoch: int, batch_size: int) -> tuple[Any, Augment]:
        order = split_order(0, epoch, len(self.images)).to(self.device)
        return torch.split(order, batch_size), Augment(self.config.augment, 0, epoch, len(self.images), self.device)

    def epoch(
        self, batches: Any, augment: Augment, graph: CUDAGraphStep | None, after: AfterUpdate | None = None
    ) -> list[Any]:
        seen: list[Any] = []
        learner = Learner(self.network, Objective(0.1, 0.0, ()), self.optimizer, graph)
        data = EpochData(self.images, self.labels, batches, augment)
        callback = AfterUpdate(lambda iteration, loss, lr: seen.append(loss)) if after is None else after
        loop.train_epoch(learner, data, lambda iteration: 0.001, 1, callback)
        return seen


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("augment", ["shift", "affine", "none"])
@pytest.mark.parametrize("replayed", [True, False])
def test_nothing_waits_for_the_gpu_inside_an_epoch(augment: str, replayed: bool, sample: Split) -> None:
    bench = Bench(sample, f"augment={augment}")
    graph = bench.graph(100) if replayed else None
    bench.epoch(*bench.prepare(1, 100), graph)
    batches, variation = bench.prepare(2, 100)
    with no_waiting():
        found = bench.epoch(batches, variation, graph)
    assert len(found) == 41
    assert all(loss.device.type == "cuda" and loss.ndim == 0 for loss in found)
    with no_waiting(), pytest.raises(RuntimeError, match="synchroniz"):  # it would be noticed
        bench.epoch(batches, variation, graph, AfterUpdate(lambda iteration, loss, lr: loss.item()))


def test_a_batch_is_recorded_once_and_then_replayed_in_all_epochs(sample: Split) -> None:
    bench = Bench(sample)
    graph = bench.graph(100)
    for epoch in (1, 2, 3):
        bench.epoch(*bench.prepare(epoch, 100), graph)
    assert bench.calls == WARMUP_STEPS + 1 + 3, (
        "the first ones, the recorded one, and the last of each epoch, of 50 images"
    )


def test_losses_stay_what_they_were_when_the_next_batch_is_replayed(sample: Split) -> None:
    bench = Bench(sample)
    found = torch.stack(bench.epoch(*bench.prepare(1, 100), bench.graph(100)))
    assert len(set(found.tolist())) == 41


def test_memory_does_not_grow_with_the_epochs(sample: Split) -> None:
    bench = Bench(sample)
    graph, taken = bench.graph(100), []
    for epoch in range(1, 7):
        bench.epoch(*bench.prepare(epoch, 100), graph)
        torch.cuda.synchronize()
        taken.append(torch.cuda.memory_allocated())
    assert taken[-1] <= taken[1]


def test_what_waits_for_the_gpu_cannot_be_recorded_and_is_named(sample: Split) -> None:
    bench = Bench(sample)
    bench.network.register_forward_hook(lambda module, given, logits: logits * float(logits.mean()) ** 0)
    with pytest.raises(UsageError) as caught:
        bench.epoch(*bench.prepare(1, 100), bench.graph(100))
    assert "device.cuda_graphs: a batch's work cannot be recorded (" in str(caught.value)
    assert "captur" in str(caught.value)
    assert str(caught.value).endswith("Without a graph: device.cuda_graphs=false")
    bench.epoch(*bench.prepare(1, 100), None)  # which is true


def test_an_epochs_seconds_are_the_gpus_and_not_those_of_telling_it(
    trained: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = loop.train_epoch

    def train_epoch(*arguments: Any, **named: Any) -> None:
        torch.cuda._sleep(2**30)  # cycles, about half a second, which the updates wait for and nothing else
        inner(*arguments, **named)

    monkeypatch.setattr(loop, "train_epoch", train_epoch)
    seconds = [row["seconds"] for row in read_rows(trained(*SHORT).folder / "epochs.csv")]
    assert all(value > 0.3 for value in seconds)


def test_a_loss_that_is_no_number_ends_a_replayed_training(trained: Callable[..., Run]) -> None:
    with pytest.raises(UsageError, match=r"The loss is (nan|inf) at iteration \d+ "):
        trained("optimizer=sgd", "optimizer.lr=1e30", "scheduler=constant", "model=mlp", *SHORT)


def test_auto_trains_a_cnn_on_the_gpu_by_replaying_in_bfloat16_and_a_killed_run_goes_on(tmp_path: Path) -> None:
    """As a person types it: with both trackers, killed in the middle, and beside one that nothing happened to."""
    whole, killed = (live.with_split(live.project(tmp_path / name)) for name in ("whole", "killed"))
    given = ("data=mnist_sample", "model.dropout=0.1", "train.epochs=30", "checkpoint.every_seconds=0.2")
    printed = live.run(whole, "train", *given)
    supported = torch.cuda.is_bf16_supported(including_emulation=False)
    how = "bfloat16, CUDA graph" if supported else "CUDA graph"
    assert f", {how}\n" in printed and "device   cuda, " in printed
    process = subprocess.Popen(
        live.command("train", *given), cwd=killed, env=live.environment(killed), stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("epoch  4/30"):
            break
    time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    stopped = len(live.table(live.only_run(killed) / "iterations.csv"))
    assert 4 * 41 <= stopped < 30 * 41
    assert "(resumed)" in live.run(killed, "train", *given)
    runs = [live.only_run(folder) for folder in (whole, killed)]
    one, other = ([row["train/loss"] for row in live.table(run / "iterations.csv")] for run in runs)
    assert one == other
    assert len(one) == 30 * 41
    assert [int(row["iteration"]) for row in live.table(runs[1] / "iterations.csv")] == list(range(1, 30 * 41 + 1))
    one, other = ([row["val/loss"] for row in live.table(run / "epochs.csv")] for run in runs)
    assert one == other
    info = json.loads((runs[0] / "run.json").read_text())
    precision = "bfloat16" if supported else "float32"  # but not whether it was replayed, which changes no bit
    assert info["config"]["device"] == {"name": "auto", "threads": None, "precision": precision}
    assert "test     " in live.run(whole, "evaluate", f"run={runs[0]}")


def test_there_is_no_gpu_where_none_is_to_be_seen(tmp_path: Path) -> None:
    """`auto` is the processor there, in the same installation."""
    copy = live.with_split(live.project(tmp_path / "project"))
    printed = live.run(copy, "train", "data=mnist_sample", *OFF, "train.epochs=1", CUDA_VISIBLE_DEVICES="")
    assert "device   cpu, " in printed
    assert "CUDA graph" not in printed
    asked = live.run(copy, "train", *GPU, *OFF, code=2, CUDA_VISIBLE_DEVICES="")
    assert "device.name = cuda is not on this machine; there are: cpu" in asked
