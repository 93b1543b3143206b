"""A loss that is no number, in all places that could go on as if it were one. The loop itself: test_honest_training."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

import live
from bestepoch.base.config import compose
from bestepoch.base.errors import UsageError
from bestepoch.components.data.split import Split
from bestepoch.evaluation.selection import best_epoch
from bestepoch.runs import checkpoint
from bestepoch.runs.journal import Journal
from bestepoch.runs.run import Run
from bestepoch.runs.tables import read_rows
from bestepoch.training import loop
from bestepoch.training.loop import StepCallback
from bestepoch.training.session import Session, train

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("not_finite")]

PER_EPOCH = 9


def test_mlflow_has_the_run_as_failed_with_the_reason(tmp_path: Path) -> None:
    """The first epoch is good, and in the second the rate is 10^28 times as high."""
    folder = live.with_store(live.with_split(live.project(tmp_path)))
    steep = ("scheduler=step", "scheduler.step_size=1", "scheduler.gamma=1e28", "optimizer=sgd", "optimizer.lr=0.05")
    printed = live.run(folder, "train", *live.SAMPLE, "model=mlp", *steep, code=2)
    run, client = live.only_run(folder), MlflowClient(tracking_uri=live.store(folder))
    noted = json.loads((run / "run.json").read_text())
    assert noted["status"] == "failed"
    (stored,) = live.mlflow_runs(client)
    assert stored.info.status == "FAILED"
    reason = stored.data.tags["failure"]
    assert reason == noted["reason"]
    last = len(live.table(run / "iterations.csv"))
    assert last > 41
    assert f"at iteration {last + 1} (learning rate 5e+26); training stopped there." in reason
    assert reason.endswith("Try a tenth of the rate: optimizer.lr=0.005")
    assert f"bestepoch: {reason}\n" in printed and "Traceback" not in printed
    # the epoch in which it happened is none, so it cannot be the best
    assert [row["epoch"] for row in live.table(run / "epochs.csv")] == ["1"]
    assert best_epoch(read_rows(run / "epochs.csv"), "val/loss", "min")["epoch"] == 1
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["epoch-0001.pt"]
    points = live.journal_points(run)
    assert all(math.isfinite(value) for curve in points.values() for _, value in curve)
    assert live.mlflow_points(client, stored.info.run_id) == points
    # the same command fails in the same way, in the same run
    assert f"bestepoch: {reason}\n" in live.run(folder, "train", *live.SAMPLE, "model=mlp", *steep, code=2)
    assert [r.info.status for r in live.mlflow_runs(client)] == ["FAILED"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_journal_tells_of_the_first_bad_loss_once_it_has_looked(value: float, tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal._closing.set()  # nothing is looked at before the test says so
    journal._thread.join()
    for iteration, loss in ((1, 0.5), (2, value), (3, math.nan)):
        journal.log_iteration(iteration, 1, torch.tensor(loss), 0.1 * iteration)
    assert journal.not_finite is None
    journal.flush()
    assert journal.not_finite is not None
    assert journal.not_finite[:2] == (2, 0.2)
    assert str(journal.not_finite[2]) == str(value)
    journal.log_iteration(4, 1, torch.tensor(value), 0.4)
    journal.close()
    assert journal.not_finite[0] == 2
    assert [str(row["train/loss"]) for row in read_rows(tmp_path / "iterations.csv")] == [
        *("0.5", str(value), "nan", str(value)),
    ]


@dataclasses.dataclass
class LossesStay:
    """Passes on each loss as a tensor, as it is on a GPU; the ``bad``-th is no number."""

    told: StepCallback
    bad: int

    def on_step_end(self, iteration: int, loss: Any, lr: float, grad_norm: Any) -> None:
        self.told.on_step_end(iteration, torch.tensor(math.nan if iteration == self.bad else loss), lr, grad_norm)

    def switch_section(self, section: str) -> None:
        self.told.switch_section(section)


@pytest.fixture
def as_on_a_gpu(sample: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """Trains with losses that are tensors, the ``bad``-th of them no number, though nothing stops the update."""
    monkeypatch.chdir(live.CHECKOUT)
    given = [*live.SAMPLE, "tracking.mlflow=false", "tracking.tensorboard=false", "model=mlp", "model.hidden=[8]"]
    inner = loop.train_epoch

    def fails(bad: int, every: str) -> Run:
        def train_epoch(*arguments: Any) -> None:
            *rest, callback = arguments
            inner(*rest, LossesStay(callback, bad))

        overrides = [*given, "train.epochs=3", "train.batch_size=450", f"checkpoint.every_seconds={every}"]
        settings = compose.load_config(overrides, False)[1]
        (tmp_path / "dvc.yaml").touch()
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            patch.setattr(loop, "train_epoch", train_epoch)
            with pytest.raises(UsageError, match=f"The loss is nan at iteration {bad} ") as caught:
                train(settings, sample, Session(overrides))
        run = Run.read(live.only_run(tmp_path))
        assert run.status == "failed"
        assert run.info["reason"] == str(caught.value)
        return run

    return fails


@pytest.mark.parametrize("every", ["1e-9", "0.02", "60"])
@pytest.mark.parametrize("bad", [1, PER_EPOCH + 4, 2 * PER_EPOCH])
def test_spoiled_weights_are_never_kept(bad: int, every: str, as_on_a_gpu: Callable[..., Run]) -> None:
    """Whether the state is saved after each update, now and then, or with the epoch alone."""
    run = as_on_a_gpu(bad, every)
    kept = [checkpoint.load(path)["iteration"] for path in checkpoint.list_states(run.folder)]
    assert all(iteration < bad for iteration in kept)
    if every == "1e-9":
        assert kept[:1] == [bad - 1][: bad - 1]
    whole = (bad - 1) // PER_EPOCH
    assert [row["epoch"] for row in read_rows(run.folder / "epochs.csv")] == list(range(1, whole + 1))
    assert sorted(path.name for path in run.folder.glob("checkpoints/*")) == [
        f"epoch-{epoch:04d}.pt" for epoch in range(1, whole + 1)
    ]
