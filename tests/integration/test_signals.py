"""What becomes of a training whose DVC is killed, and of a run that died together with all that could tell of it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
from mlflow import MlflowClient

import live
import pipeline
from bestepoch.base import shutdown
from bestepoch.runs.run import Run
from bestepoch.tracking import worker

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("signals")]

EPOCHS = 40
TRAIN = (*live.SAMPLE, "model=mlp", "model.hidden=[8]", f"train.epochs={EPOCHS}")


def until(condition: Callable[[], Any], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not in {seconds} s"
        time.sleep(0.05)


def alive(project: Path) -> list[list[str]]:
    """The command lines of all processes that work in a project."""
    found = []
    for process in psutil.process_iter(["cwd", "cmdline"]):
        if process.info["cwd"] == str(project):
            found.append(process.info["cmdline"])
    return found


def trained(project: Path) -> tuple[Path, dict[str, Any], Any]:
    """The one run: its folder, its note and what MLflow has of it."""
    folder = live.only_run(project)
    (run,) = live.mlflow_runs(MlflowClient(tracking_uri=live.store(project)))
    return folder, json.loads((folder / "run.json").read_text()), run


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which `dvc repro` has only training left to do, some seconds of it."""
    folder = live.with_store(pipeline.fresh_copy(tmp_path_factory.mktemp("split") / "project"))
    pipeline.edit(folder / "params.yaml", "data: mnist ", "data: mnist_sample ")
    pipeline.edit(folder / "params.yaml", "model: cnn ", "model: mlp ")
    pipeline.edit(folder / "params.yaml", "epochs: 6 ", f"epochs: {EPOCHS} ")
    pipeline.edit(folder / "conf/config.yaml", "every_seconds: 30 ", "every_seconds: 0.05 ")
    pipeline.run(folder, "dvc", "repro", "split")
    return folder


