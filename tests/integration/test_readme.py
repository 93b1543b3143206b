"""Every command in the README does what it says, on a copy of the project with a small experiment."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from PIL import Image, ImageDraw

from live import CHECKOUT
from pipeline import BIN, commit, edit, environment, fresh_copy, metrics, run, trainings

README = (CHECKOUT / "README.md").read_text()
COMMANDS = [
    line.partition("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]
SERVE = "mlflow models serve -m models:/bestepoch-mnist@champion --env-manager local --port 5001"
SERVERS = {
    "make ui": "http://127.0.0.1:{port}/health",
    "make tensorboard": "http://127.0.0.1:{port}/",
    SERVE: "http://127.0.0.1:{port}/ping",
}
# the whole suite inside one of its tests would never end; that it is what `make test` starts is looked at
NOT_HERE = {"make test"}

pytestmark = pytest.mark.xdist_group("readme")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = fresh_copy(tmp_path_factory.mktemp("readme"))
    edit(folder / "params.yaml", "data: mnist ", "data: mnist_sample ")
    edit(folder / "params.yaml", "model: cnn ", "model: mlp ")
    edit(folder / "params.yaml", "epochs: 6 ", "epochs: 1 ")
    commit(folder)
    # .venv as make would find it once it is installed
    (folder / ".venv").mkdir()
    for part in ("bin", "lib", "pyvenv.cfg"):
        (folder / ".venv" / part).symlink_to(BIN.parent / part)
    (folder / ".venv/.installed").touch()
    return folder


def test_the_readme_names_each_way_in() -> None:
    for way in ("make repro", "make test", "dvc repro", "python -m bestepoch.train -m", "make ui", "mlflow run ."):
        assert any(command.startswith(way) for command in COMMANDS), way


def test_the_commands_run_in_the_order_of_the_readme(project: Path) -> None:
    for command in COMMANDS:
        if command in NOT_HERE or command in SERVERS:
            continue
        if "image.png" in command:
            picture = Image.new("L", (300, 400), 255)
            ImageDraw.Draw(picture).line([(200, 80), (190, 300)], 0, 20)
            picture.save(project / "image.png")
        run(project, *shlex.split(with_names(command, project)))
        if command.startswith("dvc exp run --queue"):
            assert "Queued" in run(project, "dvc", "queue", "status")
            run(project, "dvc", "queue", "remove", "--all")
        if command.startswith("dvc exp run -S"):
            run(project, "git", "checkout", "-q", ".")
    assert metrics(project)["test_accuracy"] > 0.5
    assert (project / "image.28x28.png").is_file()
    known = trainings(project)
    assert {r.data.params.get("optimizer") for r in known} >= {"sgd", "adamw"}
    parents = [r for r in known if r.data.tags.get("sweep") and "mlflow.parentRunId" not in r.data.tags]
    jobs = [[r for r in known if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id] for parent in parents]
    varied = [
        {tuple(r.data.params.get(key) for key in ("optimizer", "optimizer.lr", "seed", "split.fold")) for r in children}
        for children in jobs
    ]
    assert sorted(varied, key=str) == sorted(
        [
            {(name, lr, "0", None) for name in ("sgd", "adamw") for lr in ("0.01", "0.1")},
            {("adamw", "0.001", str(seed), None) for seed in range(5)},
            {("adamw", "0.01", "0", str(fold)) for fold in range(5)},
            {("adamw", "0.01", str(seed), None) for seed in (0, 1)},  # joblib
            {("adamw", "0.01", str(seed), None) for seed in (2, 3)},  # mlflow run
        ],
        key=str,
    )
    assert len(list((project / "runs").glob("*/*/study/study.json"))) == 4
    assert len(list((project / "conf/experiment").glob("sgd-adamw-lr0.01-0.1-*.yaml"))) == 1, "promoted"
    assert len(list((project / "runs/studies").glob("*/study.json"))) == 1
    assert all(r.info.status == "FINISHED" for r in known)
    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    number = known[0].info.experiment_id
    first, second = re.findall(r"^(?:params|metrics|tags)\..*$", README, re.MULTILINE)
    found = client.search_runs([number], first.replace("0.99", "0.5"))
    assert found
    assert all(r.data.params["optimizer"] == "adamw" and r.data.metrics["test/accuracy"] > 0.5 for r in found)
    found = client.search_runs([number], second.replace("'50'", "'100'"))
    assert found
    assert all(r.data.params["train.batch_size"] == "100" for r in found)


def with_names(command: str, project: Path) -> str:
    """A command as a person would type it who wants the newest of what there is."""

    def newest(kind: str) -> list[str]:
        paths = sorted((project / "runs").glob(kind), key=lambda path: path.stat().st_mtime, reverse=True)
        return [path.parent.name for path in paths]

    for named, kind, place in (
        ("sweeps/<name>", "sweeps/*/jobs.csv", 0),
        ("<name>", "*/run.json", 0),
        ("<one>", "*/run.json", 0),
        ("<another>", "*/run.json", 1),
    ):
        if named in command:
            command = command.replace(named, named.partition("<")[0] + newest(kind)[place])
    return command


@pytest.mark.parametrize("command", SERVERS)
def test_the_servers_answer_on_this_machine_alone(project: Path, command: str) -> None:
    assert command in COMMANDS
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    if command == SERVE:  # of a champion, which is there when evaluation has run
        run(project, "dvc", "repro")
        typed = command.replace("mnist@", "mnist_sample@").replace("5001", str(port))
    else:
        typed = f"{command} PORT={port}"
    # one server may answer before another does, and what was started says where to look once all of them do
    with serving(project, typed, SERVERS[command].format(port=port), says=f"127.0.0.1:{port}"):
        pass


@contextlib.contextmanager
def serving(project: Path, command: str, url: str, says: str) -> Iterator[None]:
    """Once the address answers and the command has said ``says``; an error where one of them does not come."""
    log = project / "server.log"
    with log.open("w") as out:
        server = subprocess.Popen(
            shlex.split(command),
            cwd=project,
            env=environment(),
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        for _ in range(240):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(url, timeout=1).close()
                if says in log.read_text():
                    break
            assert server.poll() is None, log.read_text()
            time.sleep(0.25)
        else:
            raise AssertionError(f"{url} does not answer, or {says} is not said:\n{log.read_text()}")
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def test_make_test_runs_the_suite(project: Path) -> None:
    assert "-m pytest -n 2 --dist loadgroup\n" in run(project, "make", "-n", "test")  # all of it


def test_tests_of_a_group_share_a_process_and_with_it_what_they_stand_on(tmp_path: Path) -> None:
    """Or every process makes the fixtures of every file, and tests that stand on each other are torn apart."""
    text = """
