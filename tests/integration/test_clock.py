"""The end of each run says where its time went, and the parts add up to what a watch beside it shows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from mlflow import MlflowClient

import live
from bestepoch.runs.timing import SECTIONS, SectionTimer, process_age
from bestepoch.training.loop import EpochData, Learner, train_epoch
from bestepoch.training.loss import Objective

pytestmark = pytest.mark.xdist_group("clock")

TRAIN = [sys.executable, "-m", "bestepoch.train", *live.SAMPLE, "model=mlp"]
WITHIN = 0.02


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return live.with_store(live.with_split(live.project(tmp_path_factory.mktemp("clock"))))


class Watched(NamedTuple):
    said: list[str]
    seconds: float  # from the command until the shell asks for the next one
    info: dict[str, Any]


def watched(project: Path, *overrides: str) -> Watched:
    began = time.perf_counter()
    done = subprocess.run(
        [*TRAIN, *overrides], cwd=project, env=live.environment(project), stderr=subprocess.PIPE, text=True
    )
    seconds, said = time.perf_counter() - began, done.stderr.splitlines()
    assert done.returncode == 0, said
    run = Path(next(line for line in said if line.startswith("run ")).split()[1])
    return Watched(said, seconds, json.loads((project / "runs" / run / "run.json").read_text()))


@pytest.fixture(scope="module")
def long(project: Path) -> Watched:
    return watched(project, "train.epochs=60", "train.batch_size=20")


def test_each_second_is_on_one_account() -> None:
    began = time.perf_counter()
    clock = SectionTimer(age=1.5)
    time.sleep(0.02)
    clock.switch("data")
    time.sleep(0.03)
    with clock.section("checkpoints"):
        time.sleep(0.04)
    time.sleep(0.03)
    spent = clock.read()
    passed = time.perf_counter() - began
    assert sum(spent.values()) == pytest.approx(1.5 + passed, abs=0.005)
    assert spent["startup"] >= 1.52 and spent["data"] >= 0.06 and spent["checkpoints"] >= 0.04
    assert [spent[name] for name in ("forward_backward", "optimizer", "evaluation", "tracking")] == [0.0] * 4
    clock.merge({"data": 10.0, "of another version": 5.0})
    assert clock.read()["data"] == pytest.approx(10 + spent["data"], abs=0.05)


def test_an_error_leaves_the_account() -> None:
    clock = SectionTimer()
    clock.switch("data")
    with pytest.raises(OSError), clock.section("checkpoints"):
        raise OSError
    assert clock.current == "data"


def test_the_age_of_a_process_counts_from_its_start() -> None:
    code = "import time, bestepoch.runs.timing as t; time.sleep(0.5); print(t.process_age())"
    began = time.perf_counter()
    told = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert 0.5 <= told <= time.perf_counter() - began + 0.02
    assert process_age() > 0


def test_the_parts_add_up_to_the_wall_time(long: Watched) -> None:
    spent = long.info["time_by_section"]
    assert set(spent) == set(SECTIONS)
    assert all(seconds > 0 for seconds in spent.values())
    assert sum(spent.values()) == pytest.approx(long.seconds, rel=WITHIN)


def test_they_are_printed_in_the_end_with_the_memory(long: Watched) -> None:
    line = next(line for line in long.said if line.startswith("time "))
    whole, _, rest = line.removeprefix("time").strip().partition(" s: ")
    parts, _, memory = rest.partition("; ")
    assert {name: float(value) for name, value in (part.rsplit(" ", 1) for part in parts.split(", "))} == {
        shown: round(long.info["time_by_section"][account], 1) for account, shown in SECTIONS.items()
    }
    assert float(whole) == round(sum(long.info["time_by_section"].values()), 1)
    assert memory == f"{long.info['peak_memory'] / 1e6:,.0f} MB at the peak"
    assert 100e6 < long.info["peak_memory"] < 2e9


def test_the_first_iteration_is_told(long: Watched) -> None:
    (line,) = [line for line in long.said if line.startswith("start ")]
    told = re.fullmatch(r"start    (\d+\.\d) s from the command to the first iteration", line)
    assert told is not None
    assert float(told[1]) == pytest.approx(long.info["time_by_section"]["startup"], abs=0.1)


def test_mlflow_has_them(long: Watched, project: Path) -> None:
    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    metrics = client.get_run(long.info["mlflow"]["run_id"]).data.metrics
    for account, seconds in long.info["time_by_section"].items():
        # of tracking, the moment between the tracker's last word and its being heard is missing
        assert metrics[f"time/{account}"] == pytest.approx(seconds, abs=1.0 if account == "tracking" else 1e-6)
    assert metrics["time/total"] == pytest.approx(long.seconds, rel=WITHIN)
    assert metrics["memory/peak_mb"] == pytest.approx(long.info["peak_memory"] / 1e6)


def test_delivering_again_adds_nothing_to_them(long: Watched, project: Path) -> None:
    client, run_id = MlflowClient(f"sqlite:///{project / 'mlflow.db'}"), long.info["mlflow"]["run_id"]
    live.run(project, "sync", f"run=runs/{long.info['name']}")
    told = [key for key in client.get_run(run_id).data.metrics if key.startswith(("time/", "memory/"))]
    assert len(told) == len(SECTIONS) + 2
    assert all(len(client.get_metric_history(run_id, key)) == 1 for key in told)


def test_of_a_run_that_was_interrupted_the_parts_of_both_attempts_are_told(project: Path) -> None:
    overrides = ("train.epochs=15", "train.batch_size=20", "seed=1", "checkpoint.every_seconds=0.2")
    process = subprocess.Popen(
        [*TRAIN, *overrides], cwd=project, env=live.environment(project), stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("epoch  5/"):
            process.terminate()
            break
    rest = process.stderr.read()
    process.wait()
    first = re.search(r"^time +(\d+\.\d) s: start-up (\d+\.\d), ", rest, re.MULTILINE)
    assert first is not None, rest
    second = watched(project, *overrides)
    assert any("(resumed)" in line for line in second.said)
    whole, startup = (float(value) for value in first.groups())
    # what the first attempt spent after its last state, on ending the trackers' runs, is not in that state
    assert startup + 0.2 < second.info["time_by_section"]["startup"]
    assert second.seconds < sum(second.info["time_by_section"].values()) <= second.seconds * (1 + WITHIN) + whole


def test_memory_does_not_grow_with_the_epochs(long: Watched, project: Path) -> None:
    short = watched(project, "train.epochs=3", "train.batch_size=20", "seed=2")
    assert long.info["peak_memory"] < short.info["peak_memory"] + 15e6


@pytest.mark.skipif(sys.platform != "linux", reason="the system tells it otherwise")
def test_the_peak_is_this_processs_own_and_not_that_of_the_one_that_started_it() -> None:
    large = bytearray(b"x") * 400_000_000  # a notebook, say
    ask = "from bestepoch.runs.timing import peak_memory; print(peak_memory()); x = b'x' * 10**8; print(peak_memory())"
    printed = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout
    before, after = map(int, printed.split())
    assert 5e6 < before < 100e6
    assert 0.9e8 < after - before < 1.2e8
    assert len(large) == 400_000_000


def test_the_time_of_a_replayed_batch_is_that_of_its_passes() -> None:
    """Its data are part of what is replayed, and what the processor waits for is not them."""
    told: list[str] = []

    class Callback:
        def on_step_end(self, iteration: int, loss: float | torch.Tensor, lr: float, grad_norm: object) -> None:
            pass

        def switch_section(self, section: str) -> None:
            told.append(section)

    network = torch.nn.Linear(1, 2)
    graph: Any = lambda _work, _index, _augment: torch.tensor([0.5])  # noqa: E731
    learner = Learner(network, Objective(0.0, 0.0, ()), torch.optim.SGD(network.parameters()), graph)
    unchanged: Any = lambda images, _index: images  # noqa: E731
    data = EpochData(torch.zeros(2, 1), torch.zeros(2, dtype=torch.long), [torch.arange(2)] * 2, unchanged)
    train_epoch(learner, data, lambda _: 0.1, 1, Callback())
    assert told == ["data", *["forward_backward", "optimizer", "tracking", "data"] * 2]
