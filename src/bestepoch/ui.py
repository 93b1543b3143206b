"""The MLflow UI on the project's own store, for this machine alone."""

from __future__ import annotations

import os
import sys

from bestepoch import app, config, tracking
from bestepoch.project import UsageError


def main(port: str) -> None:
    """Print where to look, then become the server.

    Raises:
        UsageError: the port is none, or the store is a server that has a UI of its own.
    """
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"port = {port} is not allowed: must be from 1 to 65535, such as: make ui PORT=5001")
    uri = tracking.store_uri()
    name = str(config.value("tracking.experiment"))
    number = tracking.experiment(tracking.client(uri), uri, name)
    page = f"#/experiments/{number}/runs?workflowType=machine_learning"
    if uri.startswith("http"):
        raise UsageError(f"MLFLOW_TRACKING_URI is a server with its own UI. Open {uri.rstrip('/')}/{page}")
    print(f"MLflow       http://127.0.0.1:{port}/{page}")
    print("TensorBoard  in another terminal: make tensorboard, then http://127.0.0.1:6006")
    print(f"store        {uri}")
    print("Ctrl-C ends it.", flush=True)
    arguments = ["server", "--backend-store-uri", uri, "--host", "127.0.0.1", "--port", port, "--workers", "1"]
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", *arguments])


if __name__ == "__main__":
    try:
        main(sys.argv[1] if len(sys.argv) > 1 else "5000")
    except UsageError as error:
        app.fail(error)
