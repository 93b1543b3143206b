"""`mlflow models serve` on the champion answers raw pixels with what `python -m bestepoch.predict` says."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import live
from bestepoch.prediction.predict import predict_probabilities
from pipeline import edit

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("serving")]


@contextlib.contextmanager
def served(project: Path, name: str) -> Iterator[str]:
    """The command of the README, on a port of its own; the address that answers."""
    port = live.free_port()
    log = (project / "serving.log").open("w+")
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{name}@champion"),
            *("--env-manager", "local", "--port", str(port)),
        ],
        cwd=project,
        # the server that it starts is found by its name
        env=live.environment(project, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}"),
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        for _ in range(480):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=2).close()
                break
            assert server.poll() is None, (project / "serving.log").read_text()
            time.sleep(0.25)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
        log.close()


def ask(address: str, question: Any) -> Any:
    """The answer to a request in JSON."""
    request = urllib.request.Request(address, json.dumps(question).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def answers(address: str, images: np.ndarray) -> np.ndarray:
    """Probabilities from the logits that it answers."""
    logits = np.array(ask(address, {"inputs": images.tolist()})["predictions"])
    assert logits.shape == (len(images), 10)
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(odds / odds.sum(1, keepdims=True))


def predicted(printed: str) -> list[int]:
    return [int(line.split("  ")[1]) for line in printed.splitlines() if "  then " in line]


def written(images: np.ndarray, folder: Path) -> list[str]:
    for number, pixels in enumerate(images):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return [str(folder / f"{number}.png") for number in range(len(images))]


def test_the_served_champion_answers_as_predict_does(tmp_path: Path) -> None:
    project = live.with_store(live.with_split(live.project(tmp_path / "project")))
    edit(project / "params.yaml", "data: mnist ", "data: mnist_sample ")
    live.run(project, "train", *live.SAMPLE, "model=mlp", "model.hidden=[32]", "train.epochs=1")
    run = live.only_run(project)
    live.run(project, "evaluate", f"run=runs/{run.name}")
    (split,) = (project / "data/prepared").glob("mnist_sample-*")
    with np.load(split / "test.npz") as arrays:
        images = arrays["images"]
    from bestepoch.runs import checkpoint

    wanted = predict_probabilities(checkpoint.load(run / "evaluate/model.pt"), images)
    with served(project, "bestepoch-mnist_sample") as address:
        np.testing.assert_allclose(answers(address, images), wanted, atol=1e-5)
        np.testing.assert_allclose(answers(address, images[:1]), wanted[:1], atol=1e-5)  # one is no special case
        for wrong in ({"inputs": images[0].tolist()}, {"inputs": [["seven"]]}, {"pixels": images[:1].tolist()}):
            with pytest.raises(urllib.error.HTTPError, match="400"):
                ask(address, wrong)
        assert address.startswith("http://127.0.0.1:")
    labels = predicted(live.run(project, "predict", *written(images, tmp_path)))
    assert labels == wanted.argmax(1).tolist()


@pytest.mark.skipif(not Path(os.environ.get("BESTEPOCH_MIRROR") or "-").is_dir(), reason="needs the real files")
def test_served_and_predicted_are_equal_on_the_ten_thousand_test_images(tmp_path: Path) -> None:
    mirror = {"BESTEPOCH_MIRROR": os.environ["BESTEPOCH_MIRROR"]}
    project = live.with_store(live.project(tmp_path / "project"))
    cpu = ("device.name=cpu", "device.threads=1")
    live.run(project, "train", *cpu, "train.epochs=null", "train.iterations=100", **mirror)
    run = live.only_run(project)
    live.run(project, "evaluate", f"run=runs/{run.name}", **mirror)
    (split,) = (project / "data/prepared").glob("mnist-*")
    with np.load(split / "test.npz") as arrays:
        images = arrays["images"]
    assert len(images) == 10_000
    with served(project, "bestepoch-mnist") as address:
        odds = np.concatenate([answers(address, part) for part in np.split(images, 10)])
        np.testing.assert_allclose(answers(address, images[:1]), odds[:1], atol=1e-5)
    from bestepoch.runs import checkpoint

    mine = predict_probabilities(checkpoint.load(run / "evaluate/model.pt"), images)
    np.testing.assert_allclose(odds, mine, atol=1e-5)
    # and through pictures on the disk, read and prepared as any other
    labels = predicted(live.run(project, "predict", *written(images, tmp_path)))
    assert labels == odds.argmax(1).tolist()
