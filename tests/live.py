"""A copy of the project to train in for real, and what its runs left there, read without the project's own readers."""

from __future__ import annotations

import atexit
import contextlib
import csv
import functools
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
# small and repeatable: 4,050 training, 450 validation and 500 test images, no network
# and in the precision that every processor has
SAMPLE = ("data=mnist_sample", "device.name=cpu", "device.threads=1", "device.precision=float32")
CPUINFO = Path("/proc/cpuinfo")
MULTIPLIES_BFLOAT16 = CPUINFO.exists() and bool(
    {"amx_bf16", "avx512_bf16"} & set(CPUINFO.read_text(encoding="utf-8").split())
)
PER_ITERATION = {"train/loss", "lr", "train/grad_norm"}
PER_EPOCH = {"val/loss", "val/accuracy", "train/epoch_loss", "train/eval_loss", "train/eval_accuracy"}
# nobody is asked to sign a test's commit, and nobody's hooks run; what else is set stays, such as safe.directory
GIT = {
    "GIT_CONFIG_COUNT": "2",
    "GIT_CONFIG_KEY_0": "commit.gpgsign",
    "GIT_CONFIG_VALUE_0": "false",
    "GIT_CONFIG_KEY_1": "core.hooksPath",
    "GIT_CONFIG_VALUE_1": os.devnull,
}
# the keys that every run.json has, for runs that no training made
RECORD: dict[str, Any] = {
    "name": "a-run",
    "uuid": "0",
    "fingerprint": "0",
    "status": "finished",
    "config": {},
    "code": {},
    "data": {},
    "git": {},
    "environment": {},
    "started": 0.0,
}
CLOCK = {"time", "seconds"}  # the columns that no two runs have in common


def project(folder: Path) -> Path:
    """The files that git knows or would take, as they are now, in a repository of their own; nothing uncommitted."""
    listed = git(CHECKOUT, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in filter(None, listed.split("\0")):
        if (CHECKOUT / name).is_file() and not name.startswith("tests/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(CHECKOUT / name, folder / name)
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "-q", "-m", "a copy")
    return folder


def git(folder: Path, *arguments: str) -> str:
    """What a git command prints."""
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], env=environment(folder), capture_output=True, text=True, check=True
    )
    return done.stdout


