"""Training on a data set of one's own files."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import live
from invented import MINE, OWN, parts_of

# A data set of one's own: four files and one new file in conf/data/.


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project as it is now, with a data set of one's own."""
    folder = live.project(tmp_path_factory.mktemp("checkout"))
    OWN.write(folder / "my/files")
    (folder / "my/files/dataset.json").unlink()
    (folder / "conf/data/mine.yaml").write_text(MINE)
    return folder


@pytest.fixture
def in_checkout(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(checkout)
    monkeypatch.delenv("BESTEPOCH_MIRROR", raising=False)
    shutil.rmtree(checkout / "data/prepared", ignore_errors=True)
    return checkout


def test_training_on_a_data_set_of_ones_own(in_checkout):
    """One new file in conf/data/, no code: the command trains on it, and says so when its size does not fit."""

    def train(*overrides: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "bestepoch.train", "data=mine", "device.name=cpu", *overrides],
            cwd=in_checkout,
            env={**os.environ, "PYTHONPATH": str(in_checkout / "src")},
            capture_output=True,
            text=True,
            timeout=120,
        )

    done = train()
    assert done.returncode == 2, done.stderr
    assert done.stderr.strip().endswith(
        "bestepoch: split.validation = 0.1 asks for 154 of 1,536 images; with 256 classes, each in both parts, "
        "256 to 1,280 are possible"
    )
    assert not (in_checkout / "runs").exists()

    given = ["split.validation=512", "train.iterations=3", "train.batch_size=500"]
    given += ["tracking.mlflow=false", "tracking.tensorboard=false"]
    done = train(*given)
    assert done.returncode == 2, done.stderr
    advice = "model.padding=2"
    assert done.stderr.strip().endswith(
        "bestepoch: model = cnn leaves nothing of images of 12 x 20 pixels after 3 of its blocks: give it fewer "
        f"model.channels, smaller model.kernel_sizes, or {advice}"
    )
    assert not (in_checkout / "runs").exists()

    done = train(*given, advice)
    assert done.returncode == 0, done.stderr
    [folder] = [path.parent for path in (in_checkout / "runs").glob("*/run.json")]
    run = json.loads((folder / "run.json").read_text())
    assert run["status"] == "finished"
    assert run["data"]["name"] == run["data"]["requested"] == run["config"]["data"] == "mine"
    assert run["data"]["classes"] == 256
    assert run["data"]["shape"] == [12, 20]
    assert run["data"]["sizes"] == {"train": 1024, "validation": 512, "test": 256}
    summary = json.loads((in_checkout / run["data"]["folder"] / "summary.json").read_text())
    assert run["data"]["checksum"] == summary["checksum"]
    assert run["data"]["pixel_mean"] == summary["pixel_mean"]
    images, labels = parts_of(in_checkout / run["data"]["folder"])["test"]
    np.testing.assert_array_equal(images, OWN.test_images)
    np.testing.assert_array_equal(labels, OWN.test_labels)

    with (folder / "iterations.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file)]
    assert len(losses) == 3
    assert abs(losses[0] - math.log(256)) < 0.5  # as good as guessing among 256, before the first update
    assert "data     mine" in done.stderr
    # the pipeline's own folders are left alone
    assert [path.name for path in (in_checkout / "data/split").iterdir()] == [".gitignore"]
    assert not (in_checkout / "data/download").exists()
