"""Serve the MLflow UI on the project's store, and TensorBoard, on this machine alone."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import urllib.parse

from bestepoch.base.config.compose import read_default
from bestepoch.base.errors import UsageError, redact_credentials
from bestepoch.base.paths import main_checkout
from bestepoch.cli.launch import run_cli
from bestepoch.cli.servers import pick_ports, run_server, wait_until_up
from bestepoch.tracking.base import failure_reason
from bestepoch.tracking.mlflow.store import ensure_experiment, make_client, store_uri
from bestepoch.tracking.mlflow.views import BEST_EPOCHS, BY_SETTING, LEARNING_CURVES, SWEEPS, view_link

# TensorBoard smooths curves by default, which moves the lowest loss of a short run to another epoch.
CURVES = f"?smoothing=0&tagFilter={urllib.parse.quote('^(val|train|lr)')}#timeseries"


def main(arguments: list[str]) -> None:
    """Start both servers, print where to look, and end them with Ctrl-C."""
    uri = store_uri()
    port, board_port = pick_ports(arguments)
    try:
        experiment_id = ensure_experiment(make_client(uri), uri, str(read_default("tracking.experiment")))
    except Exception as error:
        raise UsageError(f"{redact_credentials(uri)} does not answer: {failure_reason(error)}") from None
    views = {"best epochs": (BEST_EPOCHS, ""), "learning curves": (LEARNING_CURVES, "CHART")}
    views |= {"by setting": (BY_SETTING, ""), "sweeps": (SWEEPS, "")}
    base_url = uri.rstrip("/") if uri.startswith("http") else f"http://127.0.0.1:{port}"
    links = [f"{name:<16} {base_url}/{view_link(experiment_id, *view)}" for name, view in views.items()]
    if uri.startswith("http"):
        raise UsageError("MLFLOW_TRACKING_URI is a server with its own UI. Open\n" + "\n".join(links))
    links.append(f"{'TensorBoard':<16} http://127.0.0.1:{board_port}/{CURVES}")
    links += [f"{'store':<16} {redact_credentials(uri)}", "Ctrl-C ends it."]
    host = ["--host", "127.0.0.1", "--port"]
    os.environ["MLFLOW_BACKEND_STORE_URI"] = uri  # every user of the machine sees command lines, with their passwords
    store = ["--backend-store-uri", uri] if uri == redact_credentials(uri) else []
    with (
        run_server("mlflow", "server", *store, "--workers", "1", *host, port) as mlflow,
        run_server("tensorboard.main", "--logdir", str(main_checkout() / "runs"), *host, board_port) as board,
        contextlib.suppress(KeyboardInterrupt),
    ):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        print("Starting: some seconds", flush=True)
        wait_until_up(f"http://127.0.0.1:{port}/health", mlflow)
        wait_until_up(f"http://127.0.0.1:{board_port}", board)
        print("\n".join(links), flush=True)
        mlflow.wait()


if __name__ == "__main__":
    run_cli(main, sys.argv[1:])
