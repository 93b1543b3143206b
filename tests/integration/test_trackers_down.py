"""A tracker that is down, locked or lost costs a gap that is filled later; never the run, never a point."""

from __future__ import annotations

import contextlib
import json
import logging
import shlex
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

import live
from bestepoch.base import errors
from bestepoch.runs.journal import Journal
from bestepoch.runs.run import Run
from bestepoch.runs.tables import Row
from bestepoch.tracking import cursor, worker
from bestepoch.tracking.tensorboard.run import TensorBoardTracker

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("trackers_down")]

TRAIN = (*live.SAMPLE, "model=mlp", "model.hidden=[32]", "train.epochs=3")
PER_EPOCH = 41
PASSWORD = "not%2Fto%40be"


@dataclass
class Untold:
    """A finished run of which MLflow has not been told, and what was said about that."""

    project: Path
    folder: Path
    printed: str


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return live.with_split(live.project(tmp_path_factory.mktemp("template") / "project"))


@pytest.fixture(scope="module")
def untold(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Untold:
    project = shutil.copytree(template, tmp_path_factory.mktemp("untold") / "project")
    nowhere = f"http://ada:{PASSWORD}@127.0.0.1:{live.free_port()}"
    printed = live.run(project, "train", *TRAIN, "tracking.drain_seconds=6", MLFLOW_TRACKING_URI=nowhere)
    return Untold(project, live.only_run(project), printed)


@pytest.fixture
def run(untold: Untold, tmp_path: Path) -> Path:
    """That run, in a copy of its project which the test may change."""
    shutil.copytree(untold.project, tmp_path / "project")
    return live.only_run(tmp_path / "project")


def sync(run: Path, *overrides: str, **more: str) -> str:
    """What a person is told to type, in the project of the run."""
    return live.run(run.parents[1], "sync", f"run=runs/{run.name}", *overrides, **more)


def has_everything(uri: str, run: Path) -> None:
    client = MlflowClient(tracking_uri=uri)
    (stored,) = live.mlflow_runs(client)
    assert (stored.info.run_name, stored.info.status) == (run.name, "FINISHED")
    assert live.mlflow_points(client, stored.info.run_id) == live.journal_points(run)


def test_training_ends_well_without_mlflow_and_warns_once(untold: Untold) -> None:
    journal = live.journal_points(untold.folder)
    assert [step for step, _ in journal["train/loss"]] == list(range(1, 3 * PER_EPOCH + 1))
    assert [step for step, _ in journal["val/loss"]] == [1, 2, 3]
    noted = json.loads((untold.folder / "run.json").read_text())
    assert noted["status"] == "finished"
    assert "mlflow" not in noted
    # once, however often it is tried; on a machine that is too busy to try at all, only what stands at the end
    assert untold.printed.count("warning: MLflow does not take") <= 1
    assert untold.printed.count("warning: MLflow has not taken everything") == 1
    assert "Traceback" not in untold.printed
    assert "retry" not in untold.printed.lower(), "the transport's own chatter"


def test_no_password_is_shown_or_written_down(untold: Untold) -> None:
    told = live.run(
        *(untold.project, "sync", f"run=runs/{untold.folder.name}"),
        code=2,
        MLFLOW_TRACKING_URI=f"http://ada:{PASSWORD}@127.0.0.1:{live.free_port()}",
    )
    assert "MLflow does not take the run's data" in told
    words = [word.encode() for word in ("ada:", PASSWORD, "not/to@be")]
    texts = [untold.printed.encode(), told.encode()]
    texts += [path.read_bytes() for path in untold.project.rglob("*") if path.is_file() and ".git" not in path.parts]
    assert len(texts) > 100
    assert not [text for text in texts for word in words if word in text]


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://host:5000/x", "http://host:5000/x"),
        ("http://ada:secret@host:5000", "http://host:5000"),
        ("http://ada:se@cr/et@host/api/x is down", "http://host/api/x is down"),
        ("sqlite:////home/ada@work/mlflow.db", "sqlite:////home/ada@work/mlflow.db"),
        ("sqlite:///ada@work/mlflow.db", "sqlite:///ada@work/mlflow.db"),
    ],
)
def test_what_is_shown_of_an_address(address: str, shown: str) -> None:
    assert errors.redact_credentials(address) == shown


