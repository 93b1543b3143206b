"""`dvc repro` and its relatives on a fresh copy of the project, with the offline sample unless said otherwise."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline import commit, edit, environment, fresh_copy, metrics, run, trainings


def ran(said: str) -> list[str]:
    """The stages that `dvc repro` ran."""
    return re.findall(r"Running stage '(\w+)'", said)


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The default experiment where nothing but the package index can be reached, and what it said."""
    folder = fresh_copy(tmp_path_factory.mktemp("offline"))
    said = run(folder, "dvc", "repro")
    yield folder, said


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small experiment, committed, that has run once: for what changes later."""
    folder = fresh_copy(tmp_path_factory.mktemp("short"))
    edit(folder / "params.yaml", "data: mnist ", "data: mnist_sample ")
    edit(folder / "params.yaml", "model: cnn ", "model: mlp ")
    edit(folder / "params.yaml", "epochs: 6 ", "epochs: 2 ")
    assert ran(run(folder, "dvc", "repro")) == ["fetch", "split", "train", "evaluate"]
    commit(folder)
    return folder


pytestmark = pytest.mark.xdist_group("pipeline")


def test_with_no_mirror_the_sample_serves_and_says_so(offline: tuple[Path, str]) -> None:
    folder, said = offline
    assert "WARNING: no mirror of mnist answered" in said
    assert "dvc repro -f fetch && dvc repro" in said
    assert json.loads((folder / "data/split/summary.json").read_text())["name"] == "mnist_sample"
    assert metrics(folder)["test_accuracy"] >= 0.95
    assert "Offline sample" in (folder / "results/evaluate/report.html").read_text()
    (trained,) = trainings(folder)
    assert trained.data.tags["dataset"] == "mnist_sample"
    assert trained.data.tags["offline_sample"] == "stands in for mnist"


def test_the_stages_leave_one_finished_run_with_training_and_evaluation(offline: tuple[Path, str]) -> None:
    folder, _ = offline
    (trained,) = trainings(folder)
    result = metrics(folder)
    assert trained.info.status == "FINISHED"
    assert trained.data.metrics["best/epoch"] == result["best_epoch"]
    assert trained.data.metrics["test/accuracy"] == result["test_accuracy"]
    assert trained.data.metrics["best/val_loss"] == result["val_loss"]
    assert trained.data.tags["dvc.data"].endswith(".dir")
    assert json.loads((folder / "results/train/run.json").read_text())["mlflow"]["run_id"] == trained.info.run_id


def test_a_second_time_there_is_nothing_to_do(offline: tuple[Path, str]) -> None:
    folder, _ = offline
    said = run(folder, "dvc", "repro")
    assert ran(said) == []
    assert "Data and pipelines are up to date" in said
    changed = {line[3:] for line in run(folder, "git", "status", "--porcelain").splitlines()}
    assert changed <= {"dvc.lock", "data.dvc"}


def test_the_full_set_can_be_had_later(offline: tuple[Path, str], tmp_path: Path) -> None:
    """`dvc repro -f fetch` asks again: here of a mirror with another file, which the checksum must not let in."""
    folder, _ = offline
    for name in ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"):
        (tmp_path / name).write_bytes(b"not the published file")
    said = run(folder, "dvc", "repro", "-f", "fetch", ok=False, mirror=str(tmp_path))
    assert "train-images-idx3-ubyte.gz has the wrong checksum" in said
    assert "stands in" not in said


def test_metrics_params_and_plots_are_there_for_dvc(offline: tuple[Path, str]) -> None:
    folder, _ = offline
    assert "test_accuracy" in run(folder, "dvc", "metrics", "show")
    run(folder, "dvc", "params", "diff")
    run(folder, "dvc", "plots", "show", "-o", "dvc_plots")
    page = (folder / "dvc_plots/index.html").read_text()
    for title in (
        "training loss by iteration",
        "learning rate by iteration",
        "loss by epoch",
        "accuracy by epoch",
        "confusion matrix",
    ):
        assert title in page
    assert page.count('"iteration": "246"') >= 1 or page.count('"iteration":"246"') >= 1


def test_new_names_of_the_classes_train_nothing(short: Path) -> None:
    names = [f"digit {i}" for i in range(10)]
    edit(short / "conf/data/mnist_sample.yaml", "class_names: null", f"class_names: {names}")
    assert set(ran(run(short, "dvc", "repro"))) == {"fetch", "evaluate"}
    assert "digit 7" in (short / "results/evaluate/report.html").read_text()
    run(short, "git", "checkout", "conf/data/mnist_sample.yaml")
    run(short, "dvc", "repro")
    assert len(trainings(short)) == 1


def test_a_changed_selection_runs_evaluate_alone(short: Path) -> None:
    edit(short / "params.yaml", "metric: val/loss ", "metric: val/accuracy ")
    assert ran(run(short, "dvc", "repro")) == ["evaluate"]
    assert "val/accuracy" in (short / "results/evaluate/report.html").read_text()
    run(short, "git", "checkout", "params.yaml")
    run(short, "dvc", "repro")
    assert len(trainings(short)) == 1


def test_a_file_of_the_menus_that_is_not_chosen_changes_nothing(short: Path) -> None:
    edit(short / "conf/optimizer/sgd.yaml", "lr: 0.05", "lr: 0.06")
    assert ran(run(short, "dvc", "repro")) == []
    run(short, "git", "checkout", "conf")


def test_what_the_evaluation_alone_shows_is_no_reason_to_train_again(short: Path) -> None:
    edit(short / "conf/config.yaml", "histograms: false", "histograms: true")
    assert ran(run(short, "dvc", "repro")) == ["evaluate"]
    run(short, "git", "checkout", "conf")
    run(short, "dvc", "repro")


def test_a_chosen_file_of_the_menus_trains_again(short: Path) -> None:
    edit(short / "conf/optimizer/adamw.yaml", "lr: 0.01", "lr: 0.005")
    assert ran(run(short, "dvc", "repro", "--dry")) == ["train"]
    run(short, "git", "checkout", "conf")


def test_experiments_start_from_the_same_place(short: Path) -> None:
    run(short, "git", "checkout", "-q", ".")
    said = run(short, "dvc", "exp", "run", "-n", "other", "-S", "optimizer=sgd", "-S", "train.epochs=1")
    assert ran(said)[-2:] == ["train", "evaluate"]
    shown = run(short, "dvc", "exp", "show", "--json")
    assert "other" in [
        experiment["name"]
        for rev in json.loads(shown[shown.index("[") : shown.rindex("]") + 1])
        for experiment in rev["experiments"] or []
    ]
    newest = trainings(short)[-1]
    assert (newest.data.params["optimizer"], newest.data.params["train.epochs"]) == ("sgd", "1")
    assert "test_accuracy" in run(short, "dvc", "metrics", "diff", "--all")
    assert "optimizer" in run(short, "dvc", "params", "diff")
    run(short, "git", "checkout", "-q", ".")


def test_experiments_of_a_queue_run_in_copies_beside_each_other_and_log_to_the_real_store(short: Path) -> None:
    run(short, "git", "checkout", "-q", ".")
    before = {r.info.run_id for r in trainings(short)}
    # seen only if the copies' own file is what runs: the original is restored before the experiments start
    edit(short / "src/bestepoch/training/session.py", '"plan     %s"', '"PLAN     %s"')
    changed = ("-S", "optimizer=sgd,adamw", "-S", "conf/optimizer/adamw.yaml:lr=0.007")
    said = run(short, "dvc", "exp", "run", "--queue", *changed)
    run(short, "git", "checkout", "-q", ".")
    names = re.findall(r"Queued experiment '([\w-]+)'", said)
    assert len(names) == 2
    run(short, "dvc", "queue", "start", "-j", "2")
    end = time.monotonic() + 240
    while True:
        status = run(short, "dvc", "queue", "status")
        if all(re.search(rf"{name}\b.*Success", status) for name in names):
            break
        assert "Failed" not in status and time.monotonic() < end, status
        time.sleep(1)
    assert all("PLAN     4,050 images" in run(short, "dvc", "queue", "logs", name) for name in names)
    made = [r for r in trainings(short) if r.info.run_id not in before]
    assert sorted((r.data.params["optimizer"], r.data.params["optimizer.lr"]) for r in made) == [
        ("adamw", "0.007"),
        ("sgd", "0.05"),
    ]
    for r in made:
        assert r.info.status == "FINISHED"
        assert "test/accuracy" in r.data.metrics
        place = Path(r.info.artifact_uri.removeprefix("file://"))
        assert place.is_dir() and (short / "mlartifacts") in place.parents
        assert (short / "runs" / r.info.run_name / "iterations.csv").is_file()
    shown = run(short, "dvc", "exp", "show", "--csv")
    assert all(name in shown for name in names)


def test_a_remote_gives_back_what_was_pushed(short: Path, tmp_path: Path) -> None:
    run(short, "git", "checkout", "-q", ".")
    run(short, "dvc", "checkout")
    run(short, "dvc", "remote", "add", "-d", "store", str(tmp_path / "remote"))
    run(short, "dvc", "push")
    commit(short)
    other = tmp_path / "other"
    run(tmp_path, "git", "clone", "-q", str(short), str(other))
    run(other, "dvc", "pull", "data.dvc")
    assert (other / "data/raw/dataset.json").read_bytes() == (short / "data/raw/dataset.json").read_bytes()
    run(other, "dvc", "pull")
    assert metrics(other) == metrics(short)
    assert ran(run(other, "dvc", "repro")) == []
    # the store of this clone has no such run: evaluate makes it from the journal
    said = run(other, "dvc", "repro", "-f", "-s", "evaluate")
    assert ran(said) == ["evaluate"]
    (made,) = trainings(other)
    client = MlflowClient(f"sqlite:///{other / 'mlflow.db'}")
    rows = (other / "results/train/iterations.csv").read_text().splitlines()[1:]
    history = client.get_metric_history(made.info.run_id, "train/loss")
    assert [m.step for m in history] == list(range(1, len(rows) + 1))
    assert [m.value for m in history] == [float(row.split(",")[2]) for row in rows]
    assert made.info.status == "FINISHED" and "test/accuracy" in made.data.metrics


def test_code_edited_during_training_is_not_vouched_for(short: Path) -> None:
    run(short, "git", "checkout", "-q", ".")
    edit(short / "params.yaml", "epochs: 2 ", "epochs: 40 ")
    loop = short / "src/bestepoch/training/loop.py"
    text = loop.read_text()
    before = set((short / "runs").iterdir())
    with subprocess.Popen(
        ["dvc", "repro"], cwd=short, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as repro:
        until = time.monotonic() + 120
        while not any((f / "epochs.csv").exists() for f in set((short / "runs").iterdir()) - before):
            assert time.monotonic() < until
            time.sleep(0.1)
        loop.write_text(text + "\n# edited\n")
        said = repro.communicate(timeout=300)[0]
    loop.write_text(text)
    assert repro.returncode != 0
    assert "The training code was edited while it ran" in said
    run(short, "git", "checkout", "-q", ".")


def test_a_run_killed_before_dvc_had_it_is_not_trained_again(short: Path) -> None:
    run(short, "git", "checkout", "-q", ".")
    run(short, "dvc", "repro")
    lock = short / "dvc.lock"
    before_it = lock.read_text()
    # asked for again when DVC has it, it is trained again
    assert "epoch 2/2" in run(short, "dvc", "repro", "-f", "-s", "train")
    trained = json.loads((short / "results/train/run.json").read_text())
    note = short / "runs" / trained["name"] / "run.json"
    # what a kill in the last moments leaves: all is published, and DVC does not know
    known = lock.read_text()
    lock.write_text(before_it)
    before = len(trainings(short))
    assert "is finished already and is taken as it is" in run(short, "dvc", "repro", "-f", "-s", "train")
    assert len(trainings(short)) == before
    assert json.loads((short / "results/train/run.json").read_text()) == trained
    assert lock.read_text() == known
    # and what one a little earlier leaves
    info = json.loads(note.read_text())
    del info["published"]
    note.write_text(json.dumps(info))
    assert "is finished already and is taken as it is" in run(short, "dvc", "repro", "-f", "-s", "train")
    for _ in range(2):  # neither this run nor the one before it is taken for one that DVC has not
        assert "epoch 2/2" in run(short, "dvc", "repro", "-f", "-s", "train")
    assert len(trainings(short)) == before + 2


@pytest.mark.slow
@pytest.mark.skipif(not Path(os.environ.get("BESTEPOCH_MIRROR") or "-").is_dir(), reason="needs the real files")
def test_real_mnist_from_a_fresh_clone(tmp_path: Path) -> None:
    mirror = os.environ["BESTEPOCH_MIRROR"]
    folder = fresh_copy(tmp_path)
    edit(folder / "params.yaml", "  epochs: 6 ", "  epochs: 2 ")  # a third of the time
    commit(folder)
    run(folder, "dvc", "repro", mirror=mirror)
    assert metrics(folder)["test_accuracy"] >= 0.990
    summary = json.loads((folder / "data/split/summary.json").read_text())
    assert summary["sizes"] == {"train": 54_000, "validation": 6_000, "test": 10_000}
    (trained,) = trainings(folder)
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    updates = int(trained.data.params["train.epochs"]) * -(-54_000 // int(trained.data.params["train.batch_size"]))
    for name in ("train/loss", "lr"):
        assert [m.step for m in client.get_metric_history(trained.info.run_id, name)] == list(range(1, updates + 1))
    assert ran(run(folder, "dvc", "repro", mirror=mirror)) == []
    assert {line[3:] for line in run(folder, "git", "status", "--porcelain").splitlines()} <= {"dvc.lock"}


@pytest.mark.skipif(not Path(os.environ.get("BESTEPOCH_MIRROR") or "-").is_dir(), reason="needs the real files")
def test_one_flipped_byte_fails_and_leaves_nothing_behind(tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    shutil.copytree(os.environ["BESTEPOCH_MIRROR"], mirror)
    damaged = mirror / "t10k-images-idx3-ubyte.gz"
    damaged.chmod(0o644)
    content = bytearray(damaged.read_bytes())
    content[1000] ^= 1
    damaged.write_bytes(content)
    folder = fresh_copy(tmp_path / "project")
    said = run(folder, "dvc", "repro", ok=False, mirror=str(mirror))
    assert "t10k-images-idx3-ubyte.gz has the wrong checksum" in said
    assert "no sample takes its place" in said
    assert not any(path.name != ".gitignore" for path in (folder / "data").rglob("*") if path.is_file())