@pytest.fixture(scope="module")
def uninterrupted(split: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = shutil.copytree(split, tmp_path_factory.mktemp("uninterrupted") / "project")
    pipeline.run(copy, "dvc", "repro", "train")
    return live.only_run(copy)


@pytest.mark.parametrize(("number", "shell"), [(signal.SIGTERM, "/bin/sh"), (signal.SIGKILL, "/bin/bash")])
def test_training_stops_when_its_dvc_is_killed_and_the_next_repro_goes_on(
    number: signal.Signals, shell: str, split: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(split, tmp_path / "project")
    environment = {**pipeline.environment(), "SHELL": shell}
    with (tmp_path / "said").open("w+") as said:
        repro = subprocess.Popen(
            ["dvc", "repro", "train"], cwd=copy, env=environment, stdout=said, stderr=subprocess.STDOUT
        )
        # MLflow has heard of it, and it is inside an epoch
        until(lambda: list(copy.glob("runs/*/state/mlflow.json")) and list(copy.glob("runs/*/checkpoints/epoch-0002*")))
        assert repro.poll() is None
        repro.send_signal(number)
        assert repro.wait() == -number
        until(lambda: not alive(copy), 15)
        said.seek(0)
        printed = said.read()
    assert "dvc is gone; stopping as well" in printed
    assert "stopped by SIGTERM; the same command goes on from here: dvc repro" in printed
    assert "Traceback" not in printed
    folder, noted, run = trained(copy)
    assert (noted["status"], run.info.status) == ("killed", "KILLED")
    client = MlflowClient(tracking_uri=live.store(copy))
    points = live.journal_points(folder)
    assert 0 < len(points["val/loss"]) < EPOCHS
    assert live.mlflow_points(client, run.info.run_id) == points
    assert not (copy / "results/train/run.json").exists()

    assert "(resumed)" in pipeline.run(copy, "dvc", "repro", "train")
    folder, noted, run = trained(copy)
    assert (noted["status"], run.info.status) == ("finished", "FINISHED")
    for place in (folder, copy / "results/train"):
        assert live.weights(place) == live.weights(uninterrupted)
        assert live.numbers(place) == live.numbers(uninterrupted)
    points = live.journal_points(folder)
    assert live.mlflow_points(client, run.info.run_id) == points
    assert live.tensorboard_points(folder) == live.as_float32(points)


def test_the_next_repro_waits_for_a_training_whose_dvc_is_gone(
    split: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """It stands still here, as on a busy machine; two runs of one identity would be left otherwise."""
    copy = shutil.copytree(split, tmp_path / "project")

    def repro() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            ["dvc", "repro", "train"], cwd=copy, env=pipeline.environment(), stdout=said, stderr=subprocess.STDOUT
        )

    with (tmp_path / "said").open("w+") as said:
        first = repro()
        until(lambda: list(copy.glob("runs/*/checkpoints/epoch-0002*")))
        (training,) = [
            process for process in psutil.Process(first.pid).children(True) if "train" in process.cmdline()[1:3]
        ]
        training.suspend()
        first.kill()
        first.wait()
        second = repro()
        until(lambda: "another process is at work on runs/" in (tmp_path / "said").read_text())
        training.resume()
        assert second.wait(timeout=120) == 0
    assert "(resumed)" in (tmp_path / "said").read_text()
    folder, noted, run = trained(copy)
    assert (noted["status"], run.info.status) == ("finished", "FINISHED")
    assert live.numbers(folder) == live.numbers(uninterrupted)
    assert live.weights(folder) == live.weights(uninterrupted)
    points = live.journal_points(folder)
    assert live.mlflow_points(MlflowClient(tracking_uri=live.store(copy)), run.info.run_id) == points
    assert live.tensorboard_points(folder) == live.as_float32(points)


@pytest.mark.parametrize("stage", ["fetch", "split", "train", "evaluate"])
def test_a_stage_that_outlives_its_dvc_from_the_start_does_not_begin(stage: str, split: Path, tmp_path: Path) -> None:
    """The next `dvc repro` may already be at work on the same files."""
    copy = shutil.copytree(split, tmp_path / "project")
    if stage == "evaluate":
        pipeline.edit(copy / "params.yaml", f"epochs: {EPOCHS} ", "epochs: 1 ")
        pipeline.run(copy, "dvc", "repro", "train")
    before = {path: path.stat().st_mtime_ns for path in copy.glob("data/*/*")}
    with (tmp_path / "said").open("w+") as said:
        command = ["dvc", "repro", "--single-item", "--force", stage]
        repro = subprocess.Popen(command, cwd=copy, env=pipeline.environment(), stdout=said, stderr=subprocess.STDOUT)
        until(lambda: any(words[1:3] == ["src/stage.py", stage] for words in alive(copy)))
        repro.kill()  # while the command is at its imports: its parent is not DVC any more when it looks
        repro.wait()
        until(lambda: not alive(copy), 15)
        said.seek(0)
        assert "dvc is gone; stopping as well" in said.read()
    made = {"fetch": "data/download/*", "split": "data/split/*.npz", "train": "runs/*/epochs.csv"}
    left = [path for path in copy.glob(made.get(stage, "results/evaluate/*.*")) if path.name != ".gitignore"]
    assert [path for path in left if path.stat().st_mtime_ns != before.get(path)] == []


@dataclass
class Named:
    """What `psutil` says of a process."""

    words: list[str]

    def name(self) -> str:
        return Path(self.words[0]).name

    def cmdline(self) -> list[str]:
        return self.words


@pytest.mark.parametrize(
    ("line", "dvc"),
    [
        ("dvc repro", True),
        ("/usr/bin/dvc repro train", True),
        ("/x/.venv/bin/python /x/.venv/bin/dvc exp run --temp", True),
        ("/x/bin/python3.11 -W ignore -X dev -u /x/bin/dvc exp run", True),
        ("python -m dvc repro", True),
        ("/x/bin/python3 -m dvc.daemon", True),
        ("/x/bin/python /x/bin/dvc exp exec-run --infofile /y/dvc/tmp/exps/run/1.run", True),
        ("/x/bin/python /x/bin/dvc queue-worker dvc-exp-ab12-1@localhost", True),
        ("/x/bin/python dvc.exe repro", True),
        ("/bin/sh -c dvc repro", False),
        ("/bin/sh /home/dvc", False),
        ("vim dvc", False),
        ("python -m pytest -k dvc", False),
        ("python train.py dvc", False),
        ("python -c print() dvc", False),
        ("python -u", False),
        ("python -m", False),
        ("python -W", False),
        ("/home/dvc/bin/python -m bestepoch.train", False),
        ("/usr/lib/systemd/systemd --user", False),
    ],
)
def test_which_process_is_dvc(line: str, dvc: bool) -> None:
    assert shutdown.is_dvc(cast(psutil.Process, Named(line.split()))) == dvc


def test_a_process_of_which_nothing_may_be_read_is_not_dvc(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Named(["dvc"])
    monkeypatch.setattr(other, "name", lambda: (_ for _ in ()).throw(psutil.AccessDenied(1)))
    assert not shutdown.is_dvc(cast(psutil.Process, other))


@pytest.fixture(scope="module")
def died(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose run was killed with the process that would have told MLflow so."""
    project = live.with_store(live.with_split(live.project(tmp_path_factory.mktemp("died") / "project")))
    with live.started(project, "train", *TRAIN, "train.epochs=1000") as training:
        training.until(lambda: list(project.glob("runs/*/state/mlflow.json")))
        training.process.send_signal(signal.SIGSTOP)  # or it would start another
        for beside in psutil.Process(training.process.pid).children():
            beside.kill()
        training.signal(signal.SIGKILL)
    until(lambda: not alive(project), 15)
    return project


def test_a_run_that_died_unheard_is_ended_when_another_training_starts(died: Path, tmp_path: Path) -> None:
    project = shutil.copytree(died, tmp_path / "project")
    store = f"sqlite:///{died / 'mlflow.db'}"  # which the run has noted
    folder, noted, run = trained(died)
    assert (noted["status"], run.info.status) == ("running", "RUNNING")
    client = MlflowClient(tracking_uri=store)
    live.run(project, "train", *TRAIN, "train.epochs=1", "seed=1", MLFLOW_TRACKING_URI=store)
    until(lambda: not alive(project), 15)  # the process beside training brings it, and need not be waited for
    run = client.get_run(run.info.run_id)
    assert run.info.status == "KILLED"
    folder = project / "runs" / folder.name
    assert json.loads((folder / "run.json").read_text())["status"] == "killed"
    # with all that it wrote before it died
    assert live.mlflow_points(client, run.info.run_id) == live.journal_points(folder)
    assert {r.info.run_name: r.info.status for r in live.mlflow_runs(client)} == {
        folder.name: "KILLED",
        next(p.name for p in (project / "runs").glob("*-s1-*")): "FINISHED",
    }


@pytest.mark.parametrize(
    ("who", "status"), [("a dead one", "killed"), ("of another host", "running"), ("trained now", "running")]
)
def test_a_run_that_may_be_alive_is_left_alone(
    who: str, status: str, died: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = shutil.copytree(died, tmp_path / "project")
    monkeypatch.chdir(project)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{died / 'mlflow.db'}")
    run = Run.read(live.only_run(project))
    if who == "of another host":
        run.update(environment={**run.info["environment"], "host": "elsewhere"})
    if who == "trained now":
        assert run.lock()
    before = (run.folder / "run.json").read_bytes()
    try:
        dead = [one.folder for one in worker.stale_runs()]
    finally:
        run.close()
    assert dead == ([run.folder] if status == "killed" else [])
    assert Run.read(run.folder).status == status
    assert ((run.folder / "run.json").read_bytes() == before) == (status == "running")
