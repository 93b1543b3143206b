"""A state or weights that lack something, or that the tables do not reach, are named and not trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bestepoch.base.errors import UsageError
from bestepoch.runs import checkpoint

# ten updates in each epoch
ITERATIONS = [f"{i},{(i + 9) // 10},0.5\n" for i in range(1, 31)]
EPOCHS = [f"{epoch},{10 * epoch},0.25\n" for epoch in (1, 2, 3)]


def state(iteration: int, **more: Any) -> dict[str, Any]:
    return {
        "network": {"weight": torch.zeros(2)},
        "optimizer": {"state": {}},
        "iteration": iteration,
        "evaluated": iteration % 10 == 0,
        "seconds": 0.5,
        "time_by_section": {},
        "rng": torch.get_rng_state(),
        **more,
    }


def write_tables(folder: Path, iterations: list[str], epochs: list[str]) -> None:
    (folder / "iterations.csv").write_text("iteration,epoch,train/loss\n" + "".join(iterations))
    (folder / "epochs.csv").write_text("epoch,iteration,val/loss\n" + "".join(epochs))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run with states after 15 and 20 iterations and both tables."""
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs/a-run"
    for iteration in (15, 20):
        checkpoint.save_state(folder, iteration, state(iteration))
    write_tables(folder, ITERATIONS[:23], EPOCHS[:2])
    return folder


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    messages: list[str] = []
    monkeypatch.setattr(checkpoint.log, "warning", lambda text, *values: messages.append(text % values))
    return messages


def resumed(run: Path) -> int:
    found = checkpoint.load_newest_state(run)
    return found["iteration"] if found is not None else 0


def test_the_newest_state_is_taken_when_it_is_whole_and_the_tables_reach_it(run: Path, said: list[str]) -> None:
    assert resumed(run) == 20
    # the epoch's row is written before the state that says so, and a kill may come between
    write_tables(run, ITERATIONS[:20], EPOCHS[:1])
    checkpoint.save_state(run, 20, state(20, evaluated=False))
    assert resumed(run) == 20
    # of several processes, each has its own random numbers
    several = state(20, evaluated=False, processes=[{"rng": torch.get_rng_state()}])
    del several["rng"]
    checkpoint.save_state(run, 20, several)
    assert resumed(run) == 20
    assert said == []


@pytest.mark.parametrize("key", ["network", "optimizer", "iteration", "evaluated", "seconds", "time_by_section", "rng"])
def test_a_state_that_lacks_something_is_passed_over(run: Path, said: list[str], key: str) -> None:
    spoiled = state(20)
    del spoiled[key]
    checkpoint.save_state(run, 20, spoiled)
    assert resumed(run) == 15
    place = "runs/a-run/state/iteration-000000020.pt"
    assert said == [f"warning: {place} has no {key}; going back to the one before"]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"iteration": 30}, " holds iteration 30, and its name says 20"),
        ({"optimizer": None}, " is damaged: its optimizer is NoneType"),
        ({"iteration": "20"}, " is damaged: its iteration is str"),
    ],
)
def test_a_state_that_holds_something_else_is_passed_over(
    run: Path, said: list[str], more: dict[str, Any], reason: str
) -> None:
    checkpoint.save_state(run, 20, {**state(20), **more})
    assert resumed(run) == 15
    assert said == [f"warning: runs/a-run/state/iteration-000000020.pt{reason}; going back to the one before"]


@pytest.mark.parametrize(
    ("iterations", "epochs", "reason", "iteration"),
    [
        (ITERATIONS[:19], EPOCHS[:2], "iterations.csv has no row of iteration 20", 15),
        ([*ITERATIONS[:19], ITERATIONS[20]], EPOCHS[:2], "iterations.csv has no row of iteration 20", 15),
        (ITERATIONS[:23], EPOCHS[:1], "epochs.csv has no row of epoch 2", 15),
        (ITERATIONS[:23], EPOCHS[1:], "epochs.csv has no row of epoch 1", 0),
        (ITERATIONS[:23], [], "epochs.csv has no row of epoch 1", 0),
        ([], [], "iterations.csv has no row of iteration 20", 0),
    ],
)
def test_a_state_that_the_tables_do_not_reach_is_passed_over(
    run: Path, said: list[str], iterations: list[str], epochs: list[str], reason: str, iteration: int
) -> None:
    write_tables(run, iterations, epochs)
    assert resumed(run) == iteration
    assert said[0] == f"warning: runs/a-run/state/iteration-000000020.pt: {reason}; going back to the one before"
    assert len(said) == (1 if iteration else 2)


def test_a_damaged_table_is_no_reason_to_begin_again(run: Path) -> None:
    write_tables(run, [*ITERATIONS[:19], "20,2,half\n"], EPOCHS[:2])
    with pytest.raises(UsageError, match=r"^runs/a-run/iterations\.csv, line 21: 'half' is no number"):
        checkpoint.load_newest_state(run)


def results(**more: Any) -> dict[str, Any]:
    values = {"losses": torch.zeros(3), "correct": torch.ones(3), "predicted": torch.zeros(3, dtype=torch.uint8)}
    return {"network": {}, "epoch": 2, "validation": {**values, **more.pop("validation", {})}, **more}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"network": {}, "epoch": 2}, "has no validation"),
        ({"epoch": 2, "validation": {}}, "has no network"),
        (results(epoch=3), "holds epoch 3, and its name says 2"),
        (results(validation={"correct": None}), "is damaged: its correct is NoneType"),
        (
            results(validation={"losses": torch.zeros(2), "correct": torch.zeros(2), "predicted": torch.zeros(2, 1)}),
            "is damaged: its validation results have the shapes",
        ),
    ],
)
def test_weights_that_lack_something_are_named(run: Path, content: dict[str, Any], reason: str) -> None:
    checkpoint.save(checkpoint.weights_path(run, 2), content)
    with pytest.raises(UsageError, match=rf"^runs/a-run/checkpoints/epoch-0002\.pt {reason}"):
        checkpoint.load_validation_results(run, 2)
    checkpoint.save(checkpoint.weights_path(run, 2), results())
    assert {key: len(values) for key, values in checkpoint.load_validation_results(run, 2).items()} == {
        "losses": 3,
        "correct": 3,
        "predicted": 3,
    }
