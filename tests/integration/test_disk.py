"""A disk that is full, and folders that may not be written: a clear end, and all that was written is still good."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

import live
from bestepoch.runs import checkpoint
from bestepoch.runs.tables import read_rows
from bestepoch.tracking.cursor import delivery_lock
from bestepoch.tracking.tensorboard.run import write_evaluation

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("disk")]

EPOCHS, PER_EPOCH = 30, 41
TRAIN = (
    *(*live.SAMPLE, "model=mlp", "model.hidden=[8]", f"train.epochs={EPOCHS}", "tracking.drain_seconds=5"),
    *("optimizer=sgd", "optimizer.momentum=0.0", "optimizer.nesterov=false"),  # keeps nothing, so states are small
)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return live.with_store(live.with_split(live.project(tmp_path_factory.mktemp("template") / "project")))


@pytest.fixture
def copy(template: Path, tmp_path: Path) -> Path:
    shutil.copytree(template, tmp_path / "project")
    (tmp_path / "project/runs").mkdir(exist_ok=True)
    return tmp_path / "project"


@pytest.fixture(scope="module")
def unhindered(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = shutil.copytree(template, tmp_path_factory.mktemp("unhindered") / "project")
    live.run(copy, "train", *TRAIN, "tracking.mlflow=false", "tracking.tensorboard=false")
    return live.only_run(copy)


def fails(copy: Path, said: str, *sweep: str, **more: Any) -> str:
    """The command ends with 2 and one line about a file; returns that file."""
    done = subprocess.run(
        live.command("train", *sweep, *TRAIN),
        cwd=copy,
        # where a file may not grow, Python would leave half of a module's bytecode, and the next import breaks on it
        env=live.environment(copy, PYTHONDONTWRITEBYTECODE="1"),
        capture_output=True,
        text=True,
        **more,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("bestepoch: ")]
    path, _, reason = line.removeprefix("bestepoch: ").partition(" cannot be written: ")
    assert reason.startswith(said), line
    return path


def is_intact(copy: Path, *, trained: bool = True) -> None:
    """The tables have whole rows without a hole, and what was saved can be loaded."""
    folder = next(copy.glob("runs/*/"))
    iterations, epochs = read_rows(folder / "iterations.csv"), read_rows(folder / "epochs.csv")
    assert [row["iteration"] for row in iterations] == list(range(1, len(iterations) + 1))
    assert [row["epoch"] for row in epochs] == list(range(1, len(epochs) + 1))
    assert bool(iterations) == trained
    for path in [*folder.glob("checkpoints/*"), *folder.glob("state/*.pt")]:
        checkpoint.load(path)
    assert not list(folder.glob("checkpoints/.*")), "half a file is left"


def goes_on(copy: Path, unhindered: Path) -> None:
    """The same command ends as if nothing had been in its way, and both trackers have each point once."""
    live.run(copy, "train", *TRAIN)
    folder, client = live.only_run(copy), MlflowClient(tracking_uri=live.store(copy))
    assert live.weights(folder) == live.weights(unhindered)
    assert live.numbers(folder) == live.numbers(unhindered)
    assert len(live.numbers(folder)["iterations.csv"]) == EPOCHS * PER_EPOCH
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"
    (run,) = live.mlflow_runs(client)
    assert run.info.status == "FINISHED"
    assert "failure" not in run.data.tags
    points = live.journal_points(folder)
    assert live.mlflow_points(client, run.info.run_id) == points
    assert live.tensorboard_points(folder) == live.as_float32(points)


@pytest.mark.parametrize(
    ("size", "name"),
    [
        (1_000, "run.json"),
        (30_000, "checkpoints/epoch-0001.pt"),
        (32_500, "state/iteration-000000041.pt"),
        (42_000, "iterations.csv"),
    ],
)
def test_a_file_that_may_not_grow_any_more_ends_it_with_a_word_on_which_and_what_to_do(
    size: int, name: str, copy: Path, unhindered: Path
) -> None:
    path = fails(copy, "File too large. ", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))
    assert path.startswith("runs/") and path.endswith(f"/{name}")
    is_intact(copy, trained=name != "run.json")
    goes_on(copy, unhindered)


@contextlib.contextmanager
def mounted(*how: str) -> Iterator[None]:
    """Something at a folder, which is given last; only root may do that, and not everywhere."""
    if os.geteuid() != 0 or subprocess.run(["mount", *how], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", how[-1]], check=True)


def test_a_disk_that_is_full_does_the_same_and_with_room_it_goes_on(copy: Path, unhindered: Path) -> None:
    with mounted("-t", "tmpfs", "-o", "size=300k", "runs", str(copy / "runs")):
        path = fails(copy, "No space left on device. ")
        assert path.startswith("runs/")
        is_intact(copy)
        subprocess.run(["mount", "-o", "remount,size=50m", str(copy / "runs")], check=True)
        goes_on(copy, unhindered)


def test_why_it_failed_is_forgotten_though_its_courier_holds_the_run_until_the_next_attempt_is_over(copy: Path) -> None:
    client = MlflowClient(tracking_uri=live.store(copy))
    with mounted("-t", "tmpfs", "-o", "size=300k", "runs", str(copy / "runs")):
        fails(copy, "No space left on device. ")
        (run,) = live.mlflow_runs(client)
        assert "No space left" in run.data.tags["failure"]
        subprocess.run(["mount", "-o", "remount,size=50m", str(copy / "runs")], check=True)
        folder = live.only_run(copy)
        with live.started(copy, "train", *TRAIN) as training:
            with delivery_lock(folder):
                training.until(lambda: len(live.table(folder / "epochs.csv")) == EPOCHS)
                time.sleep(1.0)  # until the courier has heard of the end
            assert training.end() == 0
    (run,) = live.mlflow_runs(client)
    assert run.info.status == "FINISHED"
    assert "failure" not in run.data.tags


@contextlib.contextmanager
def read_only(path: Path) -> Iterator[None]:
    """Root may write whatever the rights are, but not what is mounted for reading alone."""
    if os.geteuid() == 0:
        with mounted("--bind", str(path), str(path)):
            subprocess.run(["mount", "-o", "remount,bind,ro", str(path)], check=True)
            yield
        return
    modes = {each: stat.S_IMODE(each.stat().st_mode) for each in (path, *path.rglob("*"))}
    for each, mode in modes.items():
        each.chmod(mode & ~0o222)
    try:
        yield
    finally:
        for each, mode in modes.items():
            each.chmod(mode)


def content(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_a_sweep_on_a_full_disk_tells_of_its_jobs_all_the_same(copy: Path) -> None:
    with mounted("-t", "tmpfs", "-o", "size=16k", "runs", str(copy / "runs")):
        printed = live.run(copy, "train", "-m", *TRAIN, "seed=1,2", "tracking.mlflow=false", code=1)
    assert "Traceback" not in printed
    assert printed.count("cannot be written: No space left on device") >= 1
    assert "jobs.csv cannot be written" in printed


@pytest.mark.parametrize("there", ["nothing", "nothing, for a sweep", "an interrupted run"])
def test_a_folder_that_may_not_be_written_is_named_and_left_as_it_was(there: str, copy: Path, unhindered: Path) -> None:
    if there == "an interrupted run":
        shutil.copytree(unhindered, copy / "runs/before")
        noted = json.loads((unhindered / "run.json").read_text())
        (copy / "runs/before/run.json").write_text(json.dumps({**noted, "status": "running"}))
    before = content(copy / "runs")
    with read_only(copy / "runs"):
        said = "Read-only file system" if os.geteuid() == 0 else "Permission denied"
        path = fails(copy, f"{said}. Give this user", *(["-m", "seed=1,2"] if "sweep" in there else []))
    assert path.startswith("runs")
    assert content(copy / "runs") == before


def test_an_evaluation_needs_no_right_to_write_into_the_folder_of_runs(copy: Path) -> None:
    (prepared,) = copy.glob("data/prepared/mnist_sample-*")
    shutil.copytree(prepared, copy / "data/split", dirs_exist_ok=True)
    live.run(copy, "train", *TRAIN, "train.epochs=1", "publish=results/train", "tracking.mlflow=false")
    (copy / "results/evaluate").mkdir(parents=True, exist_ok=True)
    before = content(copy / "runs")
    with read_only(copy / "runs"):
        printed = live.run(copy, "evaluate", *live.SAMPLE, "tracking.mlflow=false")
    assert printed.count("warning: TensorBoard does not take the evaluation (") == 1
    assert "Traceback" not in printed
    for name in ("metrics.json", "report.html"):
        assert (copy / "results/evaluate" / name).is_file()
    assert content(copy / "runs") == before
    assert "warning" not in live.run(copy, "evaluate", *live.SAMPLE, "tracking.mlflow=false")


def test_an_evaluation_that_does_not_fit_into_tensorboard_leaves_the_earlier_one(tmp_path: Path) -> None:
    write_evaluation(tmp_path, {"test/loss": 0.5}, "the first", [])
    (written,) = tmp_path.iterdir()
    written = written.rename(tmp_path / written.name.replace("tfevents.", "tfevents.0"))  # as of an earlier process
    before = content(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_evaluation(tmp_path, {"test/loss": 0.25}, "the second" * 10_000, [])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert content(tmp_path) == before
    write_evaluation(tmp_path, {"test/loss": 0.25}, "the second", [])
    assert len(list(tmp_path.iterdir())) == 1 and not written.exists()


def test_a_store_that_may_not_be_written_costs_a_warning(copy: Path, unhindered: Path) -> None:
    with read_only(copy / "mlflow.db"):
        printed = live.run(copy, "train", *TRAIN)
    assert printed.count("warning: MLflow does not take the run's data") <= 1
    assert printed.count("warning: MLflow has not taken everything") == 1
    assert "Traceback" not in printed
    folder = live.only_run(copy)
    assert live.weights(folder) == live.weights(unhindered)
    live.run(copy, "sync", f"run=runs/{folder.name}")
    (run,) = live.mlflow_runs(client := MlflowClient(tracking_uri=live.store(copy)))
    assert live.mlflow_points(client, run.info.run_id) == live.journal_points(folder)
