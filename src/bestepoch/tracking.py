"""The journal, delivered to MLflow and TensorBoard. The only file that imports either.

A tracker is a reader of the journal with a place in it. What a tracker that is slow or down has not taken is still in
the journal, and is delivered later: by the same run, by the next attempt, or by ``python -m bestepoch.sync``. Rows
carry their own times, so sending one twice stores it once.
"""

from __future__ import annotations

import getpass
import json
import logging
import math
import os
import shlex
import socket
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from filelock import FileLock

from bestepoch import project
from bestepoch.journal import Row
from bestepoch.project import public
from bestepoch.run import Run, flat

if TYPE_CHECKING:
    from bestepoch.standings import Standings

log = logging.getLogger("bestepoch")

PER_ITERATION = ("train/loss", "lr")
EVALUATION = ".evaluate"  # how the name of its event file ends
PER_EPOCH = ("val/loss", "val/accuracy", "train/epoch_loss")
# A dead server is given up within seconds, not the client's default of minutes; what it missed is sent later.
for _name, _value in {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "GIT_PYTHON_REFRESH": "quiet",
}.items():
    os.environ.setdefault(_name, _value)
# What goes wrong in a SQLite store is raised as well; logged, it is a page of traceback at each attempt.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


class Tracker(Protocol):
    """Where a run is shown."""

    name: str
    place: dict[str, Any]  # what it wants remembered between attempts

    @staticmethod
    def load() -> None:
        """Import what it needs; asks no store or server."""

    def open(self) -> None:
        """Find or make the run's place; may raise and be called again."""

    def write(self, iterations: list[Row], epochs: list[Row]) -> None:
        """Store these rows; may raise, and then gets the same rows again."""

    def close(self, status: str) -> None:
        """All rows are written; ``status`` is finished, killed or failed."""


def store_uri() -> str:
    """The MLflow store: ``MLFLOW_TRACKING_URI``, else ``mlflow.db`` in the real checkout, always by absolute path."""
    given = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if not given:
        return f"sqlite:///{project.home() / 'mlflow.db'}"
    prefix = "sqlite:///"
    if given.startswith(prefix) and not given[len(prefix) :].startswith("/"):
        # a relative path would lead into DVC's temporary copy, and vanish with it
        base = project.home() if project.home() != project.root() else Path.cwd()
        return f"{prefix}{base / given[len(prefix) :]}"
    return given


def reason(error: Exception) -> str:
    """Why a tracker has not taken something, in a line."""
    if getattr(error, "error_code", None) == "UNAUTHENTICATED":
        return (
            "the server does not know this name with this password: set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or the two in ~/.mlflow/credentials"
        )
    return project.first_line(error)


def client(uri: str) -> Any:
    """An MLflow client; makes a SQLite store where it is missing."""
    from mlflow import MlflowClient

    path = Path(uri.removeprefix("sqlite:///").partition("?")[0])
    if uri.startswith("sqlite:///") and not path.exists():
        (project.home() / "runs").mkdir(exist_ok=True)
        # by one process alone, and beside: MLflow creates its tables in many steps, and cannot go on from halfway
        with FileLock(project.home() / "runs" / ".store.lock"):
            if not path.exists():
                beside = path.with_name(f"{path.name}.partial")
                beside.unlink(missing_ok=True)
                MlflowClient(tracking_uri=f"sqlite:///{beside}")
                beside.replace(path)
    return MlflowClient(tracking_uri=uri)


def experiment(mlflow: Any, uri: str, name: str) -> str:
    """The id of the experiment, made where it is missing, with artifacts at an absolute place."""
    found = mlflow.get_experiment_by_name(name)
    if found is None:
        place = (project.home() / "mlartifacts" / name).as_uri() if uri.startswith("sqlite:") else None
        try:
            return str(mlflow.create_experiment(name, artifact_location=place))
        except Exception:
            found = mlflow.get_experiment_by_name(name)  # another process was faster
            if found is None:
                raise
    return str(found.experiment_id)


