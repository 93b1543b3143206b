"""Start servers on the loopback interface, and wait until they answer."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

from bestepoch.base.errors import UsageError

DEFAULT_PORTS = {"PORT": 5000, "TENSORBOARD_PORT": 6006}
START_TIMEOUT_S = 120


def pick_ports(arguments: list[str]) -> list[str]:
    """Return the requested port of each server, or by default the first free one from its usual port on.

    Raises:
        UsageError: a port is invalid, in use or given twice.
    """
    ports: dict[str, str] = {}
    for line in arguments:
        name, _, port = line.partition("=")
        if name not in DEFAULT_PORTS:
            raise UsageError(
                f"{line} is not understood. There are {' and '.join(DEFAULT_PORTS)}, such as: make ui PORT=5001"
            )
        ports[name] = port
        if not port.isdigit() or not 0 < int(port) < 65536:
            raise UsageError(f"{name} = {port} is not allowed: must be from 1 to 65535, such as: make ui {name}=5001")
        if not _free(int(port)):
            raise UsageError(f"{name} = {port} is in use. Take another one, or leave it out for the next free one")
    if len(set(ports.values())) < len(ports):
        raise UsageError(f"PORT and TENSORBOARD_PORT are both {ports['PORT']}. Each server needs a port of its own")
    for name, default in DEFAULT_PORTS.items():
        if name not in ports:
            ports[name] = str(next(n for n in range(default, 65536) if str(n) not in ports.values() and _free(n)))
    return [ports["PORT"], ports["TENSORBOARD_PORT"]]


def _free(port: int) -> bool:
    with socket.socket() as listener, contextlib.suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        return True
    return False


@contextlib.contextmanager
def run_server(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Python module as a server in a new process group, which is terminated when the block ends."""
    no_jobs = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # saves eight idle processes
    server = subprocess.Popen(
        [sys.executable, "-m", *command],
        env=os.environ | no_jobs,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def wait_until_up(url: str, server: subprocess.Popen[bytes]) -> None:
    """Wait until the server answers at `url`.

    Raises:
        UsageError: The server exited, or did not answer within `START_TIMEOUT_S` seconds.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy cannot reach this machine
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        with contextlib.suppress(OSError), opener.open(url, timeout=1):
            return
        if server.poll() is not None or time.monotonic() > deadline:
            raise UsageError(f"A server does not start. Why, it says itself: {shlex.join(server.args)}")  # type: ignore[arg-type]
        time.sleep(0.1)
