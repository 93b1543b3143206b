"""What a tracker that is down costs training: the time of the epochs with MLflow at hand and with a server in trouble.

Paired rounds on the default experiment. Takes four minutes with the defaults, on a machine that should do nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import common
import tables


def main() -> None:
    """Measure, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--data", default="mnist", help="a name in conf/data/")
    parser.add_argument("--folder", type=Path, help="where to work; by default a temporary folder")
    parser.add_argument("--out", type=Path, default=common.RESULTS / "outages.json")
    options = parser.parse_args()
    given = (f"data={options.data}", f"train.epochs={options.epochs}", "tracking.drain_seconds=1")
    seconds: dict[str, list[float]] = {name: [] for name in tables.OUTAGES}
    with common.project(options.folder, options.data) as folder, failing() as failing_port, hanging() as hanging_port:
        places = {
            "at hand": f"sqlite:///{folder / 'mlflow.db'}",
            "absent": "http://127.0.0.1:9",
            "failing": f"http://127.0.0.1:{failing_port}",
            "hanging": f"http://127.0.0.1:{hanging_port}",
        }
        for number in range(options.rounds):
            names = [*tables.OUTAGES][number:] + [*tables.OUTAGES][:number]
            for name in names:
                took = common.trained(folder, {"MLFLOW_TRACKING_URI": places[name]}, *given)
                seconds[name].append(took)
                print(f"round {number + 1}/{options.rounds}  {took:7.2f} s  {name}", file=sys.stderr)
    results = {
        "machine": common.machine(),
        "data": options.data,
        "epochs": options.epochs,
        "seconds": {name: [round(value, 3) for value in values] for name, values in seconds.items()},
    }
    common.write(options.out, results)
    print(tables.outages(results))


class Failing(http.server.BaseHTTPRequestHandler):
    """Answers 500, whatever is asked."""

    def answer(self) -> None:
        """To any method."""
        self.send_error(500)

    do_GET = do_POST = answer  # the names that http.server calls

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextlib.contextmanager
def failing() -> Iterator[int]:
    """The port of a server that fails."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Failing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@contextlib.contextmanager
def hanging() -> Iterator[int]:
    """The port of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        yield server.getsockname()[1]


if __name__ == "__main__":
    main()