import os, pytest
pytestmark = pytest.mark.xdist_group("one")
@pytest.mark.parametrize("number", range(8))
def test_alone(number):
    with open("processes", "a") as file:
        file.write(f"{os.getpid()} ")
"""
    (tmp_path / "test_one.py").write_text(text)
    run(tmp_path, *shlex.split("python -m pytest -n 2 --dist loadgroup -p no:cacheprovider"))
    processes = (tmp_path / "processes").read_text().split()
    assert len(processes) == 8 and len(set(processes)) == 1


def test_each_target_of_make_is_in_its_help(project: Path) -> None:
    shown = run(project, "make")
    targets = re.findall(r"^([a-z]+):", (project / "Makefile").read_text(), re.MULTILINE)
    assert targets
    for target in targets:
        assert re.search(rf"^  make {target}\s+\S", shown, re.MULTILINE), target


def test_the_menus_of_the_readme_are_those_of_conf() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", README, re.MULTILINE)
    assert len(rows) == 6
    for menu, text in rows:
        named = set(re.findall(r"`(\w+)`", text.partition(", each")[0]))
        assert named == {path.stem for path in (CHECKOUT / "conf" / menu).glob("*.yaml")}


def test_what_the_readme_points_to_is_there() -> None:
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (CHECKOUT / link).is_file(), link
