"""A run that is evaluated while it trains, or after it was killed: it says so, and harms neither run nor registry."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

import live

pytestmark = [pytest.mark.slow]

TRAIN = (*live.SAMPLE, "model=mlp", "model.hidden=[8]", "train.epochs=2000")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return live.with_store(live.with_split(live.project(tmp_path_factory.mktemp("unfinished") / "project")))


@pytest.fixture(scope="module")
def client(folder: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=live.store(folder))


@pytest.fixture(scope="module")
def living(folder: Path) -> str:
    """What an evaluation of a run says in the middle of its training, which is killed afterwards."""
    with live.started(folder, "train", *TRAIN) as training:
        training.until(lambda: len(list(folder.glob("runs/*/checkpoints/epoch-*.pt"))) > 2)
        client = MlflowClient(tracking_uri=live.store(folder))
        training.until(lambda: live.mlflow_runs(client))
        training.process.send_signal(signal.SIGSTOP)  # it holds its run all the same, and takes no processor
        printed = live.run(folder, "evaluate", f"run=runs/{live.only_run(folder).name}")
        (run,) = live.mlflow_runs(client)
        assert run.info.status == "RUNNING"
        assert json.loads((live.only_run(folder) / "run.json").read_text())["status"] == "running"
    return printed


def models(client: MlflowClient) -> list[Any]:
    found = client.get_experiment_by_name("bestepoch")
    assert found is not None
    return list(client.search_logged_models([found.experiment_id]))


def test_a_run_that_trains_is_evaluated_as_far_as_it_is(living: str, folder: Path) -> None:
    assert "WARNING  this run is unfinished: it is being trained and has " in living
    assert " of 2000 epochs so far" in living
    page = (live.only_run(folder) / "evaluate/report.html").read_text()
    assert "Training is not complete</strong> (running)" in page


def test_a_model_of_an_unfinished_run_is_not_registered(living: str, client: MlflowClient) -> None:
    assert "model    not registered, because the run is unfinished" in living
    assert not client.search_model_versions()
    assert len(models(client)) == 1


def test_two_evaluations_of_a_killed_run_log_one_model(living: str, folder: Path, client: MlflowClient) -> None:
    assert living
    before, run = len(models(client)), live.only_run(folder)
    with live.started(folder, "evaluate", f"run=runs/{run.name}") as one:
        printed = [live.run(folder, "evaluate", f"run=runs/{run.name}")]
        assert one.end() == 0
        printed.append(one.printed())
    assert all("this run is unfinished: it was killed after " in text for text in printed)
    assert sum("another process is evaluating runs/" in text for text in printed) == 1
    assert len(models(client)) <= before + 1
    assert json.loads((run / "run.json").read_text())["status"] == "killed"
    assert [each.info.status for each in live.mlflow_runs(client)] == ["KILLED"]


def test_a_run_without_an_epoch_says_what_to_type(folder: Path, living: str) -> None:
    assert living
    run = live.only_run(folder)
    (run / "epochs.csv").write_text((run / "epochs.csv").read_text().splitlines(keepends=True)[0])
    printed = live.run(folder, "evaluate", f"run=runs/{run.name}", code=2)
    assert "has no finished epoch, so there is nothing to evaluate. Go on with it: python -m bestepoch." in printed
