"""A run's folder that was copied, as a backup is: the run goes on in its own folder, and the copy is no second run."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
from mlflow import MlflowClient

import live

pytestmark = [pytest.mark.slow]

EPOCHS = 12
TRAIN = (*live.SAMPLE, "model=mlp", "model.hidden=[8]", f"train.epochs={EPOCHS}")


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run that was killed, copied and then finished, and its copy, whose name is the first by the alphabet."""
    project = live.with_store(live.with_split(live.project(tmp_path_factory.mktemp("copies") / "project")))
    with live.started(project, "train", *TRAIN) as training:
        training.until(lambda: len(list(project.glob("runs/*/state/iteration-*.pt"))) == 2)
        training.signal(signal.SIGKILL)
    run = live.only_run(project)
    copy = shutil.copytree(run, run.with_name("a-copy"))
    live.run(project, "train", *TRAIN)
    return run, copy


def status(run: Path) -> str:
    return str(json.loads((run / "run.json").read_text())["status"])


def test_the_same_command_goes_on_in_the_original(copied: tuple[Path, Path]) -> None:
    run, copy = copied
    assert len(live.table(run / "epochs.csv")) == EPOCHS and status(run) == "finished"
    assert len(live.table(copy / "epochs.csv")) < EPOCHS and status(copy) == "running"
    assert len(list(run.parent.glob("*/run.json"))) == 2


def test_a_finished_original_does_not_send_the_command_into_the_copy(copied: tuple[Path, Path]) -> None:
    run, copy = copied
    before = copy.joinpath("run.json").read_bytes()
    live.run(run.parents[1], "train", *TRAIN, "tracking.mlflow=false")
    assert copy.joinpath("run.json").read_bytes() == before
    assert len(list(run.parent.glob("*/run.json"))) == 3


def test_sync_goes_by_the_folder_that_is_named(copied: tuple[Path, Path]) -> None:
    run, copy = copied
    project = run.parents[1]
    printed = live.run(project, "sync", "run=runs/a-copy")
    assert "from runs/a-copy" in printed
    assert f"runs/a-copy is a copy of runs/{run.name}; the two are one run in MLflow" in printed
    assert live.tensorboard_points(copy) == live.as_float32(live.journal_points(copy))
    client = MlflowClient(tracking_uri=live.store(project))
    (tracked,) = [each for each in live.mlflow_runs(client) if each.data.tags["folder"] == f"runs/{run.name}"]
    assert tracked.info.status == "FINISHED"
    assert live.mlflow_points(client, tracked.info.run_id) == live.journal_points(run)


def test_a_study_counts_a_run_and_its_copy_once(copied: tuple[Path, Path]) -> None:
    run, _ = copied
    printed = live.run(run.parents[1], "study", f"run=[runs/a-copy,runs/{run.name}]", "tracking.mlflow=false")
    assert f"runs/a-copy is the same run as runs/{run.name} and left out" in printed
    (table,) = run.parent.glob("studies/*/runs.csv")
    assert [row["run"] for row in live.table(table)] == [run.name]
