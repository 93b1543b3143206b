"""What 1,000 runs, a billion points and many images cost: rates, bytes and seconds, for the sums in docs/scale.md.

Points into SQLite and into PostgreSQL, with and without MLflow's server (users on, as docs/team.md has it); a list of
1,000 runs; the start of a run where 1,000 others lie; memory by image. Needs PostgreSQL and the extra `team`. Takes
about five minutes with the defaults.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import common
import numpy as np
import servers
import tables

EXPERIMENT = "scale"
KEYS = ("train/loss", "lr")
SIDE = 28  # pixels
PASSWORD = "only-here-and-now"
IMAGES = {"train_images": "ti.gz", "train_labels": "tl.gz", "test_images": "si.gz", "test_labels": "sl.gz"}
AUTH = """[mlflow]
database_uri = postgresql+psycopg2://mlflow@127.0.0.1/mlflow_users
admin_username = admin
default_permission = EDIT
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = {cache}
"""


def main() -> None:
    """Measure, print the tables, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--points", type=int, default=10_000, help="by log_batch; ten times as many in bulk")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--images", type=int, default=60_000, help="and twice as many, for the difference")
    parser.add_argument("--workers", type=int, default=4, help="processes of the server, MLflow's own number")
    parser.add_argument("--train", nargs="*", default=[], help="overrides of the run whose files are weighed")
    parser.add_argument("--folder", type=Path, help="where to work; by default a temporary folder")
    parser.add_argument("--out", type=Path, default=common.RESULTS / "scale.json")
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)  # be the process that is measured
    options = parser.parse_args()
    if options.memory:
        alone(options.memory[0], Path(options.memory[1]))
        return
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    os.environ.update(PGPASSWORD=PASSWORD, MLFLOW_TRACKING_USERNAME="admin", MLFLOW_TRACKING_PASSWORD=PASSWORD)
    results: dict[str, Any] = {"machine": common.machine(), "load": [], "runs": options.runs, "images": options.images}
    with (
        common.project(options.folder, "mnist_sample") as folder,
        contextlib.chdir(folder),
        stores(folder, options.workers) as places,
    ):
        info = trained(folder, options.train, results)
        results["bytes_run"] = register(folder, places, info, options.runs)
        results |= {"points": {}, "bytes_point": {}, "make": {}, "list": {}, "request": {}, "start": {}, "memory": {}}
        for number in range(options.rounds):
            results["load"].append(round(os.getloadavg()[0], 1))
            for name, measure in measures(folder, places, info, options).items():
                kind, _, what = name.partition(" ")
                results[kind].setdefault(what, []).append(measure())
                print(f"{number + 1}/{options.rounds}  {name:45} {results[kind][what][-1]:12,.4f}", file=sys.stderr)
        results["bytes_point"] = {name: point_bytes(folder, places, name) for name in ("sqlite", "postgres")}
    results = json.loads(json.dumps(results), parse_float=lambda text: float(f"{float(text):.5g}"))
    common.write(options.out, results)
    print(tables.scale(results))


