"""MLflow goes away while training runs, in every way it can: a real server, a gate before it, and real kills."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

import live
import pipeline

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("outages")]

EPOCHS = 40
TRAIN = (*live.SAMPLE, "model=mlp", "model.hidden=[8]", f"train.epochs={EPOCHS}")
WARNING = "MLflow does not take the run's data"
# a server that hangs is given up after a second, and once more
HASTY = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "1", "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0"}
Weights = dict[tuple[str, str], bytes]


class Gate(ThreadingHTTPServer):
    """Before a server: lets requests through, answers them with an error, or not at all, as it is told."""

    daemon_threads = True

    def __init__(self, behind: int) -> None:
        super().__init__(("127.0.0.1", 0), _Passage)
        self.behind, self.mode, self.address = behind, "open", f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()


class _Passage(BaseHTTPRequestHandler):
    server: Gate

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.mode == "hangs":
            while self.server.mode == "hangs":
                time.sleep(0.05)
            return
        status, content = 500, b"{}"
        if self.server.mode == "open":
            behind = http.client.HTTPConnection("127.0.0.1", self.server.behind, timeout=30)
            behind.request(self.command, self.path, body, dict(self.headers))
            answer = behind.getresponse()
            status, content = answer.status, answer.read()
            behind.close()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_PUT = do_PATCH = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[live.Server]:
    """Down to begin with; a test that wants it up asks for `gate`."""
    server = live.Server(tmp_path_factory.mktemp("server"))
    yield server
    server.kill()


@pytest.fixture
def gate(server: live.Server) -> Iterator[Gate]:
    if server.process is None:
        server.start()
    gate = Gate(server.port)
    yield gate
    gate.mode = "broken"  # whoever hangs there is let go
    gate.shutdown()
    gate.server_close()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = live.with_store(live.with_split(live.project(tmp_path_factory.mktemp("template") / "project")))
    pipeline.edit(folder / "src/bestepoch/tracking/worker.py", "DELIVERY_INTERVAL_S = 2.0", "DELIVERY_INTERVAL_S = 0.2")
    pipeline.edit(folder / "src/bestepoch/tracking/worker.py", "MAX_RETRY_PAUSE_S = 30.0", "MAX_RETRY_PAUSE_S = 1.0")
    return folder


@pytest.fixture
def copy(template: Path, tmp_path: Path) -> Path:
    return shutil.copytree(template, tmp_path / "project")


@pytest.fixture(scope="module")
def untracked(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """What no tracker, and none that is down, may change."""
    copy = shutil.copytree(template, tmp_path_factory.mktemp("untracked") / "project")
    live.run(copy, "train", *TRAIN, "tracking.mlflow=false", "tracking.tensorboard=false")
    return live.weights(live.only_run(copy))


class Slow(live.Started):
    """A training that is stopped most of the time, so that what is done to its tracker happens in the midst of it."""

    def until(self, condition: Callable[[], Any], seconds: float = 90) -> None:
        """It moves on a little between one look and the next, and stands still afterwards."""

        def look() -> bool:
            self.process.send_signal(signal.SIGCONT)
            time.sleep(0.005)
            self.process.send_signal(signal.SIGSTOP)
            time.sleep(0.08)
            return bool(condition())

        super().until(lambda: list(self.folder.glob("runs/*/epochs.csv")))
        super().until(look, seconds)

    def __init__(self, folder: Path, *arguments: str, **more: str) -> None:
        super().__init__(folder, "train", *arguments, **more)
        self.folder = folder

    def end(self) -> int:
        """At full speed."""
        self.process.send_signal(signal.SIGCONT)
        return super().end()


@pytest.fixture
def training(copy: Path) -> Iterator[Callable[..., Slow]]:
    begun: list[Slow] = []

    def begin(*overrides: str, **more: str) -> Slow:
        begun.append(Slow(copy, *TRAIN, *overrides, **more))
        return begun[-1]

    yield begin
    for slow in begun:
        slow.close()


def taken(copy: Path, tracker: str, table: str = "iterations") -> int:
    """How many bytes of a table a tracker has noted as taken."""
    for path in copy.glob(f"runs/*/state/{tracker}.json"):
        return int(json.loads(path.read_text()).get(table, 0))
    return 0


def has_all(copy: Path, tracker: str) -> bool:
    """Of what the journal holds now: two epochs or more."""
    tables = {name: live.only_run(copy) / f"{name}.csv" for name in ("iterations", "epochs")}
    if len(live.table(tables["epochs"])) < 2:
        return False
    return all(taken(copy, tracker, name) == path.stat().st_size for name, path in tables.items())


def is_whole(copy: Path, uri: str, untracked: Weights) -> None:
    """The run ended as without trackers, and both trackers have each of its points once."""
    folder, client = live.only_run(copy), MlflowClient(tracking_uri=uri)
    points = live.journal_points(folder)
    assert [step for step, _ in points["lr"]] == list(range(1, 41 * EPOCHS + 1))
    assert [step for step, _ in points["val/loss"]] == list(range(1, EPOCHS + 1))
    assert live.weights(folder) == untracked
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"
    key = json.loads((folder / "run.json").read_text())["uuid"]
    (run,) = (run for run in live.mlflow_runs(client) if run.data.tags["bestepoch.key"] == key)
    assert (run.info.run_name, run.info.status) == (folder.name, "FINISHED")
    assert live.mlflow_points(client, run.info.run_id) == points
    assert live.tensorboard_points(folder) == live.as_float32(points)


def goes_on_without(training: Slow, copy: Path, warnings: int) -> None:
    """While MLflow is away: training is not held up, it is said once, and TensorBoard misses nothing."""
    training.until(lambda: training.printed().count(WARNING) == warnings)
    folder = live.only_run(copy)
    before = len(live.table(folder / "epochs.csv"))
    training.until(lambda: len(live.table(folder / "epochs.csv")) > max(before, 1))
    # it stands still now
    live.Started.until(training, lambda: has_all(copy, "tensorboard"))
    assert live.tensorboard_points(folder) == live.as_float32(live.journal_points(folder))
    assert taken(copy, "mlflow") < taken(copy, "tensorboard")


def is_synced_as_told(training: live.Started, copy: Path, *trackers: str, **more: str) -> None:
    """Of each tracker that could not take everything, and of no other, it is said once what to type; that helps."""
    told = [line for line in training.printed().splitlines() if "has not taken everything" in line]
    assert [line.split()[1] for line in told] == list(trackers)
    for line in told:
        command = line.split("When it answers again: ")[1].split()
        assert command == ["python", "-m", "bestepoch.sync", f"run=runs/{live.only_run(copy).name}"]
    live.run(copy, "sync", *command[3:], **more)


def test_a_server_that_comes_late_goes_comes_again_and_goes_for_good(
    training: Callable[..., Slow], copy: Path, server: live.Server, untracked: Weights
) -> None:
    server.kill()
    slow = training("tracking.drain_seconds=1", MLFLOW_TRACKING_URI=server.address, **HASTY)
    for outage in (1, 2):
        goes_on_without(slow, copy, outage)
        server.start()
        slow.until(lambda: has_all(copy, "mlflow"))
        server.kill()
    goes_on_without(slow, copy, 3)
    assert slow.end() == 0, slow.printed()
    assert slow.printed().count(WARNING) == 3
    server.start()
    is_synced_as_told(slow, copy, "MLflow", MLFLOW_TRACKING_URI=server.address)
    is_whole(copy, server.address, untracked)


@pytest.mark.parametrize("mode", ["broken", "hangs"])
def test_a_server_that_answers_with_errors_or_not_at_all_for_a_while(
    mode: str, training: Callable[..., Slow], gate: Gate, copy: Path, untracked: Weights
) -> None:
    slow = training(MLFLOW_TRACKING_URI=gate.address, **HASTY)
    slow.until(lambda: taken(copy, "mlflow"))
    gate.mode = mode
    goes_on_without(slow, copy, 1)
    gate.mode = "open"
    slow.until(lambda: has_all(copy, "mlflow"))
    assert slow.end() == 0, slow.printed()
    printed = slow.printed()
    assert printed.count(WARNING) == printed.count("warning") == 1
    assert "Traceback" not in printed
    is_whole(copy, gate.address, untracked)


@pytest.mark.parametrize("mode", ["broken", "hangs"])
def test_the_end_waits_for_a_server_no_longer_than_it_was_told(
    mode: str, training: Callable[..., Slow], gate: Gate, copy: Path, untracked: Weights
) -> None:
    slow = training("tracking.drain_seconds=2", MLFLOW_TRACKING_URI=gate.address, **HASTY)
    slow.until(lambda: taken(copy, "mlflow"))
    gate.mode = mode
    (courier,) = live.couriers(slow)
    slow.process.send_signal(signal.SIGCONT)
    live.Started.until(slow, lambda: list(copy.glob(f"runs/*/state/iteration-{41 * EPOCHS:09d}.pt")))
    before = time.monotonic()
    assert slow.end() == 0, slow.printed()
    assert 1.5 < time.monotonic() - before < 2 + 6
    courier.wait(5)  # it leaves no process that goes on trying
    assert slow.printed().count(WARNING) <= 1  # none where the end came first
    gate.mode = "open"
    is_synced_as_told(slow, copy, "MLflow", MLFLOW_TRACKING_URI=gate.address)
    is_whole(copy, gate.address, untracked)


def test_a_stopped_training_lets_go_of_its_run_before_a_server_that_hangs(
    training: Callable[..., Slow], gate: Gate, copy: Path, untracked: Weights
) -> None:
    began = ("tracking.drain_seconds=60",)
    slow = training(*began, MLFLOW_TRACKING_URI=gate.address, **HASTY)
    slow.until(lambda: taken(copy, "mlflow"))
    gate.mode = "hangs"
    slow.process.send_signal(signal.SIGTERM)
    slow.process.send_signal(signal.SIGCONT)
    record = live.only_run(copy) / "run.json"
    live.Started.until(slow, lambda: json.loads(record.read_text())["status"] == "killed")
    with live.started(copy, "train", *TRAIN, *began, MLFLOW_TRACKING_URI=gate.address, **HASTY) as again:
        again.until(lambda: "going on after iteration" in again.printed(), 30)
        assert slow.process.poll() is None, "it had nothing to wait for"
        gate.mode = "open"
        assert slow.end() == 128 + signal.SIGTERM
        assert again.end() == 0, again.printed()
    is_whole(copy, gate.address, untracked)


def test_an_outage_that_lasts_for_two_jobs_of_a_sweep_is_one_outage(template: Path, copy: Path) -> None:
    nowhere = f"http://127.0.0.1:{live.free_port()}"
    jobs = ("-m", *TRAIN[:-1], "train.epochs=2", "seed=1,2", "tracking.drain_seconds=3")
    printed = live.run(copy, "train", *jobs, MLFLOW_TRACKING_URI=nowhere, **HASTY)
    assert printed.count(WARNING) == 1
    assert printed.count("MLflow does not take the sweep's parent run") == 1
    runs = sorted(path.parent for path in copy.glob("runs/sweeps/*/*/run.json"))
    assert [live.table(folder / "epochs.csv")[-1]["epoch"] for folder in runs] == ["2", "2"]
    client = MlflowClient(tracking_uri=live.store(copy))
    for folder in runs:
        told = f"python -m bestepoch.sync run={folder.relative_to(copy)}"
        assert printed.count(f"warning: MLflow has not taken everything. When it answers again: {told}\n") == 1
        live.run(copy, "sync", *told.split()[3:])
    assert {run.info.run_name: live.mlflow_points(client, run.info.run_id) for run in live.mlflow_runs(client)} == {
        folder.name: live.journal_points(folder) for folder in runs
    }


def test_a_store_that_is_locked_beyond_the_end_is_brought_up_to_date_later(
    training: Callable[..., Slow], copy: Path, untracked: Weights
) -> None:
    slow = training("tracking.drain_seconds=1")
    slow.until(lambda: taken(copy, "mlflow"))
    with live.locked(copy / "mlflow.db"):
        assert slow.end() == 0, slow.printed()
    assert slow.printed().count(WARNING) <= 1  # SQLite waits by itself, maybe beyond the end
    is_synced_as_told(slow, copy, "MLflow")
    is_whole(copy, live.store(copy), untracked)


def test_a_courier_that_is_killed_is_replaced_and_nothing_comes_twice(
    training: Callable[..., Slow], copy: Path, untracked: Weights
) -> None:
    slow = training()
    for _ in range(2):
        before = min(taken(copy, "mlflow"), taken(copy, "tensorboard"))
        slow.until(lambda before=before: min(taken(copy, "mlflow"), taken(copy, "tensorboard")) > before)
        (courier,) = live.couriers(slow)
        courier.kill()
        slow.until(lambda courier=courier: live.couriers(slow) not in ([], [courier]))
    assert slow.end() == 0, slow.printed()
    assert "warning" not in slow.printed()
    is_whole(copy, live.store(copy), untracked)


def test_a_courier_that_dies_before_there_is_a_run_is_replaced(
    training: Callable[..., Slow], copy: Path, untracked: Weights
) -> None:
    slow = training()
    live.Started.until(slow, lambda: live.couriers(slow))
    (courier,) = live.couriers(slow)
    courier.kill()
    assert not list(copy.glob("runs/*/run.json"))  # training is still at its imports
    assert slow.end() == 0, slow.printed()
    assert "warning" not in slow.printed()
    is_whole(copy, live.store(copy), untracked)


def test_a_courier_that_dies_again_and_again_leaves_the_rest_to_sync_and_is_not_waited_for(
    training: Callable[..., Slow], copy: Path, untracked: Weights
) -> None:
    slow = training("tracking.drain_seconds=100")
    for _ in range(4):
        slow.until(lambda: live.couriers(slow))
        (courier,) = live.couriers(slow)
        courier.kill()
    slow.until(lambda: not live.couriers(slow))
    assert slow.end() == 0, slow.printed()
    assert json.loads((live.only_run(copy) / "run.json").read_text())["time_by_section"]["tracking"] < 50
    assert "Traceback" not in slow.printed()
    is_synced_as_told(slow, copy, "MLflow", "TensorBoard")
    is_whole(copy, live.store(copy), untracked)
