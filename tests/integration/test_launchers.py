"""Sweeps whose jobs run in other processes: by joblib, by submitit as on a Slurm cluster, and by Ray.

Whatever the launcher, and whoever is killed on the way, the results are those of a sweep in one process.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

import live
from bestepoch.base.config import compose
from bestepoch.fetching.download import fetch
from bestepoch.sweeps import launcher

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("launchers")]

EPOCHS = 60
PER_EPOCH = 41
TINY = ("data=mnist_sample", "device.name=cpu", "model=mlp", "model.hidden=[16]")
ONE = "device.threads=1"
TWO = ("optimizer=sgd,adamw", "optimizer.lr=0.01", f"train.epochs={EPOCHS}")
FOUR = ("optimizer.lr=0.01,1e12", "optimizer=sgd,adamw", f"train.epochs={EPOCHS}")  # the last two cannot train
JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}


def sweep_of(project: Path) -> Path:
    (folder,) = (project / "runs/sweeps").iterdir()
    return folder


def jobs_of(project: Path) -> dict[str, Path]:
    """The runs, by optimizer and rate: a folder's name tells only what varies in its sweep."""
    found = {}
    for path in (project / "runs").glob("sweeps/*/*/run.json"):
        chosen = json.loads(path.read_text())["config"]["optimizer"]
        found[f"{chosen['name']} {chosen['lr']:g}"] = path.parent
    return found


def outcome(project: Path) -> dict[str, tuple[str, ...]]:
    """The sweep's table, without the clock."""
    found = {}
    for row in live.table(sweep_of(project) / "jobs.csv"):
        chosen = dict(line.split("=") for line in row["overrides"].split() if line.startswith("optimizer"))
        job = f"{chosen['optimizer']} {float(chosen['optimizer.lr']):g}"
        assert job not in found
        found[job] = (row["status"], row["best_epoch"], row["val/loss"])
    return found


def is_as_in_one_process(project: Path, reference: Path, store: str | None = None) -> None:
    """The same table, weights and journals; in MLflow a parent, one child for each job, each point once."""
    there, wanted, table = jobs_of(project), jobs_of(reference), outcome(project)
    assert there.keys() == table.keys() and len(there) in (2, 4)
    assert len(list(sweep_of(project).glob("*/run.json"))) == len(there)  # none was begun anew in a folder of its own
    assert table == {job: row for job, row in outcome(reference).items() if job in there}
    client = MlflowClient(tracking_uri=store or live.store(project))
    runs = live.mlflow_runs(client)
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    children = {Path(run.data.tags["folder"]).name: run for run in runs if run is not parent}
    assert len(runs) == len(there) + 1 and children.keys() == {folder.name for folder in there.values()}
    assert parent.info.status == ("FINISHED" if len(there) == 2 else "FAILED")
    for job, folder in there.items():
        child = children[folder.name]
        good = job.endswith(" 0.01")
        noted = json.loads((folder / "run.json").read_text())
        assert (noted["status"], child.info.status) == (("finished", "FINISHED") if good else ("failed", "FAILED"))
        assert noted["environment"]["threads"] == 1
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.data.tags["sweep"] == sweep_of(project).name
        said = sweep_of(project) / f"{folder.name}.error.log"
        if not good:
            assert "bestepoch.base.errors.UsageError: The loss is nan" in said.read_text()
            continue
        assert not said.exists()
        assert live.numbers(folder) == live.numbers(wanted[job])
        assert live.weights(folder) == live.weights(wanted[job])
        points = live.journal_points(folder)
        assert len(points["val/loss"]) == EPOCHS
        assert live.mlflow_points(client, child.info.run_id) == points
        assert live.tensorboard_points(folder) == live.as_float32(points)


def epochs_of(project: Path, job: str) -> int:
    """Epochs that a job has trained; 0 where it has not begun."""
    with contextlib.suppress(LookupError, FileNotFoundError):
        return len(live.table(jobs_of(project)[job] / "epochs.csv"))
    return 0


def worker(project: Path, job: str) -> psutil.Process:
    """The process that trains a job: the one that holds its run's lock."""
    lock = str(jobs_of(project)[job] / ".lock")
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(file.path == lock for file in process.open_files()):
                return process
    raise AssertionError(f"nobody is at work on {job}")


