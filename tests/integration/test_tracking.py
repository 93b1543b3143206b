"""What a real training leaves in MLflow and TensorBoard, compared point by point with the two CSV files."""

from __future__ import annotations

import getpass
import json
import math
import os
import platform
import pwd
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from mlflow import MlflowClient

import live
from bestepoch.base.config import compose
from bestepoch.cli.process import ensure_user
from bestepoch.components.schedules.learning_rate import learning_rate
from bestepoch.components.schedules.plan import make_plan
from bestepoch.runs.run import Run
from bestepoch.runs.tables import Row
from bestepoch.tracking.mlflow import store
from bestepoch.tracking.mlflow.evaluation import log_evaluation
from bestepoch.tracking.mlflow.run import MlflowTracker

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("tracking")]  # one process, so one training for all tests

EPOCHS = 2
TRAIN = (*live.SAMPLE, f"train.epochs={EPOCHS}")
QUICK = (*live.SAMPLE, "model=mlp", "model.hidden=[16]", "train.epochs=1")


@dataclass
class Trained:
    """A finished run and all that was known of it before any test did more with it."""

    project: Path
    folder: Path
    client: MlflowClient
    run: Any
    points: dict[str, list[live.Point]]
    tensorboard: dict[str, list[live.Point]]
    printed: str

    @property
    def images(self) -> int:
        (split,) = (self.project / "data/prepared").glob("mnist_sample-*")
        with np.load(split / "train.npz") as arrays:
            return len(arrays["labels"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    project = live.with_split(live.project(tmp_path_factory.mktemp("trained") / "project"))
    # from a folder below, where a store by a relative path would go astray
    printed = live.run(project, "train", *TRAIN, at=project / "src/bestepoch")
    folder = live.only_run(project)
    client = MlflowClient(tracking_uri=live.store(project))
    (run,) = live.mlflow_runs(client)
    points = live.mlflow_points(client, run.info.run_id)
    return Trained(project, folder, client, run, points, live.tensorboard_points(folder), printed)


def test_every_update_and_every_epoch_is_a_row_and_nothing_else_is(trained: Trained) -> None:
    per_epoch = math.ceil(trained.images / 100)
    assert trained.images % 100 != 0, "the last batch should be a smaller one"
    iterations = live.table(trained.folder / "iterations.csv")
    assert [int(row["iteration"]) for row in iterations] == list(range(1, EPOCHS * per_epoch + 1))
    assert [int(row["epoch"]) for row in iterations] == [1] * per_epoch + [2] * per_epoch
    epochs = live.table(trained.folder / "epochs.csv")
    assert [(int(row["epoch"]), int(row["iteration"])) for row in epochs] == [(1, per_epoch), (2, 2 * per_epoch)]


def test_mlflow_has_exactly_the_points_of_the_csv_files(trained: Trained) -> None:
    expected = live.journal_points(trained.folder)
    assert set(trained.points) == live.PER_ITERATION | live.PER_EPOCH
    assert trained.points == expected
    updates = EPOCHS * math.ceil(trained.images / 100)
    assert [len(trained.points[key]) for key in ("train/loss", "lr")] == [updates, updates]
    for key in live.PER_EPOCH:
        assert [step for step, _ in trained.points[key]] == [1, 2]


def test_tensorboard_has_exactly_the_points_of_the_csv_files(trained: Trained) -> None:
    assert trained.tensorboard == live.as_float32(live.journal_points(trained.folder))


def test_points_carry_the_time_at_which_they_were_made(trained: Trained) -> None:
    rows = live.table(trained.folder / "iterations.csv")
    history = trained.client.get_metric_history(trained.run.info.run_id, "train/loss")
    stamps = {metric.step: metric.timestamp for metric in history}
    assert stamps == {int(row["iteration"]): round(float(row["time"]) * 1000) for row in rows}


def test_the_epochs_loss_is_the_mean_over_images_of_the_iterations_losses(trained: Trained) -> None:
    per_epoch = math.ceil(trained.images / 100)
    sizes = [100] * (per_epoch - 1) + [trained.images % 100]
    losses = [value for _, value in trained.points["train/loss"]]
    for epoch, value in trained.points["train/epoch_loss"]:
        own = losses[(epoch - 1) * per_epoch : epoch * per_epoch]
        mean = sum(loss * n for loss, n in zip(own, sizes, strict=True)) / trained.images
        assert value == pytest.approx(mean, rel=1e-12)
        assert value != pytest.approx(sum(own) / per_epoch, rel=1e-6), "a plain mean of batches"


def test_the_learning_rate_is_the_one_that_the_update_used(trained: Trained) -> None:
    updates = EPOCHS * math.ceil(trained.images / 100)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=0.01)
    oracle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.01, total_steps=updates, pct_start=0.15, div_factor=25.0, final_div_factor=10000.0
    )
    used = []
    for _ in range(updates):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(used) < updates:
            oracle.step()
    logged = [value for _, value in trained.points["lr"]]
    assert logged == pytest.approx(used, rel=1e-12, abs=1e-15)
    with_settings = compose.load_config([*TRAIN], False)[1]
    plan = make_plan(trained.images, with_settings.train)
    assert logged == [learning_rate(with_settings.scheduler, 0.01, plan, i + 1) for i in range(updates)]
    # and the epoch's row has that of its last update
    epochs = live.table(trained.folder / "epochs.csv")
    assert [float(row["lr"]) for row in epochs] == [logged[updates // 2 - 1], logged[-1]]


def leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out = {}
    for key, value in values.items():
        out.update(leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return out


def test_parameters_and_the_config_artifact_are_the_resolved_configuration(trained: Trained, tmp_path: Path) -> None:
    params = trained.run.data.params
    wanted = {
        "data": "mnist_sample",
        "model": "cnn",
        "model.channels": "[32, 32, 64, 128]",
        "optimizer": "adamw",
        "optimizer.lr": "0.01",
        "scheduler": "onecycle",
        "scheduler.pct_start": "0.15",
        "augment": "shift",
        "augment.pixels": "2",
        "stopping": "none",
        "seed": "0",
        "split.validation": "0.1",
        "train.epochs": "2",
        "train.batch_size": "100",
        "loss.label_smoothing": "0.0",
        "device.name": "cpu",
        "device.threads": "1",
    }
    assert {key: params.get(key) for key in wanted} == wanted
    path = trained.client.download_artifacts(trained.run.info.run_id, "config.yaml", str(tmp_path))
    stored = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    settings = compose.load_config([*TRAIN], False)[1]
    assert stored == settings.training()
    named = {key.removesuffix(".name") if key != "device.name" else key: v for key, v in leaves(stored).items()}
    derived = {"plan.iterations_per_epoch", "plan.updates", "network.weights"}
    own = {key: value for key, value in params.items() if key not in derived}
    assert own == {key: str(value) for key, value in named.items() if value is not None}
    per_epoch = math.ceil(trained.images / 100)
    assert (params["plan.iterations_per_epoch"], params["plan.updates"]) == (str(per_epoch), str(EPOCHS * per_epoch))
    saved = torch.load(trained.folder / "checkpoints/epoch-0001.pt", weights_only=True)["network"]
    trained_weights = {key: value for key, value in saved.items() if key.endswith((".weight", ".bias"))}
    assert params["network.weights"] == str(sum(value.numel() for value in trained_weights.values()))


def test_tags_say_on_what_with_what_and_where_it_was_trained(trained: Trained) -> None:
    tags = trained.run.data.tags
    (split,) = (trained.project / "data/prepared").glob("mnist_sample-*")
    summary = json.loads((split / "summary.json").read_text())
    wanted = {
        "dataset": "mnist_sample",
        "data.checksum": summary["checksum"],
        "git.commit": live.git(trained.project, "rev-parse", "HEAD").strip(),
        "git.dirty": "false",
        "device": "cpu",
        "host": socket.gethostname(),
        "mlflow.runName": trained.folder.name,
        "folder": f"runs/{trained.folder.name}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": "1",
        "processor": platform.processor() or platform.machine(),
        "selection.metric": "val/loss",
        "selection.mode": "min",
        "selection.rule": "best",
        "selection.smoothing": "1",
    }
    assert {key: tags.get(key) for key in wanted} == wanted
    assert len(summary["checksum"]) == 64
    assert "offline_sample" not in tags, "the sample was asked for; it stands in for nothing"
    given = {tag.value: used.dataset for used in trained.run.inputs.dataset_inputs for tag in used.tags}
    names = {"training": "", "validation": "-validation", "testing": "-test"}
    assert {key: data.name for key, data in given.items()} == {key: f"mnist_sample{end}" for key, end in names.items()}
    for data in given.values():
        assert len(data.digest) >= 8 and summary["checksum"].startswith(data.digest)
        assert json.loads(data.profile)["train"] == trained.images


def test_the_run_has_its_folders_name_and_has_ended(trained: Trained) -> None:
    info = trained.run.info
    name = "mnist_sample-cnn-adamw-s0-name_cpu-threads1-precision_float32-epochs2"
    assert info.run_name == trained.folder.name == name
    assert info.status == "FINISHED"
    rows = live.table(trained.folder / "iterations.csv")
    assert info.start_time <= float(rows[0]["time"]) * 1000
    assert float(rows[-1]["time"]) * 1000 <= info.end_time <= time.time() * 1000
    noted = json.loads((trained.folder / "run.json").read_text())
    assert noted["status"] == "finished"
    assert noted["mlflow"] == {"uri": live.store(trained.project), "run_id": info.run_id}


def test_store_and_artifacts_are_at_the_projects_root_wherever_it_was_started(trained: Trained) -> None:
    assert [str(path.relative_to(trained.project)) for path in trained.project.rglob("mlflow.db")] == ["mlflow.db"]
    assert not list(trained.project.rglob("mlruns"))
    place = trained.run.info.artifact_uri.removeprefix("file://")
    assert Path(place).is_absolute()
    assert Path(place).is_relative_to(trained.project / "mlartifacts")
    assert (Path(place) / "config.yaml").is_file()
    assert live.git(trained.project, "status", "--porcelain") == "", "training left something that git would take"


def test_nothing_is_warned_of_when_all_is_well(trained: Trained) -> None:
    assert "warning" not in trained.printed.lower()


def test_weights_are_the_same_without_trackers_and_uncommitted_changes_are_told(trained: Trained) -> None:
    params = trained.project / "params.yaml"
    before = params.read_text()
    off = ("tracking.mlflow=false", "tracking.tensorboard=false")
    try:
        params.write_text(before + "# changed\n")
        live.run(trained.project, "train", *TRAIN, *off)
    finally:
        params.write_text(before)
    (folder,) = (path.parent for path in trained.project.glob("runs/*mlflow_false*/run.json"))
    assert live.weights(folder) == live.weights(trained.folder)
    assert {name for name, _ in live.weights(folder)} == {"epoch-0001.pt", "epoch-0002.pt"}
    assert live.numbers(folder) == live.numbers(trained.folder)
    assert not list(folder.glob("events.*"))
    assert len(live.mlflow_runs(trained.client)) == 1
    git = json.loads((folder / "run.json").read_text())["git"]
    assert git == {"commit": trained.run.data.tags["git.commit"], "dirty": True, "url": None}


# evaluation goes to the run that trained


@dataclass
class Evaluated:
    """What one evaluation added to the run."""

    run: Any
    models: list[Any]
    metrics: dict[str, Any]
    tensorboard: dict[str, list[live.Point]]


def evaluate(trained: Trained) -> Evaluated:
    (line,) = [line for line in trained.printed.splitlines() if line.startswith("evaluate ")]
    assert line.split(maxsplit=1)[1] == f"python -m bestepoch.evaluate run=runs/{trained.folder.name}"
    printed = live.run(trained.project, *line.split("bestepoch.")[1].split())
    assert "warning" not in printed
    client = trained.client
    (run,) = live.mlflow_runs(client)
    models = list(client.search_logged_models([run.info.experiment_id]))
    metrics = json.loads((trained.folder / "evaluate/metrics.json").read_text())
    return Evaluated(run, models, metrics, live.tensorboard_points(trained.folder))


@pytest.fixture(scope="module")
def evaluated(trained: Trained) -> Evaluated:
    return evaluate(trained)


def expected_results(trained: Trained, evaluated: Evaluated) -> dict[str, float]:
    """Chosen and counted here, from the tables alone."""
    best = min(live.table(trained.folder / "epochs.csv"), key=lambda row: float(row["val/loss"]))
    predictions = live.table(trained.folder / "evaluate/predictions.csv")
    right = sum(row["actual"] == row["predicted"] for row in predictions)
    assert len(predictions) == 500
    return {
        "best/epoch": float(best["epoch"]),
        "best/val_loss": float(best["val/loss"]),
        "best/val_accuracy": float(best["val/accuracy"]),
        "test/accuracy": right / 500,
        "test/loss": evaluated.metrics["test_loss"],
    }


def test_evaluation_adds_its_results_to_the_same_run_which_stays_as_it_ended(
    trained: Trained, evaluated: Evaluated
) -> None:
    assert evaluated.run.info.run_id == trained.run.info.run_id
    assert evaluated.run.info.status == "FINISHED"
    assert evaluated.run.info.end_time == trained.run.info.end_time
    assert evaluated.run.data.params == trained.run.data.params
    told = expected_results(trained, evaluated)
    before, after = trained.run.data.metrics, evaluated.run.data.metrics
    assert {key: after[key] for key in told} == pytest.approx(told, rel=1e-15)
    assert set(after) - set(before) == {"test/accuracy", "test/loss"}, "what validation says is known before"
    assert {key: after[key] for key in before} == before
    for key in told:
        assert len(trained.client.get_metric_history(trained.run.info.run_id, key)) == 1
    assert evaluated.metrics["test_accuracy"] == told["test/accuracy"] > 0.5
    # the curves are as they were
    after = live.mlflow_points(trained.client, trained.run.info.run_id)
    assert {key: after[key] for key in trained.points} == trained.points
    # TensorBoard has them too, once
    new = {key: points for key, points in evaluated.tensorboard.items() if key not in trained.tensorboard}
    of_test = {key: [(0, value)] for key, value in told.items() if key.startswith("test/")}
    assert new == live.as_float32(of_test), "the best epoch is there since the end of training"
    assert {key: evaluated.tensorboard[key] for key in trained.tensorboard} == trained.tensorboard


@pytest.fixture
def default_store(trained: Trained) -> Iterator[None]:
    """Models are loaded through MLflow's process-wide store."""
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(live.store(trained.project))
    yield
    mlflow.set_tracking_uri(before)


@pytest.mark.usefixtures("default_store")
def test_evaluation_logs_one_model_with_signature_and_example(trained: Trained, evaluated: Evaluated) -> None:
    from mlflow.models import Model

    (logged,) = evaluated.models
    assert {metric.key: metric.value for metric in logged.metrics} == expected_results(trained, evaluated)
    assert logged.source_run_id == trained.run.info.run_id
    described = Model.load(logged.model_uri)
    (column,) = described.signature.inputs.inputs
    assert (column.type, column.shape) == (np.dtype("float32"), (-1, 28, 28))
    (column,) = described.signature.outputs.inputs
    assert (column.type, column.shape) == (np.dtype("float32"), (-1, 10))
    assert described.saved_input_example_info is not None
    example = described.load_input_example()
    assert (example.dtype, example.shape) == (np.dtype("float32"), (2, 28, 28))
    assert described.flavors["python_function"]["loader_module"] == "mlflow.pytorch"


@pytest.mark.usefixtures("default_store")
def test_the_logged_model_predicts_what_the_network_predicts(trained: Trained, evaluated: Evaluated) -> None:
    import mlflow

    from bestepoch.base.config import groups
    from bestepoch.components.models import networks

    (split,) = (trained.project / "data/prepared").glob("mnist_sample-*")
    with np.load(split / "test.npz") as arrays:
        images = arrays["images"].astype(np.float32)
    best = int(evaluated.metrics["best_epoch"])
    summary = json.loads((split / "summary.json").read_text())
    menu = groups.CnnConfig(
        name="cnn",
        channels=[32, 32, 64, 128],
        kernel_sizes=[5, 3, 4, 3],
        strides=[2, 1, 2, 1],
        pool_sizes=[1],
        padding=0,
        activation="relu",
        dropout=0.0,
        tta_shift=0,
    )
    network = networks.build_network(menu, (28, 28), 10, summary["pixel_mean"], summary["pixel_std"])
    checkpoint = torch.load(trained.folder / f"checkpoints/epoch-{best:04d}.pt", weights_only=True)
    network.load_state_dict(checkpoint["network"])
    network.eval()
    with torch.inference_mode():
        logits = network(torch.from_numpy(images)).numpy()

    uri = f"models:/{evaluated.models[0].model_id}"
    through_pyfunc = mlflow.pyfunc.load_model(uri).predict(images)
    assert through_pyfunc.shape == (500, 10)
    np.testing.assert_allclose(through_pyfunc, logits, rtol=1e-4, atol=1e-4)
    with torch.inference_mode():
        through_torch = mlflow.pytorch.load_model(uri)(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(through_torch, logits, rtol=1e-4, atol=1e-4)
    # and those are the predictions that the evaluation counted
    told = [int(row["predicted"]) for row in live.table(trained.folder / "evaluate/predictions.csv")]
    assert through_pyfunc.argmax(1).tolist() == logits.argmax(1).tolist() == told


def test_evaluating_again_gives_the_same_and_breaks_nothing(trained: Trained, evaluated: Evaluated) -> None:
    again = evaluate(trained)
    assert again.metrics == evaluated.metrics
    assert again.run.data.metrics == evaluated.run.data.metrics
    assert (again.run.info.status, again.run.info.end_time) == ("FINISHED", trained.run.info.end_time)
    assert again.tensorboard == evaluated.tensorboard
    assert [model.model_id for model in again.models] == [model.model_id for model in evaluated.models]


class NoModel:
    """Cannot be logged."""

    def known(self, *_: object) -> None:
        return None

    def log(self, *_: object) -> None:
        raise OSError("no place for files")


@pytest.mark.usefixtures("default_store")
def test_a_model_that_cannot_be_stored_leaves_the_run_as_it_ended(
    trained: Trained, evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained.project)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    files = trained.folder / "evaluate"
    with pytest.raises(OSError, match="no place for files"):
        log_evaluation(Run.read(trained.folder), "bestepoch", trained.folder, {}, NoModel(), files, "words")  # type: ignore[arg-type]
    info = trained.client.get_run(trained.run.info.run_id).info
    assert (info.status, info.end_time) == ("FINISHED", evaluated.run.info.end_time)


# another store


def test_another_sqlite_store_by_a_relative_path_is_used(trained: Trained) -> None:
    runs = len(live.mlflow_runs(trained.client))
    uri = "sqlite:///elsewhere.db"
    live.run(trained.project, "train", *QUICK, "tracking.tensorboard=false", "seed=1", MLFLOW_TRACKING_URI=uri)
    (folder,) = (path.parent for path in trained.project.glob("runs/*-s1-*/run.json"))
    client = MlflowClient(tracking_uri=f"sqlite:///{trained.project / 'elsewhere.db'}")
    (run,) = live.mlflow_runs(client)
    assert (run.info.run_name, run.info.status) == (folder.name, "FINISHED")
    assert live.mlflow_points(client, run.info.run_id) == live.journal_points(folder)
    assert len(live.mlflow_runs(trained.client)) == runs
    assert not list(folder.glob("events.*")), "tracking.tensorboard=false"


@pytest.mark.parametrize(
    ("given", "used"),
    [
        (None, "sqlite:///{project}/mlflow.db"),
        ("", "sqlite:///{project}/mlflow.db"),
        ("sqlite:///other/store.db", "sqlite:///{here}/other/store.db"),
        ("sqlite:////data/store.db", "sqlite:////data/store.db"),
        ("http://tracking.example:5000", "http://tracking.example:5000"),
    ],
)
def test_the_store_is_named_by_mlflow_tracking_uri(
    given: str | None, used: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "below"
    here.mkdir()
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.chdir(here)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if given is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    assert store.store_uri() == used.format(project=tmp_path, here=here)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[live.Server]:
    server = live.Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


def test_a_server_gets_the_run_its_points_and_its_artifacts(trained: Trained, server: live.Server) -> None:
    address = server.address
    printed = live.run(trained.project, "train", *QUICK, "seed=2", MLFLOW_TRACKING_URI=address)
    assert "warning" not in printed.lower()
    (folder,) = (path.parent for path in trained.project.glob("runs/*-s2-*/run.json"))
    client = MlflowClient(tracking_uri=address)
    (run,) = live.mlflow_runs(client)
    assert (run.info.run_name, run.info.status) == (folder.name, "FINISHED")
    assert live.mlflow_points(client, run.info.run_id) == live.journal_points(folder)
    assert run.data.params["seed"] == "2"
    assert run.data.tags["dataset"] == "mnist_sample"
    assert [item.path for item in client.list_artifacts(run.info.run_id)] == ["config.yaml"]
    (stored,) = (server.folder / "served-artifacts").rglob("config.yaml")
    assert yaml.safe_load(stored.read_text())["seed"] == 2
    noted = json.loads((folder / "run.json").read_text())
    assert noted["mlflow"] == {"uri": address, "run_id": run.info.run_id}


def rows(first: int, last: int, **odd: float) -> list[Row]:
    """Iterations as the journal has them; ``_7=math.nan`` is the loss of the seventh."""
    made = [
        {"iteration": i, "epoch": 1, "train/loss": 1 / i, "lr": 1e-3 * i, "time": 1_790_000_000.0004 + i / 7}
        for i in range(first, last + 1)
    ]
    for name, value in odd.items():
        made[int(name[1:]) - first]["train/loss"] = value
    return [{key: float(value) for key, value in row.items()} for row in made]


@pytest.fixture
def tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowTracker:
    live.with_store(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", live.store(tmp_path))
    made = MlflowTracker(Run(tmp_path, {"status": "finished"}), "bestepoch")
    made.client = MlflowClient(tracking_uri=made.uri)
    made.cursor["run_id"] = made.client.create_run("0").info.run_id
    return made


@pytest.mark.parametrize(
    "chunks",
    [
        [rows(1, 1200)],
        [rows(1, 20), rows(1, 20), rows(15, 30)],  # sent again, and from further back
        [rows(1, 30, _3=math.nan, _4=math.inf, _5=-math.inf), rows(1, 33, _3=math.nan, _4=math.inf, _5=-math.inf)],
    ],
    ids=["many", "resent", "not finite"],
)
def test_each_row_is_stored_once_however_often_it_is_sent(tracker: MlflowTracker, chunks: list[list[Row]]) -> None:
    for chunk in chunks:
        tracker.write(chunk, [])
    sent = {row["iteration"]: row for chunk in chunks for row in chunk}
    run_id = tracker.cursor["run_id"]
    for key in ("train/loss", "lr"):
        points = sorted((m.step, m.timestamp, repr(m.value)) for m in tracker.client.get_metric_history(run_id, key))
        largest = 1.7976931348623157e308  # what MLflow has for infinity
        values = [
            min(max(row[key], -largest), largest) if not math.isnan(row[key]) else math.nan for row in sent.values()
        ]
        assert points == [
            (int(step), round(row["time"] * 1000), repr(value))
            for (step, row), value in zip(sorted(sent.items()), values, strict=True)
        ]
    last = sent[max(sent)]
    assert tracker.client.get_run(run_id).data.metrics == {key: last[key] for key in ("train/loss", "lr")}, (
        "a table of an earlier version has no norm of the gradient"
    )


def test_a_request_carries_as_many_metrics_as_mlflow_takes(
    tracker: MlflowTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(tracker.client, "log_batch", lambda run_id, metrics, synchronous: sizes.append(len(metrics)))
    epoch = {"epoch": 1.0, "time": 1.0, "val/loss": 0.1, "val/accuracy": 0.9, "train/epoch_loss": 0.2}
    tracker.write(rows(1, 1200), [epoch])
    assert sizes == [1000, 1000, 403]


def test_points_are_stored_when_they_are_confirmed_and_a_deleted_experiment_is_restored(tmp_path: Path) -> None:
    """Logging in the background, which the environment may ask for, would lose what an outage meets."""
    project = live.with_store(live.with_split(live.project(tmp_path / "project")))
    client = MlflowClient(tracking_uri=live.store(project))
    client.delete_experiment(client.create_experiment("bestepoch"))
    command = ("train", *live.SAMPLE, "model=mlp", "model.hidden=[8]", "train.epochs=1")
    printed = live.run(project, *command, MLFLOW_ENABLE_ASYNC_LOGGING="true")
    assert "warning: the experiment bestepoch was deleted in MLflow; it is restored, with its runs\n" in printed
    (run,) = live.mlflow_runs(client)
    assert live.mlflow_points(client, run.info.run_id) == live.journal_points(live.only_run(project))


def test_a_user_without_a_name_and_a_home_gets_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)  # raises KeyError, as of a user without an entry
    for key in ("LOGNAME", "USER", "LNAME", "USERNAME", "HOME"):
        monkeypatch.setenv(key, "")  # so that it is as before in the end
        monkeypatch.delenv(key)
    ensure_user()
    assert getpass.getuser() == f"uid-{os.getuid()}" and Path.home().stat().st_mode & 0o777 == 0o700
