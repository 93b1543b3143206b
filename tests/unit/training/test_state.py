"""A state of another network, or without its optimizer, is passed over before a part of it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bestepoch.base.config.compose import load_option
from bestepoch.base.errors import UsageError
from bestepoch.components.models.model_file import restore_network
from bestepoch.runs import checkpoint
from bestepoch.training.state import TrainingState

ITERATIONS = (5, 10)


def training(optimizer: str = "AdamW") -> TrainingState:
    """A small network whose optimizer has made one update, so that it keeps something of each weight."""
    torch.manual_seed(0)
    network = nn.Linear(4, 3)
    made: Any = getattr(torch.optim, optimizer)(network.parameters(), lr=0.1)
    network(torch.ones(2, 4)).sum().backward()
    made.step()
    return TrainingState(network, made, torch.device("cpu"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with the states after 5 and 10 iterations."""
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs/a-run"
    for iteration in ITERATIONS:
        state = training()
        state.iteration, state.evaluated = iteration, False
        state.save(run)
    rows = "".join(f"{i},1,0.5\n" for i in range(1, 11))
    (run / "iterations.csv").write_text("iteration,epoch,train/loss\n" + rows)
    (run / "epochs.csv").write_text("epoch,iteration,val/loss\n")
    return run


def reshaped(saved: dict[str, Any]) -> None:
    saved["network"]["weight"] = torch.zeros(3, 5)


def another_name(saved: dict[str, Any]) -> None:
    saved["network"]["other"] = saved["network"].pop("bias")


def no_tensor(saved: dict[str, Any]) -> None:
    saved["network"]["bias"] = 1.0


def empty_optimizer(saved: dict[str, Any]) -> None:
    saved["optimizer"] = {}


def fewer_weights(saved: dict[str, Any]) -> None:
    saved["optimizer"]["param_groups"][0]["params"] = [0]


def reshaped_moments(saved: dict[str, Any]) -> None:
    saved["optimizer"]["state"][0]["exp_avg"] = torch.zeros(3, 5)


def random_text(saved: dict[str, Any]) -> None:
    saved["rng"] = "none"


def of_two_processes(saved: dict[str, Any]) -> None:
    saved["processes"] = [{"rng": saved.pop("rng")}] * 2


WEIGHTS, OPTIMIZER, RANDOM = "weights are not those", "optimizer is not that", "random states are not those"
SPOILED = {
    reshaped: WEIGHTS,
    another_name: WEIGHTS,
    no_tensor: WEIGHTS,
    empty_optimizer: OPTIMIZER,
    fewer_weights: OPTIMIZER,
    reshaped_moments: OPTIMIZER,
    random_text: RANDOM,
    of_two_processes: RANDOM,
}


@pytest.mark.parametrize(("spoil", "reason"), SPOILED.items(), ids=[spoil.__name__ for spoil in SPOILED])
def test_a_state_of_another_training_is_passed_over(
    folder: Path, spoil: Callable[[dict[str, Any]], None], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(checkpoint.log, "warning", lambda text, *values: said.append(text % values))
    path = folder / "state/iteration-000000010.pt"
    saved = checkpoint.load(path)
    spoil(saved)
    checkpoint.save(path, saved)
    state = training()
    assert state.resume(folder)
    assert state.iteration == 5
    (line,) = said
    assert line.startswith(f"warning: runs/a-run/state/iteration-000000010.pt: its {reason} ")
    assert line.endswith("; going back to the one before")


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD", "RMSprop", "Adagrad", "NAdam"])
def test_a_state_of_the_same_training_is_taken(optimizer: str) -> None:
    state = training(optimizer)
    saved = {"network": state.network.state_dict(), "optimizer": state.optimizer.state_dict()}
    assert state.explain_misfit({**saved, "rng": torch.get_rng_state()}) is None


def test_weights_of_another_network_are_named_by_their_run() -> None:
    contents = {
        "run": "a-run",
        "epoch": 3,
        "shape": (28, 28),
        "classes": 10,
        "pixel_mean": 0.1,
        "pixel_std": 0.3,
        "model": load_option("model", "mlp").model_dump(),
        "network": {"weight": torch.zeros(10, 9)},
    }
    with pytest.raises(UsageError, match=r"^The weights of run a-run after epoch 3 are not those of its network"):
        restore_network(contents)