def living(project: Path) -> list[psutil.Process]:
    """What works in the project."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.cwd() == str(project):
                found.append(process)
    return found


def until(condition: Callable[[], Any], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not in {seconds} s"
        time.sleep(0.02)


def went_on(run: Path, after: float) -> int:
    """How many iterations before that moment the run's record still holds: they were not trained anew."""
    return sum(float(row["time"]) < after for row in live.table(run / "iterations.csv"))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return live.with_store(live.with_split(live.project(tmp_path_factory.mktemp("empty") / "project")))


@pytest.fixture
def copy(project: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the project, in which nothing is left running."""
    folder = shutil.copytree(project, tmp_path / "project")
    yield folder
    for process in living(folder):
        with contextlib.suppress(psutil.Error):
            process.kill()


@pytest.fixture(scope="module")
def reference(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep in one process, one job after the other."""
    folder = shutil.copytree(project, tmp_path_factory.mktemp("reference") / "project")
    live.run(folder, "train", "-m", *TINY, ONE, *FOUR, code=1)
    is_as_in_one_process(folder, folder)
    return folder


@pytest.fixture
def short() -> Iterator[str]:
    """A folder for Ray, which makes sockets there: its name must be short. In the end nothing of Ray is left."""
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    yield folder
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(folder in word for word in process.cmdline()):
                process.kill()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def two_cores() -> Iterator[None]:
    """As on a machine with no more than two cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:2])
    yield
    os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("overrides", "cores", "threads"),
    [
        (["hydra/launcher=joblib"], 8, 2),  # n_jobs=-1 is as many as there are cores, but here are four jobs
        (["hydra/launcher=joblib"], 2, 1),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=-2"], 4, 1),  # all but one
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=1"], 8, 8),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], 8, 4),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], 7, 3),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=3"], 2, 1),  # more at once than cores
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=64"], 16, 4),  # and than jobs
        (["hydra/launcher=joblib", "device.threads=3"], 8, None),
        (["hydra/launcher=submitit_local"], 8, None),
        (["hydra/launcher=submitit_local", "hydra.launcher.cpus_per_task=3"], 8, 3),
        (["hydra/launcher=slurm"], 8, 4),
        (["hydra/launcher=slurm", "hydra.launcher.cpus_per_task=16"], 8, 16),
        (["hydra/launcher=slurm", "device.threads=3"], 8, None),
        (["hydra/launcher=ray"], 8, 1),
        (["hydra/launcher=ray", "+hydra.launcher.ray.remote.num_cpus=3"], 8, 3),
        ([], 8, None),
    ],
)
def test_jobs_at_once_share_the_cores(
    overrides: list[str], cores: int, threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "available_cores", lambda: cores)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")  # Slurm's
    plan = launcher.plan_multirun(["optimizer=sgd,adamw", "seed=0,1", *overrides])
    mine = [line for line in overrides if not line.lstrip("+").startswith("hydra")]
    assert plan.jobs is not None
    assert sorted(map(sorted, plan.jobs)) == sorted(
        sorted([f"optimizer={name}", f"seed={seed}", *mine]) for name in ("sgd", "adamw") for seed in (0, 1)
    )
    assert plan.threads == threads


def test_slurm_has_its_values_and_where_it_is_missing_that_is_said(copy: Path) -> None:
    shown = live.run(copy, "train", "--cfg", "hydra", "hydra/launcher=slurm", "hydra.launcher.partition=short")
    for line in (
        "submitit_launcher.SlurmLauncher",
        "timeout_min: 240",
        "max_num_timeout: 100",
        "signal_delay_s: 60",
        "cpus_per_task: 4",
        "array_parallelism: 64",
        "partition: short",
    ):
        assert f"{line}\n" in shown
    empty = copy.parent / "bin"
    empty.mkdir()
    said = live.run(copy, "train", "-m", *TINY, *FOUR, "hydra/launcher=slurm", code=2, PATH=str(empty))
    assert said.startswith("bestepoch: hydra/launcher=slurm hands its jobs to Slurm") and "sbatch" in said
    assert said.count("\n") == 1
    assert not (copy / "runs/sweeps").exists()


def test_joblib(copy: Path, reference: Path, two_cores: None) -> None:
    """Without a word on threads: two jobs on two cores have one each."""
    said = live.run(copy, "train", "-m", *TINY, *FOUR, *JOBLIB, code=1)
    assert "Traceback" not in said
    assert all("device.threads=1" in row["overrides"].split() for row in live.table(sweep_of(copy) / "jobs.csv"))
    is_as_in_one_process(copy, reference)


def test_joblib_killed_again_and_again(copy: Path, reference: Path) -> None:
    """The process that began the sweep, and one that trains, each by surprise; nothing trains on without a sweep."""
    command = ("-m", *TINY, ONE, *FOUR, *JOBLIB)
    jobs = ("sgd 0.01", "adamw 0.01")

    def further(sweep: live.Started, on: tuple[str, ...] = jobs) -> None:
        before = {job: epochs_of(copy, job) for job in on}
        sweep.until(lambda: all(epochs_of(copy, job) > before[job] + 1 for job in on))

    with live.started(copy, "train", *command) as sweep:
        further(sweep)
        assert sweep.signal(signal.SIGKILL) == -signal.SIGKILL
        until(lambda: not living(copy), 20)
        assert "the process that began the sweep is gone; stopping as well" in sweep.printed()
    assert jobs_of(copy).keys() == set(jobs)  # no worker has taken the next one
    for job in jobs:
        assert json.loads((jobs_of(copy)[job] / "run.json").read_text())["status"] == "killed"
        assert 0 < epochs_of(copy, job) < EPOCHS

    with live.started(copy, "train", *command) as sweep:
        further(sweep)
        worker(copy, "sgd 0.01").kill()
        assert sweep.end() == 1
        said = sweep.printed()
    assert "Traceback" not in said
    assert "bestepoch: The launcher gave up: A worker process" in said
    assert "The same command again goes on with what is not finished." in said
    assert "TerminatedWorkerError" in (sweep_of(copy) / "launcher.error.log").read_text()
    assert outcome(copy)["sgd 0.01"] == ("killed", "", "")
    until(lambda: not living(copy), 20)

    for number in (signal.SIGTERM, signal.SIGINT):
        with live.started(copy, "train", *command) as sweep:
            further(sweep, jobs[1:])
            assert sweep.signal(number) == 128 + number
            until(lambda: not living(copy), 20)
            said = sweep.printed()
        assert "Traceback" not in said
        assert "killed    lr0.01-adamw" in said and "running" not in said

    when = time.time()
    live.run(copy, "train", *command, code=1)
    assert not (sweep_of(copy) / "launcher.error.log").exists()
    for job in jobs:
        assert went_on(jobs_of(copy)[job], when) > PER_EPOCH
    is_as_in_one_process(copy, reference)


def test_submitit(copy: Path, reference: Path) -> None:
    said = live.run(copy, "train", "-m", *TINY, ONE, *FOUR, "hydra/launcher=submitit_local", code=1)
    assert "Traceback" not in said
    is_as_in_one_process(copy, reference)


def test_a_job_that_its_cluster_takes_the_machine_from_goes_on_by_itself(copy: Path, reference: Path) -> None:
    """SIGUSR2 is what Slurm is told to send, and submitit then queues the job again. SIGTERM comes to all of a job."""
    with live.started(copy, "train", "-m", *TINY, ONE, *TWO, "hydra/launcher=submitit_local") as sweep:
        sweep.until(lambda: epochs_of(copy, "sgd 0.01") > 2 and epochs_of(copy, "adamw 0.01") > 2)
        other = worker(copy, "adamw 0.01")
        other.terminate()
        job = worker(copy, "sgd 0.01")
        queue = job.parent()
        assert queue is not None
        queue.suspend()  # so that there is time to look
        when = time.time()
        job.send_signal(signal.SIGUSR2)
        until(lambda: job.status() == psutil.STATUS_ZOMBIE)
        run = jobs_of(copy)["sgd 0.01"]
        done = int(live.table(run / "iterations.csv")[-1]["iteration"])
        assert max(int(path.stem.partition("-")[2]) for path in (run / "state").glob("*.pt")) == done
        assert json.loads((run / "run.json").read_text())["status"] == "killed"
        left = time.time()
        queue.resume()
        assert sweep.end() == 0
        said = sweep.printed()
    assert "Traceback" not in said
    assert said.count("finished  sgd") == said.count("finished  adamw") == 1
    assert 2 * PER_EPOCH < done < EPOCHS * PER_EPOCH
    assert went_on(run, left) == done  # none of them was trained anew
    logs = "".join(path.read_text() for path in sweep_of(copy).glob(".submitit/*/*_log.err"))
    assert logs.count("Caught signal SIGUSR2") == logs.count("stopped by SIGUSR2") == 1
    assert logs.count("Bypassing signal SIGTERM") == 1
    assert went_on(jobs_of(copy)["adamw 0.01"], when) > 2 * PER_EPOCH
    is_as_in_one_process(copy, reference)


def test_a_worker_of_ray_is_killed_and_another_goes_on(copy: Path, reference: Path, short: str) -> None:
    here = ("+hydra.launcher.ray.init.num_cpus=2", f"+hydra.launcher.ray.init._temp_dir={short}")
    command = ("-m", *TINY, ONE, *TWO, "hydra/launcher=ray", *here)
    with live.started(copy, "train", *command, **RAY) as sweep:
        sweep.until(lambda: epochs_of(copy, "sgd 0.01") > 2)
        first = worker(copy, "sgd 0.01")
        when = time.time()
        first.kill()
        assert sweep.end() == 0
        said = sweep.printed()
    assert "Traceback" not in said
    assert said.count("finished  sgd") == said.count("finished  adamw") == 1
    run = jobs_of(copy)["sgd 0.01"]
    assert 2 * PER_EPOCH < went_on(run, when) < EPOCHS * PER_EPOCH
    is_as_in_one_process(copy, reference)


@pytest.fixture
def cluster(short: str) -> Iterator[str]:
    """Ray as it runs on other machines: it knows the package, and neither the project's folder nor its store."""
    shutil.copytree(live.CHECKOUT / "src", Path(short) / "site")
    address = f"127.0.0.1:{live.free_port()}"
    with (Path(short) / "said").open("w") as said:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2"),
                *(f"--port={address.rpartition(':')[2]}", "--node-ip-address=127.0.0.1", "--include-dashboard=false"),
                *(f"--temp-dir={short}", "--disable-usage-stats"),
            ],
            cwd=short,
            env=live.environment(Path(short), **RAY) | {"PYTHONPATH": str(Path(short) / "site")},
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        until(lambda: "Ray runtime started" in (Path(short) / "said").read_text() or process.poll() is not None)
        assert process.poll() is None, (Path(short) / "said").read_text()
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_ray_cluster_that_knows_neither_the_project_nor_its_store(
    copy: Path, reference: Path, cluster: str, tmp_path: Path
) -> None:
    store = f"sqlite:///{tmp_path / 'theirs.db'}"
    (copy / "mlflow.db").unlink()
    command = ("-m", *TINY, ONE, *FOUR, "hydra/launcher=ray")
    said = live.run(copy, "train", *command, code=1, RAY_ADDRESS=cluster, MLFLOW_TRACKING_URI=store, **RAY)
    assert "Traceback" not in said
    is_as_in_one_process(copy, reference, store)
    assert not (copy / "mlflow.db").exists()
    assert store not in said + (sweep_of(copy) / "multirun.yaml").read_text()  # it may hold a password