@contextlib.contextmanager
def stores(folder: Path, workers: int) -> Iterator[dict[str, Any]]:
    """Addresses of a SQLite store, PostgreSQL, MLflow's server on it, and one that checks each password anew."""
    with contextlib.ExitStack() as stack:
        database = stack.enter_context(servers.postgres())
        os.environ["PGPORT"] = str(database.port)
        database.ask(f"create role mlflow login password '{PASSWORD}'")
        for name in ("mlflow", "mlflow_users"):
            database.ask(f"create database {name} owner mlflow")
        places: dict[str, Any] = {
            "database": database,
            "sqlite": f"sqlite:///{folder / 'scale.db'}",
            "postgres": "postgresql+psycopg2://mlflow@127.0.0.1/mlflow",
        }
        shutil.copyfile(folder / "empty.db", folder / "scale.db")
        for name, cache, processes in (("server", 60, workers), ("no cache", 0, 1)):
            where = folder / name.replace(" ", "-")
            where.mkdir()
            (where / "auth.ini").write_text(AUTH.format(cache=cache))
            port = servers.free_port()
            command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--host", "127.0.0.1"]
            command += ["--workers", str(processes), "--port", str(port), "--backend-store-uri", places["postgres"]]
            command += ["--artifacts-destination", str(where / "files")]
            secrets = {"MLFLOW_FLASK_SERVER_SECRET_KEY": PASSWORD, "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD}
            settings = {"MLFLOW_AUTH_CONFIG_PATH": "auth.ini", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
            server = stack.enter_context(
                servers.serving(command, where, os.environ | secrets | settings, where / "log")
            )
            places[name] = f"http://127.0.0.1:{port}"
            servers.until_it_answers(server, f"{places[name]}/health", where / "log")
        yield places


def measures(
    folder: Path, places: dict[str, Any], info: dict[str, Any], options: argparse.Namespace
) -> dict[str, Callable[[], float]]:
    """Each figure's name and how it comes about; one call is one measurement."""
    few, many = options.points, 10 * options.points
    return {
        "points SQLite, log_batch": lambda: batches(places["sqlite"], few),
        "points PostgreSQL, in bulk": lambda: bulk(places["postgres"], many),
        "points PostgreSQL, log_batch": lambda: batches(places["postgres"], few),
        "points PostgreSQL, log_batch by the server": lambda: batches(places["server"], few),
        "points PostgreSQL, log_batch by the server, 4 runs at once": lambda: batches(places["server"], few, runs=4),
        "request password remembered": lambda: request(places["server"]),
        "request password checked each time": lambda: request(places["no cache"]),
        "make SQLite": lambda: making(places["sqlite"], info),
        "make PostgreSQL, by the server": lambda: making(places["server"], info),
        "list SQLite": lambda: listed(places["sqlite"], options.runs),
        "list PostgreSQL, by the server": lambda: listed(places["server"], options.runs),
        "start look through the runs for one to go on with": lambda: opened(folder, options.runs),
        "start look through the runs for dead ones": lambda: looked_through(folder, places["sqlite"], options.runs),
        "memory split, an image": lambda: slope("split", images(folder, options.images), options.images),
        "memory training, an image": lambda: slope("load", images(folder, options.images), options.images),
        "memory evaluate, an iteration": lambda: slope("read", journals(folder, many), many),
    }


# --- points ---------------------------------------------------------------------------------------------------------


def rows(count: int) -> list[dict[str, float]]:
    """So many iterations as the journal has them; with as many digits as real ones."""
    now = time.time()
    return [
        {"iteration": i, "train/loss": random.random(), "lr": random.random(), "time": now + i / 500}
        for i in range(1, count + 1)
    ]


def begun(place: str) -> Any:
    """A tracker with a run of its own in a store."""
    from bestepoch.runs.run import Run
    from bestepoch.tracking.mlflow.run import MlflowTracker
    from bestepoch.tracking.mlflow.store import make_client

    os.environ["MLFLOW_TRACKING_URI"] = place
    made = MlflowTracker(Run(Path.cwd(), {"status": "finished"}), EXPERIMENT)
    made.client = make_client(place)
    experiment = made.client.get_experiment_by_name(EXPERIMENT).experiment_id
    made.cursor["run_id"] = made.client.create_run(experiment).info.run_id
    return made


def rate(place: str, points: int, write: Callable[[Any, list[Any]], None], runs: int = 1) -> float:
    """Points a second into so many runs at once; all of them must have arrived."""
    trackers, journal = [begun(place) for _ in range(runs)], rows(points // 2)
    with ThreadPoolExecutor(runs) as pool:
        started = time.monotonic()
        list(pool.map(write, trackers, [journal] * runs))
        seconds = time.monotonic() - started
    for tracker in trackers:
        _arrived(place, tracker.cursor["run_id"], points)
    return runs * points / seconds


def batches(place: str, points: int, runs: int = 1) -> float:
    """As bestepoch does it: by MLflow's `log_batch`."""
    return rate(place, points, lambda tracker, made: tracker.write(made, []), runs)


def bulk(place: str, points: int) -> float:
    """Into PostgreSQL by COPY, which bestepoch does not do: what the database itself takes."""
    from bestepoch.tracking.cursor import MAX_ROWS_IN_MEMORY

    def write(tracker: Any, made: list[Any]) -> None:
        import psycopg2

        run_id = tracker.cursor["run_id"]
        with contextlib.closing(psycopg2.connect(place.replace("+psycopg2", ""))) as connection:
            for i in range(0, len(made), MAX_ROWS_IN_MEMORY):
                lines = (
                    f"{run_id}\t{k}\t{r[k]!r}\t{round(r['time'] * 1000)}\t{r['iteration']}\tf\n"
                    for r in made[i : i + MAX_ROWS_IN_MEMORY]
                    for k in KEYS
                )
                with connection, connection.cursor() as cursor:
                    cursor.execute("CREATE TEMP TABLE beside (LIKE metrics) ON COMMIT DROP")
                    names = "run_uuid, key, value, timestamp, step, is_nan"
                    cursor.copy_expert(f"COPY beside ({names}) FROM STDIN", io.StringIO("".join(lines)))
                    cursor.execute("INSERT INTO metrics SELECT * FROM beside ON CONFLICT DO NOTHING")

    return rate(place, points, write)


def _arrived(place: str, run_id: str, points: int) -> None:
    from sqlalchemy import create_engine, text

    if place.startswith("http"):
        place = "postgresql+psycopg2://mlflow@127.0.0.1/mlflow"
    engine = create_engine(place)
    with engine.connect() as connection:
        found = connection.execute(text("SELECT count(*) FROM metrics WHERE run_uuid = :run"), {"run": run_id}).scalar()
    engine.dispose()
    if found != points:
        raise ValueError(f"{found:,} points have arrived, not {points:,}")


def request(place: str) -> float:
    """Milliseconds of the smallest request there is, one after the other."""
    from bestepoch.tracking.mlflow.store import make_client

    asked = make_client(place)
    asked.get_experiment("0")
    started = time.monotonic()
    for _ in range(10):
        asked.get_experiment("0")
    return 100 * (time.monotonic() - started)


# --- runs -----------------------------------------------------------------------------------------------------------


def trained(folder: Path, overrides: list[str], results: dict[str, Any]) -> dict[str, Any]:
    """The default experiment on the sample, for what its files take; its run.json."""
    environment = common.environment(folder)
    command = [sys.executable, "-m", "bestepoch.train", "data=mnist_sample", "device.name=cpu", *overrides]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    (run,) = folder.glob("runs/*/run.json")
    size = _size(run.parent)
    command = [sys.executable, "-m", "bestepoch.evaluate", f"run=runs/{run.parent.name}"]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    weights = sorted((run.parent / "checkpoints").glob("epoch-*.pt"))
    iterations = sum(1 for _ in (run.parent / "iterations.csv").open()) - 1
    results["files"] = {
        "iterations": iterations,
        "epochs": len(weights),
        "weights": sum(path.stat().st_size for path in weights) / len(weights),
        "runs": size,
        "evaluate": _size(run.parent / "evaluate"),
        "artifacts": _size(folder / "mlartifacts"),
    }
    return dict(json.loads(run.read_text()))


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def register(folder: Path, places: dict[str, Any], info: dict[str, Any], runs: int) -> dict[str, float]:
    """So many finished runs with parameters, tags and ten points each in both databases, and their folders.

    The first one as bestepoch makes it, the others by copying its rows, which takes seconds instead of minutes.

    Returns:
        bytes a run in each database, with its ten points.
    """
    from bestepoch.tracking.mlflow.store import make_client

    out = {}
    for name in ("sqlite", "postgres"):
        mlflow = make_client(places[name])
        mlflow.create_experiment(EXPERIMENT, artifact_location=(folder / "files" / name).as_uri())
        run_id = made(places[name], info, EXPERIMENT)
        before = database_bytes(folder, places, name)
        copy_run(places[name], run_id, runs - 1)
        out[name] = (database_bytes(folder, places, name) - before) / (runs - 1)
        mlflow.create_experiment(f"{EXPERIMENT}-made", artifact_location=(folder / "files" / name).as_uri())
    note = {"uri": places["sqlite"], "run_id": "0" * 32, "status": "finished"}
    for number in range(runs):
        it = folder / "runs" / f"{info['name']}-{number}"
        (it / "state").mkdir(parents=True)
        (it / "run.json").write_text(json.dumps(info | {"fingerprint": "another", "name": it.name}, indent=2))
        (it / "state/mlflow.json").write_text(json.dumps(note))
    return out


def made(place: str, info: dict[str, Any], experiment: str) -> str:
    """A run as bestepoch makes one, with ten points; its id."""
    from bestepoch.runs.run import Run
    from bestepoch.tracking.mlflow.run import MlflowTracker

    os.environ["MLFLOW_TRACKING_URI"] = place
    epoch = {"epoch": 1, "val/loss": 0.1, "val/accuracy": 0.9, "train/epoch_loss": 0.1, "time": time.time()}
    tracker = MlflowTracker(Run(Path.cwd(), info | {"key": uuid.uuid4().hex}), experiment)
    tracker.open()
    tracker.write(rows(2), [epoch, epoch | {"epoch": 2}])
    tracker.close("finished")
    return str(tracker.cursor["run_id"])


def making(place: str, info: dict[str, Any]) -> float:
    """Seconds for that."""
    started = time.monotonic()
    made(place, info, f"{EXPERIMENT}-made")
    return time.monotonic() - started


def copy_run(place: str, run_id: str, times: int) -> None:
    """Every row of a run, under new ids."""
    from sqlalchemy import MetaData, create_engine, insert, select

    engine, known = create_engine(place), MetaData()
    known.reflect(engine, only=["runs", "params", "tags", "metrics", "latest_metrics", "inputs"])
    with engine.begin() as connection:
        ids = [uuid.uuid4().hex for _ in range(times)]
        for name in ("runs", "params", "tags", "metrics", "latest_metrics", "inputs"):
            table = known.tables[name]
            column = "destination_id" if name == "inputs" else "run_uuid"
            found = [dict(row._mapping) for row in connection.execute(select(table).where(table.c[column] == run_id))]
            for one in ids:
                changed = {column: one} | ({"input_uuid": uuid.uuid4().hex} if name == "inputs" else {})
                connection.execute(insert(table), [row | changed for row in found])
    engine.dispose()


def database_bytes(folder: Path, places: dict[str, Any], name: str) -> int:
    """All tables and indexes, as they are on the disk."""
    if name == "sqlite":
        with contextlib.closing(sqlite3.connect(folder / "scale.db")) as store:
            return int(
                store.execute("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size").fetchone()[0]
            )
    return int(places["database"].ask("select pg_database_size('mlflow')"))


def point_bytes(folder: Path, places: dict[str, Any], name: str) -> float:
    """Of the table of points with its indexes, a point."""
    if name == "sqlite":
        with contextlib.closing(sqlite3.connect(folder / "scale.db")) as store:
            (points,) = store.execute("SELECT count(*) FROM metrics").fetchone()
            before = database_bytes(folder, places, name)
            store.execute("DELETE FROM metrics")
            store.commit()
            store.execute("VACUUM")
        return float(before - database_bytes(folder, places, name)) / points
    size, points = (
        places["database"].ask(sql, "mlflow")
        for sql in ("select pg_total_relation_size('metrics')", "select count(*) from metrics")
    )
    return int(size) / int(points)


def listed(place: str, runs: int) -> float:
    """Seconds until MLflow's client has them all, with parameters, tags and latest values."""
    from bestepoch.tracking.mlflow.store import make_client

    asked = make_client(place)
    experiment = asked.get_experiment_by_name(EXPERIMENT).experiment_id
    started = time.monotonic()
    found = asked.search_runs([experiment], "attributes.status = 'FINISHED'", max_results=max(runs, 1))
    seconds = time.monotonic() - started
    curves = {"train/loss", "lr", "train/epoch_loss", "val/loss", "val/accuracy"}  # beside what the run took
    if len(found) != runs or not all(len(run.data.params) > 20 and curves <= run.data.metrics.keys() for run in found):
        raise ValueError(f"{len(found)} runs, not {runs}")
    return seconds


def opened(folder: Path, runs: int) -> float:
    """Seconds for a run's folder, where so many others are no match."""
    import torch  # noqa: F401  # its import is not what is measured

    from bestepoch.base.config.compose import load_config
    from bestepoch.runs.request import RunOrigin
    from bestepoch.runs.run import Run
    from bestepoch.splitting.ensure import ensure_split

    config = load_config(["data=mnist_sample"], False)[1]
    split = ensure_split(config.model_copy(update={"seed": runs}))
    config = config.model_copy(update={"seed": time.monotonic_ns() % 10**9})
    started = time.monotonic()
    run = Run.open(config, split, "cpu", RunOrigin(["as=benchmark"]))
    seconds = time.monotonic() - started
    run.close()
    shutil.rmtree(run.folder)
    return seconds


def looked_through(folder: Path, place: str, runs: int) -> float:
    """Seconds in which the process beside training looks for runs that died."""
    from bestepoch.tracking.worker import stale_runs

    os.environ["MLFLOW_TRACKING_URI"] = place
    started = time.monotonic()
    found = [run for run in stale_runs() if run.info.get("fingerprint") == "another"]
    if found or len([*(folder / "runs").glob("*/run.json")]) != runs + 1:
        raise ValueError("not the runs that were made")
    return time.monotonic() - started


# --- memory ---------------------------------------------------------------------------------------------------------


def images(folder: Path, count: int) -> tuple[Path, Path]:
    """Two raw data sets of MNIST's form and their splits, the second with twice as many images; no two are equal."""
    from bestepoch.base.config.compose import load_config
    from bestepoch.splitting.split import split_data

    made = folder / "images-1", folder / "images-2"
    for factor, out in enumerate(made, 1):
        if out.exists():
            continue
        (out / "raw").mkdir(parents=True)
        draw = np.random.default_rng(0)
        for part, n in (("train", factor * count), ("test", 1000)):
            pixels = draw.integers(0, 256, (n, SIDE, SIDE), np.uint8)
            # not zipped: it is read the same
            for kind, array in (("images", pixels), ("labels", (np.arange(n) % 10).astype(np.uint8))):
                head = bytes([0, 0, 8, array.ndim])
                head += b"".join(size.to_bytes(4, "big") for size in array.shape)
                (out / "raw" / IMAGES[f"{part}_{kind}"]).write_bytes(head + array.tobytes())
        about = {"name": "drawn", "requested": "drawn", "source": "drawn"}
        files = {"files": {role: {"name": name} for role, name in IMAGES.items()}}
        (out / "raw/dataset.json").write_text(json.dumps(about | files))
        split_data(out / "raw", out / "split", load_config([], False)[1].split)
    return made


def journals(folder: Path, count: int) -> tuple[Path, Path]:
    """Two journals, the second twice as long."""
    made = folder / "journal-1.csv", folder / "journal-2.csv"
    for factor, out in enumerate(made, 1):
        if not out.exists():
            values = [f"1,{r['train/loss']!r},{r['lr']!r},{r['time']:.3f}\n" for r in rows(1000)]
            lines = (f"{i},{values[i % 1000]}" for i in range(1, factor * count + 1))
            out.write_text("iteration,epoch,train/loss,lr,time\n" + "".join(lines))
    return made


def slope(what: str, places: tuple[Path, Path], count: int) -> float:
    """Bytes at the peak that one more image or iteration takes: two processes, the second with ``count`` more."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    peaks = [
        int(
            subprocess.run(
                [sys.executable, __file__, "--memory", what, str(place)],
                env=environment, check=True, capture_output=True, text=True,
            ).stdout
        )
        for place in places
    ]  # fmt: skip
    return (peaks[1] - peaks[0]) / count


def alone(what: str, place: Path) -> None:
    """Do one thing and print the process's peak memory in bytes."""
    if what == "split":
        from bestepoch.base.config.compose import load_config
        from bestepoch.splitting.split import split_data

        split_data(place / "raw", place / "again", load_config([], False)[1].split)
    elif what == "load":
        import torch

        from bestepoch.base.config.compose import load_config
        from bestepoch.components.data.augment import Augment
        from bestepoch.components.data.order import epoch_permutation
        from bestepoch.components.data.split import load_part

        held = [load_part(place / "split", part) for part in ("train", "validation")]
        config = load_config(["augment=shift"], False)[1].augment
        count = len(held[0][0])
        kept = epoch_permutation(0, 1, count), Augment(config, 0, 1, count, torch.device("cpu"))
        assert len(kept[0]) == count
    else:
        from bestepoch.runs.tables import read_columns

        read_columns(place)
    # not resource.getrusage, which begins with the peak of the process that started this one
    print(1024 * int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))[0]))


if __name__ == "__main__":
    main()
