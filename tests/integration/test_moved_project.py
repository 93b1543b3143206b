"""A project that was moved or copied keeps its artifacts and its champion, and a copy leaves the original alone."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from PIL import Image, ImageDraw

import live

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("moved")]

TRAIN = (*live.SAMPLE, "model=mlp", "model.hidden=[16]", "train.epochs=1")
CHAMPION = "model=models:/bestepoch-mnist_sample@champion"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with one evaluated run, and a picture."""
    project = live.with_store(live.with_split(live.project(tmp_path_factory.mktemp("a place") / "first")))
    live.run(project, "train", *TRAIN)
    live.run(project, "evaluate", f"run={live.only_run(project)}")
    picture = Image.new("L", (28, 28))
    ImageDraw.Draw(picture).line((14, 4, 14, 24), fill=255, width=3)
    picture.save(project / "one.png")
    return project


def copy(project: Path, to: Path) -> Path:
    shutil.copytree(project, to, symlinks=True)
    return to


def second_run(project: Path) -> Path:
    return next((project / "runs").glob("*-s1-*")).relative_to(project)


def addresses(project: Path) -> set[str]:
    """Each address of artifacts that the store holds, but for those that name no folder."""
    columns = ("experiments.artifact_location", "runs.artifact_uri", "logged_models.artifact_location")
    with sqlite3.connect(project / "mlflow.db") as store:
        found = {
            address
            for column in (*columns, "model_versions.storage_location")
            for (address,) in store.execute(f"SELECT {column} FROM {column.partition('.')[0]}")
        }
    return {address for address in found if "/mlruns/" not in address}


def files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in (folder / "mlartifacts").rglob("*") if path.is_file()}


def test_a_moved_project_keeps_its_champion_and_its_artifacts(trained: Path, tmp_path: Path) -> None:
    before = copy(trained, tmp_path / "before")
    live.run(before, "predict", "one.png", CHAMPION)  # the store is that of this folder now
    moved = tmp_path / "new place" / "it's 100%"
    moved.parent.mkdir()
    before.rename(moved)
    printed = live.run(moved, "predict", "one.png", CHAMPION)
    assert f"moved    the project was in {before} before: " in printed and "one.png  " in printed
    assert addresses(moved) and all(address.startswith(f"{moved.as_uri()}/") for address in addresses(moved))
    assert not list(moved.glob("mlflow.db.*"))
    records = [*moved.glob("runs/*/state/mlflow.json"), *moved.glob("runs/*/run.json")]
    assert len(records) == 2 and all(json.dumps(live.store(moved)) in path.read_text() for path in records)
    assert "moved" not in live.run(moved, "predict", "one.png", CHAMPION)  # said once
    live.run(moved, "train", *TRAIN, "seed=1")
    live.run(moved, "evaluate", f"run={second_run(moved)}")
    assert not before.exists()
    client = MlflowClient(live.store(moved))
    for run in live.mlflow_runs(client):
        assert {"config.yaml", "evaluate"} <= {file.path for file in client.list_artifacts(run.info.run_id)}


def test_a_copy_writes_nothing_into_the_original(trained: Path, tmp_path: Path) -> None:
    original, store = files(trained), (trained / "mlflow.db").read_bytes()
    second = copy(trained, tmp_path / "second")
    printed = live.run(second, "train", *TRAIN, "seed=1")
    assert printed.count("moved    ") == 1
    live.run(second, "evaluate", f"run={second_run(second)}")
    assert files(trained) == original and (trained / "mlflow.db").read_bytes() == store
    assert len(files(second)) > len(original)


def test_two_commands_at_once_after_a_move_say_it_once(trained: Path, tmp_path: Path) -> None:
    second = copy(trained, tmp_path / "second")
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "bestepoch.predict", "one.png", CHAMPION],
            cwd=second,
            env=live.environment(second),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    printed = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    assert "".join(printed).count("moved    ") == 1


def test_a_store_outside_of_the_project_is_left_alone(trained: Path, tmp_path: Path) -> None:
    second = live.with_split(live.project(tmp_path / "second"))
    shared = tmp_path / "shared.db"
    shutil.copyfile(trained / "mlflow.db", shared)
    live.run(second, "train", *TRAIN, "seed=1", MLFLOW_TRACKING_URI=f"sqlite:///{shared}")
    with sqlite3.connect(shared) as store:
        assert store.execute("SELECT artifact_location FROM experiments WHERE name = 'bestepoch'").fetchall() == [
            (f"{trained.as_uri()}/mlartifacts/bestepoch",)
        ]


def test_one_project_under_two_paths_is_not_moved(trained: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(trained)
    before = addresses(trained)
    # the package's own folder is the project where the working directory is none, and there the link stays
    live.run(trained, "predict", str(trained / "one.png"), CHAMPION, at=tmp_path, PYTHONPATH=str(link / "src"))
    assert addresses(trained) == before
