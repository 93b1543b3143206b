"""`make ui` starts both servers, says where to look, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from mlflow import MlflowClient

import live
from bestepoch.base.errors import UsageError
from bestepoch.cli import servers

pytestmark = pytest.mark.xdist_group("ui")


def taken() -> socket.socket:
    """A port where somebody listens."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    return listener


@pytest.mark.parametrize("given", ["0", "65536", "-1", "five", "", "5000.5"])
@pytest.mark.parametrize("name", ["PORT", "TENSORBOARD_PORT"])
def test_what_is_no_port_is_said(name: str, given: str) -> None:
    with pytest.raises(UsageError, match=f"^{name} = {given} is not allowed: must be from 1 to 65535"):
        servers.pick_ports([f"{name}={given}"])


def test_a_port_in_use_is_said_when_asked_for_and_passed_over_when_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with taken() as listener:
        busy = listener.getsockname()[1]
        with pytest.raises(UsageError, match=f"PORT = {busy} is in use"):
            servers.pick_ports([f"PORT={busy}"])
    monkeypatch.setattr(servers, "_free", lambda port: port not in (5000, 5001, 6006))
    assert servers.pick_ports([]) == ["5002", "6007"]
    assert servers.pick_ports(["PORT=6007"]) == ["6007", "6008"], "not the same for both"
    assert servers.pick_ports(["TENSORBOARD_PORT=7000"]) == ["5002", "7000"]
    with pytest.raises(UsageError, match="both 7000"):
        servers.pick_ports(["PORT=7000", "TENSORBOARD_PORT=7000"])


@pytest.mark.parametrize("argument", ["5001", "port=5001", "PROT=5001", "--port=5001"])
def test_what_is_not_understood_is_not_passed_over(argument: str) -> None:
    with pytest.raises(UsageError, match=f"^{argument} is not understood. There are PORT and TENSORBOARD_PORT"):
        servers.pick_ports([argument])


def answers(url: str) -> bool:
    with contextlib.suppress(urllib.error.URLError, ConnectionError), urllib.request.urlopen(url, timeout=5) as answer:
        return bool(answer.status == 200)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_both_answer_until_it_is_ended_and_neither_does_after(tmp_path: Path, number: int) -> None:
    project = live.project(tmp_path)
    ports = []
    while len(set(ports)) < 2:
        ports = [live.free_port(), live.free_port()]
    given = [f"PORT={ports[0]}", f"TENSORBOARD_PORT={ports[1]}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "bestepoch.ui", *given],
        cwd=project,
        env=live.environment(project, http_proxy="http://127.0.0.1:9", no_proxy=""),  # it is not asked
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if line.startswith("Ctrl-C"):
            break
    addresses = [f"http://127.0.0.1:{port}" for port in ports]
    assert all(answers(address) for address in addresses), said
    assert f"{addresses[0]}/#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=best-epochs" in said
    assert "compareRunsMode=CHART&viewStateShareKey=learning-curves" in said and addresses[1] in said
    assert "viewStateShareKey=by-setting" in said and "viewStateShareKey=sweeps" in said
    os.kill(process.pid, number)
    assert process.wait(30) == 0
    time.sleep(0.5)
    assert not any(answers(address) for address in addresses)


@pytest.mark.slow
def test_of_a_server_with_its_own_ui_the_links_are_named(tmp_path: Path) -> None:
    project = live.project(tmp_path / "project")
    (tmp_path / "server").mkdir()
    server = live.Server(tmp_path / "server")
    server.start()
    try:
        printed = live.run(project, "ui", code=2, MLFLOW_TRACKING_URI=server.address)
    finally:
        server.kill()
    assert "is a server with its own UI" in printed and "Traceback" not in printed
    assert (
        f"{server.address}/#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=best-epochs" in printed
    )


@pytest.mark.slow
def test_a_store_that_does_not_answer_is_named(tmp_path: Path) -> None:
    nowhere = f"http://someone:secret@127.0.0.1:{live.free_port()}"
    printed = live.run(live.project(tmp_path), "ui", code=2, MLFLOW_TRACKING_URI=nowhere)
    assert printed.startswith("bestepoch: http://") and " does not answer: " in printed
    assert "Traceback" not in printed and "secret" not in printed


@pytest.mark.slow
def test_the_password_in_a_servers_address_is_printed_by_nobody(tmp_path: Path) -> None:
    project = live.with_split(live.project(tmp_path / "project"))
    (tmp_path / "server").mkdir()
    server = live.Server(tmp_path / "server")
    server.start()
    address = {"MLFLOW_TRACKING_URI": server.address.replace("://", "://someone:sesame%40@")}
    try:
        printed = live.run(
            project, "train", *live.SAMPLE, "model=mlp", "model.hidden=[16]", "train.epochs=1", **address
        )
        printed += live.run(project, "evaluate", f"run={live.only_run(project)}", **address)
        printed += live.run(project, "ui", code=2, **address)
        runs = live.mlflow_runs(MlflowClient(server.address))
    finally:
        server.kill()
    assert [run.info.status for run in runs] == ["FINISHED"]
    assert "is a server with its own UI" in printed and "sesame" not in printed