class MlflowTracker:
    """One run in the MLflow store."""

    name = "MLflow"

    def __init__(self, run: Run, experiment: str) -> None:
        self.run, self.experiment = run, experiment
        self.place: dict[str, Any] = {}
        self.uri = store_uri()
        self.client: Any = None
        self._engine: Any = None

    @staticmethod
    def load() -> None:
        """See `Tracker`."""
        import mlflow.tracking

        if not store_uri().startswith("http"):
            import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

    def open(self) -> None:
        """Find the run of an earlier attempt, or make one with its parameters, tags and data set."""
        if self.client is not None:
            return
        mlflow = client(self.uri)
        if self.place.get("uri") != public(self.uri) or not _there(mlflow, self.place["run_id"]):
            # another store, or one that lost the run: everything is delivered anew
            run_id = self._find(mlflow) or self._make(mlflow)
            self._describe(mlflow, run_id)  # also one that was found: who made it may not have come this far
            self.place.clear()
            self.place.update(uri=public(self.uri), run_id=run_id)
        if self.run.status == "running":
            mlflow.update_run(self.place["run_id"], status="RUNNING")
            if "failure" in mlflow.get_run(self.place["run_id"]).data.tags:
                mlflow.delete_tag(self.place["run_id"], "failure")  # why an earlier attempt ended
        self.client = mlflow

    def _find(self, mlflow: Any) -> str | None:
        """A run that an attempt made but did not live to write down."""
        number = experiment(mlflow, self.uri, self.experiment)
        found = mlflow.search_runs([number], f"tags.`bestepoch.key` = '{self.run.info['key']}'", max_results=1)
        return str(found[0].info.run_id) if found else None

    def _make(self, mlflow: Any) -> str:
        number = experiment(mlflow, self.uri, self.experiment)
        made = mlflow.create_run(
            number,
            start_time=int(self.run.info["started"] * 1000),
            tags={"bestepoch.key": self.run.info["key"]},  # at once: by this a later attempt finds it
            run_name=self.run.name,
        )
        return str(made.info.run_id)

    def _describe(self, mlflow: Any, run_id: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

        info = self.run.info
        tags = {"mlflow.runName": self.run.name, **describe_tags(info)}
        parent = info.get("parent")  # the sweep's run
        if parent is not None:
            tags["sweep"] = self.run.folder.parent.name
        if parent or outer_run():
            tags["mlflow.parentRunId"] = parent or outer_run()
        params = [Param(k, str(v)) for k, v in flat(info["config"]).items()]
        mlflow.log_batch(run_id, tags=[RunTag(k, str(v)) for k, v in tags.items()])
        for i in range(0, len(params), 100):
            mlflow.log_batch(run_id, params=params[i : i + 100])
        data = info["data"]
        entity = Dataset(
            name=data["name"],
            digest=data["checksum"][:12],  # the whole of it is a tag
            source_type="local",
            source=json.dumps({"uri": data["folder"]}),
            profile=json.dumps({**data["sizes"], "checksum": data["checksum"]}),
        )
        inputs = [DatasetInput(entity, [InputTag("mlflow.data.context", "training")])]
        try:
            mlflow.log_inputs(run_id, inputs)
        except Exception as error:
            if "unique" not in str(error).lower():  # as SQLite and PostgreSQL say it
                raise
            # MLflow looks whether it has the data set, then adds it; another run's has come in between
            mlflow.log_inputs(run_id, inputs)
        try:
            mlflow.log_dict(run_id, info["config"], "config.yaml")
        except Exception as error:  # files have a place of their own, which may fail alone; the curves need it not
            log.warning("warning: MLflow does not take the file config.yaml (%s)", project.first_line(error))

    def write(self, iterations: list[Row], epochs: list[Row]) -> None:
        """In batches of what one request may carry; a SQLite store takes many in one statement."""
        from mlflow.entities import Metric

        if self.uri.startswith("sqlite:") and iterations:
            # the last one goes MLflow's own way, which notes it as the latest; and so does what is no number
            mlflows = [not all(math.isfinite(row[key]) for key in PER_ITERATION) for row in iterations[:-1]] + [True]
            self._insert([row for row, own in zip(iterations, mlflows, strict=True) if not own])
            iterations = [row for row, own in zip(iterations, mlflows, strict=True) if own]
        metrics = [
            Metric(key, row[key], round(row["time"] * 1000), int(row[axis]))
            for rows, keys, axis in ((iterations, PER_ITERATION, "iteration"), (epochs, PER_EPOCH, "epoch"))
            for row in rows
            for key in keys
        ]
        for i in range(0, len(metrics), 1000):
            self.client.log_batch(self.place["run_id"], metrics=metrics[i : i + 1000])

    def _insert(self, rows: list[Row]) -> None:
        """Rows into MLflow's own table of metrics, as its `log_batch` would: 3 µs a value in place of 55.

        `log_batch` makes an object of each value, and looks up the latest one, which on two cores is felt in the
        training loop of a small network. A value that is there already is left as it is, here as there.
        """
        from mlflow.store.tracking.dbmodels.models import SqlMetric
        from sqlalchemy import create_engine
        from sqlalchemy.dialects.sqlite import insert

        if self._engine is None:
            self._engine = create_engine(self.uri, connect_args={"timeout": 20})  # seconds for a lock, as MLflow waits
        run_id = self.place["run_id"]
        values = [
            {
                "key": key,
                "value": row[key],
                "timestamp": round(row["time"] * 1000),
                "step": int(row["iteration"]),
                "is_nan": False,
                "run_uuid": run_id,
            }
            for row in rows
            for key in PER_ITERATION
        ]
        if not values:
            return
        with self._engine.begin() as connection:
            connection.execute(insert(SqlMetric).on_conflict_do_nothing(), values)

    def close(self, status: str) -> None:
        """End the run."""
        name = {"finished": "FINISHED", "killed": "KILLED"}.get(status, "FAILED")
        ended, reason = self.run.info.get("ended"), self.run.info.get("reason")
        if reason is not None:
            self.client.set_tag(self.place["run_id"], "failure", reason)
        costs = costs_of(self.run.info)
        if costs and self.place.get("costs") != ended:  # once for each end, however often it is delivered
            from mlflow.entities import Metric

            when = int((ended or time.time()) * 1000)
            self.client.log_batch(self.place["run_id"], metrics=[Metric(k, v, when, 0) for k, v in costs.items()])
            self.place["costs"] = ended
        self.client.set_terminated(self.place["run_id"], name, end_time=int(ended * 1000) if ended else None)


def costs_of(info: dict[str, Any]) -> dict[str, float]:
    """What a run took, as metrics: seconds by account and in all, and megabytes; empty where it has not ended."""
    if "spent" not in info:
        return {}
    spent = dict(info["spent"])
    if "asked" in info:  # training waits until the trackers have everything
        spent["tracking"] += time.time() - info["asked"]
    costs = {f"time/{account}": seconds for account, seconds in spent.items()} | {"time/total": sum(spent.values())}
    return costs | ({"memory/peak_mb": info["peak_memory"] / 1e6} if info.get("peak_memory") else {})


def outer_run() -> str | None:
    """The run that ``mlflow run`` made around this process, where there is one.

    It becomes the parent of ours, not ours itself: its parameters are the command's, written once, and its experiment
    keeps artifacts in ``mlruns/``, a folder whose mere existence makes MLflow look there for its store.
    """
    return os.environ.get("MLFLOW_RUN_ID", "").strip() or None


def _there(mlflow: Any, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

    try:
        return str(mlflow.get_run(run_id).info.lifecycle_stage) == "active"
    except MlflowException as error:
        if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            return False
        raise


def describe_tags(info: dict[str, Any]) -> dict[str, Any]:
    """What a run is filtered and told apart by, beside its parameters."""
    data, git = info["data"], info["git"]
    tags = {
        "dataset": data["name"],
        "data.checksum": data["checksum"],
        "device": info["environment"].get("device"),
        "host": info["environment"]["host"],
        "git.dirty": str(git["dirty"]).lower(),
        "git.commit": git["commit"],
        "mlflow.source.git.commit": git["commit"],
        "mlflow.source.name": info["command"],
        "mlflow.source.type": "LOCAL",
        "mlflow.user": getpass.getuser(),
        "dvc.data": data.get("dvc"),
        "continues": info.get("continues", {}).get("run"),
        "offline_sample": f"stands in for {data['requested']}" if data["name"] != data["requested"] else None,
    }
    return {key: value for key, value in tags.items() if value is not None}


class TensorBoardTracker:
    """Event files in the run's folder, so that TensorBoard shows the run under the same name as MLflow."""

    name = "TensorBoard"

    def __init__(self, run: Run) -> None:
        self.folder = run.folder
        self.place: dict[str, Any] = {}
        self._file: EventFile | None = None
        self._last: dict[str, int] | None = None

    @staticmethod
    def load() -> None:
        """See `Tracker`."""
        import tensorboard.backend.event_processing.event_file_loader
        import tensorboard.summary.writer.record_writer  # noqa: F401

    def open(self) -> None:
        """Look how far the event files of earlier attempts go."""
        if self._last is not None:
            return
        if "last" in self.place and self.place.get("files") == self._sizes():
            self._last = dict(self.place["last"])
            return
        self._last = last_steps(self._files())
        if self.place.get("last") != self._last:
            self.place.clear()  # files were deleted, or hold more than was noted: all is looked at again

    def write(self, iterations: list[Row], epochs: list[Row]) -> None:
        """One event a row, in a file of this attempt's own; a row that a file holds already is left out."""
        assert self._last is not None
        events = []
        for rows, keys, axis in ((iterations, PER_ITERATION, "iteration"), (epochs, PER_EPOCH, "epoch")):
            new = [row for row in rows if row[axis] > self._last[axis]]
            events += [scalars({key: row[key] for key in keys}, int(row[axis]), row["time"]) for row in new]
        if events and self._file is None:
            self._file = EventFile(self.folder, f".{len(self._files())}")
        last = {"iteration": iterations, "epoch": epochs}
        try:
            if self._file is not None:
                self._file.write(events)
        except OSError:
            # what came behind a torn record would not be read: look how far it goes, and begin another file
            self._file, self._last = None, None
            raise
        self._last = {k: max([self._last[k], *(int(row[k]) for row in rows[-1:])]) for k, rows in last.items()}
        self.place.update(last=dict(self._last), files=self._sizes())

    def _files(self) -> list[Path]:
        return [path for path in self.folder.glob("events.out.tfevents.*") if path.suffix != EVALUATION]

    def _sizes(self) -> dict[str, int]:
        return {path.name: path.stat().st_size for path in sorted(self._files())}

    def close(self, status: str) -> None:
        """Nothing is left to write."""
        if self._file is not None:
            self._file.close()
            self._file = None


class EventFile:
    """A TensorBoard event file, written many events at a time: its own writer wakes a thread for each."""

    def __init__(self, folder: Path, suffix: str) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}{suffix}"
        self._file = (folder / name).open("wb")
        self._records = RecordWriter(self._file)
        self.write([Event(wall_time=time.time(), file_version="brain.Event:2")])

    def write(self, events: list[Any]) -> None:
        """All of them are in the file when this returns. Raises OSError; the file then ends in a torn record."""
        for event in events:
            self._records.write(event.SerializeToString())
        self._file.flush()

    def close(self) -> None:
        """Nothing more is written to it."""
        self._file.close()


def last_steps(files: list[Path]) -> dict[str, int]:
    """The last iteration and the last epoch in a run's event files."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    last = {"iteration": 0, "epoch": 0}
    for path in files:
        for event in LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                axis = "iteration" if value.tag in PER_ITERATION else "epoch" if value.tag in PER_EPOCH else None
                if axis:
                    last[axis] = max(last[axis], event.step)
    return last


def scalars(values: dict[str, float], step: int, when: float) -> Any:
    """Several scalars of one step as one TensorBoard event."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    value = Summary.Value
    return Event(
        wall_time=when,
        step=step,
        summary=Summary(value=[value(tag=tag, simple_value=number) for tag, number in values.items()]),
    )


def begin_sweep(name: str, folder: Path, overrides: list[str]) -> str:
    """The parent run of a sweep: the one that ``mlflow run`` made, that of an earlier attempt, or a new one."""
    uri = store_uri()
    mlflow = client(uri)
    note = folder / "parent.json"
    known = project.read_json(note, "") if note.exists() else {}
    number = experiment(mlflow, uri, name)
    run_id = outer_run()
    if run_id is None and known.get("uri") == public(uri) and _there(mlflow, known["run_id"]):
        run_id = str(known["run_id"])
    if run_id is None:
        command = shlex.join(["python", "-m", "bestepoch.train", "-m", *overrides])
        tags = {"mlflow.user": getpass.getuser(), "mlflow.source.name": command, "mlflow.source.type": "LOCAL"}
        run_id = str(mlflow.create_run(number, run_name=folder.name, tags=tags).info.run_id)
    told = {"mlflow.runName": folder.name, "sweep": folder.name, "sweep.overrides": " ".join(overrides)}
    for key, value in told.items():
        mlflow.set_tag(run_id, key, value)
    mlflow.update_run(run_id, status="RUNNING")
    project.write_json(note, {"uri": public(uri), "run_id": run_id, "host": socket.gethostname(), "status": "running"})
    return run_id


def end_sweep(run_id: str, folder: Path, files: list[Path], table: Standings) -> None:
    """Put the table of jobs and the best one into the parent run, and end it."""
    mlflow = client(store_uri())
    parent = mlflow.get_run(run_id)
    # the folder of `mlflow run`, see outer_run: the table is in the description all the same
    if "mlruns" not in Path(parent.info.artifact_uri).parts:
        for file in files:
            mlflow.log_artifact(run_id, str(file))
    described = [f"`{parent.data.tags['sweep.overrides']}`", ""]
    if table.winner is not None:
        best = Run.read(project.home() / table.winner["run"]).info.get("mlflow", {})
        told = f"**Best: {table.winner['name']}**"
        mlflow.set_tag(run_id, "best", table.winner["name"])
        if best.get("uri") == public(store_uri()):
            mlflow.set_tag(run_id, "best.run_id", best["run_id"])
            number = mlflow.get_run(best["run_id"]).info.experiment_id
            told = f"**Best: [{table.winner['name']}](#/experiments/{number}/runs/{best['run_id']})**"
        described += [f"{told}, {table.metric} {table.winner['metric']:.5g} at epoch {table.winner['best_epoch']}", ""]
    mlflow.set_tag(run_id, "mlflow.note.content", "\n".join([*described, *table.markdown()]))
    if outer_run() != run_id:  # else it ends with its command
        mlflow.set_terminated(run_id, "FAILED" if table.failed else "FINISHED")
    note = folder / "parent.json"
    project.write_json(note, project.read_json(note, "") | {"status": "ended"})


def end_dead_sweep(note: Path) -> None:
    """Mark the parent run of a sweep whose process was killed; ``note`` is its parent.json."""
    known = project.read_json(note, "")
    client(store_uri()).set_terminated(known["run_id"], "KILLED")
    project.write_json(note, known | {"status": "ended"})


def record_study(name: str, files: Path, parent: dict[str, str], numbers: dict[str, float]) -> None:
    """Add a study to the parent run of its sweep, or where there is none make a run for it."""
    from mlflow.entities import Metric

    uri = store_uri()
    mlflow = client(uri)
    if parent.get("uri") == public(uri) and _there(mlflow, parent["run_id"]):
        run_id = parent["run_id"]
    else:
        tags = {"study": files.name}
        run_id = mlflow.create_run(experiment(mlflow, uri, name), run_name=f"study-{files.name}", tags=tags).info.run_id
        mlflow.set_terminated(run_id, "FINISHED")
    now = int(time.time() * 1000)
    mlflow.log_batch(run_id, metrics=[Metric(f"study/{key}", value, now, 0) for key, value in numbers.items()])
    mlflow.log_artifacts(run_id, str(files), "study")


def record_evaluation(
    run: Run, experiment_name: str, journal: Path, metrics: dict[str, float], model: LoggedModel, files: Path
) -> str:
    """Add an evaluation to the MLflow run that trained.

    A run that is not in the store, because a cache or another machine brought the training's results, is made there
    first, from its journal.

    Returns:
        the id of the MLflow run.
    """
    import mlflow as fluent
    from mlflow.entities import Metric

    from bestepoch.courier import catch_up

    tracker = MlflowTracker(run, experiment_name)
    tracker.place.update(run.info.get("mlflow", {}))
    known = dict(tracker.place)
    tracker.open()
    run_id = str(tracker.place["run_id"])
    if tracker.place != known:
        catch_up(tracker, journal, tracker.place)
        tracker.close(run.status)
    now, there = int(time.time() * 1000), tracker.client.get_run(run_id).data.metrics
    # the same again, as after a kill, is no second point
    new = [Metric(key, value, now, 0) for key, value in metrics.items() if there.get(key) != value]
    tracker.client.log_batch(run_id, metrics=new)
    tracker.client.log_artifacts(run_id, str(files), "evaluate")
    fluent.set_tracking_uri(tracker.uri)
    try:
        with fluent.start_run(run_id=run_id):
            model.log()
    finally:
        # start_run ended the run as finished or failed, now; it is still what training left
        if run.status == "running":
            tracker.client.update_run(run_id, status="RUNNING")
        else:
            tracker.close(run.status)
    return run_id


@dataclass(frozen=True)
class LoggedModel:
    """The chosen network as an MLflow model: raw pixels (n, height, width), float32, 0 to 255, to logits."""

    network: Any
    example: Any

    def log(self) -> None:
        """Into the active run."""
        import mlflow
        import torch
        from mlflow.models import infer_signature

        with torch.inference_mode():
            logits = self.network(torch.from_numpy(self.example)).numpy()
        with warnings.catch_warnings():
            # torch.export warns of weights that are not on the CPU, whatever they are on
            warnings.filterwarnings("ignore", message="No complete tensor found")
            self._log_to(mlflow, torch, infer_signature(self.example, logits))

    def _log_to(self, mlflow: Any, torch: Any, signature: Any) -> None:
        mlflow.pytorch.log_model(
            self.network,
            name="model",
            signature=signature,
            input_example=self.example,
            # said, not inferred: that takes seconds and loads the model in another process
            pip_requirements=[
                f"torch=={torch.__version__.partition('+')[0]}",
                f"mlflow=={mlflow.__version__}",
                "numpy",
            ],
            serialization_format="pt2",
        )


def show_evaluation(folder: Path, metrics: dict[str, float]) -> None:
    """Add an evaluation to a run's event files, in place of an earlier one."""
    for old in folder.glob(f"events.out.tfevents.*{EVALUATION}"):
        old.unlink()
    file = EventFile(folder, EVALUATION)
    file.write([scalars(metrics, 0, time.time())])
    file.close()