class Moody:
    """A tracker that takes rows or raises, as the test says."""

    name = "Moody"

    def __init__(self) -> None:
        self.cursor: dict[str, Any] = {}
        self.taken: list[int] = []
        self.down = False
        self.refused = 0
        self.ended: list[str] = []

    def open(self) -> None:
        pass

    def write(self, iterations: list[Row], epochs: list[Row]) -> None:
        if self.down:
            self.refused += 1
            raise ConnectionError("nobody there\nand a page about it")
        self.taken += [int(row["iteration"]) for row in iterations]

    def close(self, status: str) -> None:
        self.ended.append(status)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_each_time_it_goes_down_there_is_one_warning_and_later_no_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker, "DELIVERY_INTERVAL_S", 0.01)
    monkeypatch.setattr(worker, "MAX_RETRY_PAUSE_S", 0.05)
    monkeypatch.setattr(cursor, "MAX_ROWS_IN_MEMORY", 7)
    monkeypatch.setattr(logging.getLogger("bestepoch"), "propagate", True)
    journal, tracker = Journal(tmp_path), Moody()
    brought = worker.TrackerThread(tracker, tmp_path)
    brought.start()
    for done, down, warnings in ((0, False, 0), (20, True, 1), (40, False, 1), (60, True, 2)):
        tracker.down, tracker.refused = down, 0
        for i in range(done + 1, done + 21):
            journal.log_iteration(i, 1, 0.5, 0.1)
        journal.flush()
        if down:
            until(lambda: tracker.refused >= 3)
        else:
            until(lambda done=done: tracker.taken == [*range(1, done + 21)])
        assert len(caplog.records) == warnings
    assert "Moody does not take the run's data (nobody there). Training goes on" in caplog.records[-1].getMessage()
    brought.finish("finished")
    assert not brought.complete(0.2)
    assert tracker.ended == []
    tracker.down = False
    assert brought.complete(20)
    journal.close()
    assert tracker.taken == list(range(1, 81))
    assert tracker.ended == ["finished"]
    # where it is, for the next attempt
    place = json.loads((tmp_path / "state/moody.json").read_text())
    assert place["iterations"] == (tmp_path / "iterations.csv").stat().st_size


def test_the_other_tracker_has_everything_meanwhile(untold: Untold) -> None:
    assert live.tensorboard_points(untold.folder) == live.as_float32(live.journal_points(untold.folder))
    assert "TensorBoard has not taken everything" not in untold.printed


def test_what_to_type_is_said_and_brings_every_point_once(untold: Untold, run: Path, tmp_path: Path) -> None:
    (line,) = [line for line in untold.printed.splitlines() if "MLflow has not taken everything" in line]
    told = shlex.split(line.split("again: ")[1])
    assert told == ["python", "-m", "bestepoch.sync", f"run=runs/{run.name}"]
    uri = f"sqlite:///{tmp_path / 'back.db'}"
    printed = live.run(run.parents[1], "sync", *told[3:], MLFLOW_TRACKING_URI=uri)
    assert "MLflow: brought up to date" in printed
    assert "TensorBoard: has everything already" in printed
    has_everything(uri, run)
    (stored,) = live.mlflow_runs(MlflowClient(tracking_uri=uri))
    noted = json.loads((run / "run.json").read_text())
    assert stored.info.start_time == int(noted["started"] * 1000)
    assert stored.info.end_time == int(noted["ended"] * 1000)
    assert stored.data.params["model.hidden"] == "[32]"
    assert stored.data.tags["data.checksum"] == noted["data"]["checksum"]

    events = {path.name: path.read_bytes() for path in run.glob("events.*")}
    assert "MLflow: has everything already" in sync(run, MLFLOW_TRACKING_URI=uri)
    has_everything(uri, run)
    # even where it is forgotten what was sent, nothing is doubled
    (run / "state/mlflow.json").unlink()
    assert "MLflow: brought up to date" in sync(run, MLFLOW_TRACKING_URI=uri)
    has_everything(uri, run)
    assert {path.name: path.read_bytes() for path in run.glob("events.*")} == events