class Mirror(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, slowly, and notes who asked for what."""

    asked: Counter[str]

    def do_GET(self) -> None:
        self.asked[self.path.rpartition("/")[2]] += 1
        time.sleep(0.5)
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


def test_jobs_that_want_the_same_data_at_once_fetch_it_once(copy: Path, tmp_path: Path) -> None:
    files = tmp_path / "files"
    with contextlib.chdir(copy):
        settings = compose.load_config(["data=mnist_sample"], False)[1]
        fetch(settings.data, settings.fetch, files)
    names = {role: next(files.glob(f"*{part}*")).name for role, part in {
        "train_images": "train-images", "train_labels": "train-labels",
        "test_images": "test-images", "test_labels": "test-labels",
    }.items()}  # fmt: skip
    Mirror.asked = Counter()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Mirror, directory=str(files))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        (copy / "conf/data/mine.yaml").write_text(
            json.dumps({"kind": "idx", "name": "mine", "files": names,
                        "mirrors": [f"http://127.0.0.1:{server.server_port}/"]})
        )  # fmt: skip
        off = ("tracking.mlflow=false", "tracking.tensorboard=false")
        two = ("hydra/launcher=submitit_local", "hydra.launcher.cpus_per_task=2")
        tiny = ("data=mine", "device.name=cpu", "model=mlp", "model.hidden=[16]", "train.iterations=3")
        live.run(copy, "train", "-m", *tiny, "seed=0,1", *off, *two)
        server.shutdown()
    assert Mirror.asked == dict.fromkeys(names.values(), 1)
    runs = [json.loads(path.read_text()) for path in sweep_of(copy).glob("*/run.json")]
    assert [(run["data"]["name"], run["environment"]["threads"]) for run in runs] == [("mine", 2), ("mine", 2)]
    prepared = [path.name for path in (copy / "data/prepared").iterdir() if path.is_dir()]
    assert sum(name.startswith("mine-") for name in prepared) == 1
    assert [name for name in prepared if name.startswith(".")] == [".files"]