@functools.cache
def _made_once() -> Path:
    """The sample, fetched and split, and an MLflow store that holds its tables: the same for every copy."""
    from mlflow import MlflowClient

    from bestepoch.base.config import compose
    from bestepoch.splitting import ensure

    folder = Path(tempfile.mkdtemp(prefix="bestepoch-made-once-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with contextlib.chdir(project(folder)):
        ensure.ensure_split(compose.load_config([*SAMPLE], False)[1])
        MlflowClient(tracking_uri=store(folder))
    return folder


def with_split(folder: Path) -> Path:
    """The sample where training will find it, so that it need not be fetched and split in each test."""
    shutil.copytree(_made_once() / "data", folder / "data", dirs_exist_ok=True)
    return folder


def with_store(folder: Path) -> Path:
    """An MLflow store whose tables are there already, which costs a second and a half otherwise."""
    shutil.copyfile(_made_once() / "mlflow.db", folder / "mlflow.db")
    return folder


def store(folder: Path) -> str:
    """Where a project keeps its runs when nothing else is said."""
    return f"sqlite:///{folder / 'mlflow.db'}"


def environment(folder: Path, **more: str) -> dict[str, str]:
    """The environment of this process but for what steers the project; then the copy's code, and ``more``."""
    steering = ("MLFLOW_", "BESTEPOCH_", "DVC_", "GIT_", "HYDRA_", "MALLOC_", "GLIBC_", "PYTHON")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(steering)}
    return {**kept, **GIT, "PYTHONPATH": str(folder / "src"), "MLFLOW_DISABLE_TELEMETRY": "true", **more}


def command(stage: str, *arguments: str, processes: int = 1) -> list[str]:
    """A stage as a person starts it, with this Python; on several processes by torchrun."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [sys.executable, *(torchrun if processes > 1 else []), "-m", f"bestepoch.{stage}", *arguments]


def run(
    folder: Path,
    stage: str,
    *arguments: str,
    at: Path | None = None,
    code: int = 0,
    processes: int = 1,
    seconds: float = 180,
    **more: str,
) -> str:
    """Run a stage to its end, which must be ``code``; what it printed, errors and output together."""
    done = subprocess.run(
        command(stage, *arguments, processes=processes),
        cwd=at or folder,
        env=environment(folder, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == code, done.stdout
    return done.stdout


def python(code: str, **more: str) -> str:
    """What a program that uses the project prints, run in the checkout."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=CHECKOUT, env=environment(CHECKOUT, **more), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Started:
    """A stage that runs beside the test."""

    def __init__(self, folder: Path, stage: str, *arguments: str, processes: int = 1, **more: str) -> None:
        # to a file: nobody reads along, and a full pipe would stop it
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
        self.process = subprocess.Popen(
            command(stage, *arguments, processes=processes),
            cwd=folder,
            env=environment(folder, **more),
            stdout=self._printed,
            stderr=subprocess.STDOUT,
        )

    def until(self, condition: Callable[[], Any], seconds: float = 90) -> None:
        """Wait for a moment of its life; an error when that does not come while it lives."""
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"it ended before that moment:\n{self.printed()}"
            assert time.monotonic() < end, f"that moment has not come in {seconds} s:\n{self.printed()}"
            time.sleep(0.002)

    def signal(self, number: int) -> int:
        """Send it while it lives and wait for the end; the exit code, as `subprocess` gives it."""
        assert self.process.poll() is None, f"it ended before the signal:\n{self.printed()}"
        self.process.send_signal(number)
        return self.end()

    def end(self) -> int:
        """Wait for the exit code."""
        return self.process.wait(timeout=180)

    def printed(self) -> str:
        """All it has said so far."""
        # by its own place: the one of the file is where the process goes on writing
        return os.pread(self._printed.fileno(), 1 << 24, 0).decode()

    def close(self) -> None:
        """Nothing of it is left."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._printed.close()


class Server:
    """A real MLflow server with a store of its own. Killed and started again, it is at the same address."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, wait: bool = True) -> None:
        """Until it answers, unless told not to wait."""
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)),
                    *("--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder / 'served.db'}"),
                    *("--artifacts-destination", str(self.folder / "served-artifacts")),
                ],
                cwd=self.folder,
                # without the eight processes for jobs that nobody gives it
                env=environment(self.folder, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        end = time.monotonic() + 90
        while wait and not self.answers():
            assert self.process.poll() is None and time.monotonic() < end, (self.folder / "log").read_text()
            time.sleep(0.1)

    def answers(self) -> bool:
        """Whether it is up."""
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.address}/health", timeout=2) as answer:
            return bool(answer.status == 200)
        return False

    def kill(self) -> None:
        """At once, with the processes that it started."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@contextlib.contextmanager
def started(folder: Path, stage: str, *arguments: str, processes: int = 1, **more: str) -> Iterator[Started]:
    """`Started`, which ends with the block at the latest."""
    it = Started(folder, stage, *arguments, processes=processes, **more)
    try:
        yield it
    finally:
        it.close()


def couriers(training: Started) -> list[Any]:
    """The processes beside training that bring its journal to the trackers."""
    import psutil

    found = []
    for process in psutil.Process(training.process.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # nor a zombie
            if "bestepoch.tracking.worker" in process.cmdline():
                found.append(process)
    return found


def free_port() -> int:
    """A port of this machine where nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def locked(database: Path) -> Iterator[Callable[[], object]]:
    """Nobody else can read or write a SQLite database until the block ends or what this yields is called."""
    holder = sqlite3.connect(database, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        yield holder.rollback
    finally:
        holder.close()


def only_run(folder: Path) -> Path:
    """The folder of the one run that the project holds."""
    found = [path.parent for path in (folder / "runs").glob("*/run.json")]
    assert len(found) == 1, found
    return found[0]


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file as they are written."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def numbers(run: Path) -> dict[str, list[tuple[str, ...]]]:
    """A run's two tables as text, without the clock's columns: what must be the same to the byte."""
    out = {}
    for name in ("iterations.csv", "epochs.csv"):
        rows = table(run / name)
        out[name] = [tuple(value for key, value in row.items() if key not in CLOCK) for row in rows]
        assert rows, f"{name} is empty"
    return out


def weights(run: Path) -> dict[tuple[str, str], bytes]:
    """Every tensor of every epoch's checkpoint, as bytes."""
    import torch

    out = {}
    for path in sorted((run / "checkpoints").glob("epoch-*.pt")):
        for name, tensor in torch.load(path, weights_only=True)["network"].items():
            out[path.name, name] = tensor.contiguous().numpy().tobytes()
    assert out, "no checkpoints"
    return out


Point = tuple[int, float]


def journal_points(run: Path) -> dict[str, list[Point]]:
    """The two tables as curves: name to (step, value), as every tracker must have them."""
    iterations, epochs = table(run / "iterations.csv"), table(run / "epochs.csv")
    curves = {key: [(int(row["iteration"]), float(row[key])) for row in iterations] for key in PER_ITERATION}
    return curves | {key: [(int(row["epoch"]), float(row[key])) for row in epochs] for key in PER_EPOCH}


def mlflow_points(client: Any, run_id: str) -> dict[str, list[Point]]:
    """Every point of a run's curves in an MLflow store, by step; doubled ones would show. Small pages, and all of them.

    What the run took (``time/...``, ``memory/...``) and its best epoch (``best/...``) are no curves and left out.
    """
    curves = {}
    for key in client.get_run(run_id).data.metrics:
        if key.startswith(("time/", "memory/", "best/")):
            continue
        page = client._tracking_client.store.get_metric_history(run_id, key, max_results=25)
        metrics = list(page)
        while page.token is not None:
            page = client._tracking_client.store.get_metric_history(run_id, key, 25, page.token)
            metrics += page
        # the client reads every page by itself
        assert len(client.get_metric_history(run_id, key)) == len(metrics)
        curves[key] = sorted((m.step, m.value) for m in metrics)
    return curves


def mlflow_runs(client: Any, experiment: str = "bestepoch") -> list[Any]:
    """All runs of the experiment."""
    found = client.get_experiment_by_name(experiment)
    return list(client.search_runs([found.experiment_id])) if found is not None else []


def tensorboard_points(run: Path) -> dict[str, list[Point]]:
    """Every point of a run's curves in its event files, as TensorBoard reads them and without its sampling.

    Its best epoch (``best/...``) is no curve and left out.
    """
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    events = EventAccumulator(str(run), size_guidance={SCALARS: 0})
    events.Reload()
    tags = [tag for tag in events.Tags()[SCALARS] if not tag.startswith("best/")]
    return {tag: sorted((e.step, e.value) for e in events.Scalars(tag)) for tag in tags}


def as_float32(curves: dict[str, list[Point]]) -> dict[str, list[Point]]:
    """What is left of the values in TensorBoard, which stores 32 bits."""
    import numpy as np

    return {key: [(step, float(np.float32(value))) for step, value in points] for key, points in curves.items()}