def test_a_store_that_was_lost_is_filled_anew(run: Path) -> None:
    sync(run)
    store = run.parents[1] / "mlflow.db"
    store.unlink()
    assert "MLflow: brought up to date" in sync(run)
    has_everything(f"sqlite:///{store}", run)


def test_deleted_event_files_come_back(run: Path) -> None:
    before = live.tensorboard_points(run)
    for path in run.glob("events.*"):
        path.unlink()
    printed = sync(run, "tracking.mlflow=false")
    assert "TensorBoard: brought up to date" in printed
    assert "MLflow" not in printed
    assert live.tensorboard_points(run) == before == live.as_float32(live.journal_points(run))


def test_a_part_that_is_missing_is_added_and_no_more(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer that was killed had told TensorBoard of an epoch and a half, and noted less or more than that."""
    whole = live.as_float32(live.journal_points(run))
    lines = {name: (run / name).read_text().splitlines(keepends=True) for name in ("iterations.csv", "epochs.csv")}
    for path in run.glob("events.*"):
        path.unlink()
    (run / "iterations.csv").write_text("".join(lines["iterations.csv"][:62]))
    (run / "epochs.csv").write_text("".join(lines["epochs.csv"][:2]))
    monkeypatch.chdir(run.parents[1])
    tracker = TensorBoardTracker(Run.read(run))
    assert cursor.deliver_pending(tracker, run, tracker.cursor)
    tracker.close("killed")
    assert [len(live.tensorboard_points(run)[key]) for key in ("lr", "val/loss")] == [61, 1]
    for name, text in lines.items():
        (run / name).write_text("".join(text))
    sync(run, "tracking.mlflow=false")
    assert live.tensorboard_points(run) == whole
    assert len(list(run.glob("events.*"))) == 2


def test_a_run_that_died_is_killed_in_the_store_when_it_is_brought_there(run: Path) -> None:
    noted = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**noted, "status": "running"}))
    sync(run)
    client = MlflowClient(tracking_uri=live.store(run.parents[1]))
    (stored,) = live.mlflow_runs(client)
    assert stored.info.status == "KILLED"


def test_a_run_that_is_being_trained_is_left_to_who_trains_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parents[1])
    training = Run.read(run)
    assert training.lock()
    try:
        printed = live.run(run.parents[1], "sync", f"run=runs/{run.name}", code=2)
    finally:
        training.close()
    assert f"runs/{run.name} is being trained now" in printed
    assert not (run.parents[1] / "mlflow.db").exists()


def opened_by(process: psutil.Process) -> set[str]:
    """Its files; none if it has ended since it was listed, as git does."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return {file.path for file in process.open_files()}
    return set()


def test_a_store_that_another_process_locks_for_seconds_loses_nothing(template: Path, tmp_path: Path) -> None:
    project = live.with_store(shutil.copytree(template, tmp_path / "project"))
    path = project / "mlflow.db"
    with live.locked(path) as release, live.started(project, "train", *TRAIN) as training:
        process = psutil.Process(training.process.pid)
        # the process beside training, which brings the journal to the trackers
        training.until(lambda: str(path) in {file for child in process.children() for file in opened_by(child)})
        # training needs no tracker to come to its end
        training.until(lambda: list(project.glob("runs/*/checkpoints/epoch-0003.pt")))
        time.sleep(3)
        assert training.process.poll() is None, "the end should wait for the store"
        release()
        assert training.end() == 0, training.printed()
        assert "has not taken everything" not in training.printed()
    folder = live.only_run(project)
    assert len(live.journal_points(folder)["lr"]) == 3 * PER_EPOCH
    has_everything(live.store(project), folder)
    assert live.tensorboard_points(folder) == live.as_float32(live.journal_points(folder))
