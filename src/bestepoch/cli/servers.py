"""The MLflow UI on the project's own store, and TensorBoard beside it, for this machine alone."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator

from bestepoch.base import paths
from bestepoch.base.config import compose
from bestepoch.base.errors import UsageError
from bestepoch.tracking.mlflow import store
from bestepoch.tracking.mlflow.views import BEST_EPOCHS, LEARNING_CURVES, view_link

DEFAULT_PORTS = {"PORT": 5000, "TENSORBOARD_PORT": 6006}
START_TIMEOUT_S = 120  # seconds that a server may take to start
# The curves before single numbers, and as they are: TensorBoard smooths by itself, and of a few epochs it then shows
# another lowest loss, at another epoch.
CURVES = f"?smoothing=0&tagFilter={urllib.parse.quote('^(val|train|lr)')}#timeseries"


def main(arguments: list[str]) -> None:
    """``python -m bestepoch.ui [PORT=5001] [TENSORBOARD_PORT=6007]``: start both, say where to look, end with Ctrl-C.

    Raises:
        UsageError: a port is none or in use, or the store is a server that has a UI of its own.
    """
    uri = store.store_uri()
    port, beside = _ports(arguments)
    number = store.ensure_experiment(store.make_client(uri), uri, str(compose.read_default("tracking.experiment")))
    views = {
        "best epochs": view_link(number, BEST_EPOCHS),
        "learning curves": view_link(number, LEARNING_CURVES, "CHART"),
    }
    if uri.startswith("http"):
        there = "".join(f"\n{name:<16} {uri.rstrip('/')}/{view}" for name, view in views.items())
        raise UsageError(f"MLFLOW_TRACKING_URI is a server with its own UI. Open{there}")
    here = ["--host", "127.0.0.1", "--port"]
    with (
        _server("mlflow", "server", "--backend-store-uri", uri, "--workers", "1", *here, port) as mlflow,
        _server("tensorboard.main", "--logdir", str(paths.main_checkout() / "runs"), *here, beside) as board,
        contextlib.suppress(KeyboardInterrupt),
    ):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        print("Starting: some seconds", flush=True)
        _wait(f"http://127.0.0.1:{port}/health", mlflow)
        _wait(f"http://127.0.0.1:{beside}", board)
        for name, view in views.items():
            print(f"{name:<16} http://127.0.0.1:{port}/{view}")
        print(f"{'TensorBoard':<16} http://127.0.0.1:{beside}/{CURVES}")
        print(f"{'store':<16} {uri}\nCtrl-C ends it.", flush=True)
        mlflow.wait()


def _ports(arguments: list[str]) -> list[str]:
    """Those that were asked for; in place of the others the usual ones, or where these are taken the next free ones."""
    asked: dict[str, str] = {}
    for line in arguments:
        name, _, given = line.partition("=")
        if name not in DEFAULT_PORTS:
            raise UsageError(
                f"{line} is not understood. There are {' and '.join(DEFAULT_PORTS)}, such as: make ui PORT=5001"
            )
        asked[name] = given
        if not given.isdigit() or not 0 < int(given) < 65536:
            raise UsageError(f"{name} = {given} is not allowed: must be from 1 to 65535, such as: make ui {name}=5001")
        if not _free(int(given)):
            raise UsageError(f"{name} = {given} is in use. Take another one, or leave it out for the next free one")
    if len(set(asked.values())) < len(asked):
        raise UsageError(f"PORT and TENSORBOARD_PORT are both {asked['PORT']}. Each server needs a port of its own")
    for name, usual in DEFAULT_PORTS.items():
        if name not in asked:
            asked[name] = str(next(n for n in range(usual, 65536) if str(n) not in asked.values() and _free(n)))
    return [asked["PORT"], asked["TENSORBOARD_PORT"]]


def _free(port: int) -> bool:
    with socket.socket() as listener, contextlib.suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        return True
    return False


@contextlib.contextmanager
def _server(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server in a session of its own, which ends with the block, and all that it has started with it."""
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # eight processes for jobs that nobody gives it
    server = subprocess.Popen(
        [sys.executable, "-m", *command],
        env=os.environ | quiet,
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


def _wait(url: str, server: subprocess.Popen[bytes]) -> None:
    """Until it answers.

    Raises:
        UsageError: it ended, or has not answered for long.
    """
    ask = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy knows what is on this machine
    end = time.monotonic() + START_TIMEOUT_S
    while True:
        with contextlib.suppress(OSError), ask.open(url, timeout=1):
            return
        if server.poll() is not None or time.monotonic() > end:
            raise UsageError(f"A server does not start. Why, it says itself: {shlex.join(server.args)}")  # type: ignore[arg-type]
        time.sleep(0.1)
