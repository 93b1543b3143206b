"""`python -m bestepoch.predict`: what is on a picture, by which model, and what a mistake is answered with."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import live
from bestepoch.base.errors import UsageError
from bestepoch.components.models.model_file import restore_network
from bestepoch.prediction.predict import preprocess
from pipeline import edit

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("predict")]

LINE = re.compile(r"(\S+)  (\d)  ([\d.]+)%  then (\d) ([\d.]+)%, (\d) ([\d.]+)%")
HEAVY = {"torch", "mlflow", "sklearn", "tensorboard", "matplotlib", "pandas", "hydra"}


@dataclass
class Ready:
    """A project with a champion of its own data set, and the sample's test images."""

    project: Path
    run: Path
    images: np.ndarray
    labels: np.ndarray

    def predict(self, *arguments: str, code: int = 0, **more: str) -> str:
        return live.run(self.project, "predict", *arguments, code=code, **more)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Ready:
    project = live.with_store(live.with_split(live.project(tmp_path_factory.mktemp("predict") / "project")))
    edit(project / "params.yaml", "data: mnist ", "data: mnist_sample ")
    live.run(project, "train", *live.SAMPLE, "model=lenet", "train.epochs=3")
    run = live.only_run(project)
    live.run(project, "evaluate", f"run=runs/{run.name}")
    (split,) = (project / "data/prepared").glob("mnist_sample-*")
    with np.load(split / "test.npz") as arrays:
        return Ready(project, run, arrays["images"], arrays["labels"])


def test_a_network_that_other_code_has_trained_is_not_guessed_at() -> None:
    before = {"name": "cnn", "channels": [4], "first_kernel": 5, "first_stride": 2, "kernel": 3, "padding": 0}
    with pytest.raises(UsageError) as caught:
        restore_network({"model": before | {"activation": "relu", "dropout": 0.0}, "run": "mnist-cnn-adamw-s0"})
    assert str(caught.value) == (
        "The network of run mnist-cnn-adamw-s0 has other settings than conf/model/cnn.yaml by now: it was trained by "
        "other code. Check that out, or train it again: dvc repro"
    )


def told(printed: str) -> list[tuple[str, ...]]:
    return [match.groups() for match in map(LINE.fullmatch, printed.splitlines()) if match]


def large(pixels: np.ndarray, place: Path, number: int) -> str:
    """A digit as it may come: large, off-centre, dark on light or light on dark, in one format or the other."""
    made = Image.new("L", (420, 520))
    made.paste(Image.fromarray(pixels).resize((280, 280), Image.Resampling.BICUBIC), (number * 7 % 140, number % 240))
    if number % 2:
        made = Image.fromarray(255 - np.asarray(made))
    path = place / f"{number}.{('png', 'jpg', 'jpeg')[number % 3]}"
    made.save(path)
    return str(path)


def test_each_picture_has_a_line_with_label_probability_and_the_next_two(ready: Ready, tmp_path: Path) -> None:
    for i in range(3):
        Image.fromarray(ready.images[i]).save(tmp_path / f"{i}.png")
    names = [str(tmp_path / f"{i}.png") for i in range(3)]
    printed = ready.predict(*names)
    assert f"model    models:/bestepoch-mnist_sample/1 (champion), run {ready.run.name}, epoch 3" in printed
    lines = told(printed)
    assert [line[0] for line in lines] == names
    predictions = live.table(ready.run / "evaluate/predictions.csv")
    for line, row in zip(lines, predictions, strict=False):
        assert line[1] == row["predicted"]
        assert float(line[2]) == pytest.approx(100 * float(row["confidence"]), abs=0.006)
        assert float(line[2]) >= float(line[4]) >= float(line[6]) >= 0
        assert len({line[1], line[3], line[5]}) == 3
    assert told(ready.predict(names[1])) == [lines[1]], "alone as in a batch"


def test_pictures_large_inverted_off_centre_and_as_jpeg_are_taken_for_what_the_images_are(
    ready: Ready, tmp_path: Path
) -> None:
    names = [large(pixels, tmp_path, number) for number, pixels in enumerate(ready.images[:120])]
    lines = told(ready.predict(*names))
    rows = live.table(ready.run / "evaluate/predictions.csv")[:120]
    assert len(lines) == 120
    # a digit drawn anew is another image; where the network was sure, it stays so
    sure = [
        (line[1], row["predicted"]) for line, row in zip(lines, rows, strict=True) if float(row["confidence"]) > 0.9
    ]
    assert len(sure) > 60
    assert [drawn for drawn, _ in sure] == [original for _, original in sure]
    assert sum(line[1] == row["predicted"] for line, row in zip(lines, rows, strict=True)) >= 114


def test_explain_writes_what_the_network_sees_and_overwrites_nothing_else(ready: Ready, tmp_path: Path) -> None:
    name = large(ready.images[0], tmp_path, 0)
    beside = tmp_path / "0.28x28.png"
    for _ in range(2):  # its own it writes again
        assert str(beside) in ready.predict("--explain", name)
        with Image.open(beside) as shown:
            assert shown.size == (28, 28)
            assert np.abs(np.asarray(shown, float) - ready.images[0]).mean() < 20
    other = tmp_path / "0.jpg"
    Image.open(name).save(other)
    assert f"{beside} is there and not the explanation of 0.jpg" in ready.predict(str(other), "--explain", code=2)
    beside.write_text("mine")
    assert "it is left as it is. Move it" in ready.predict("--explain", name, code=2)
    assert beside.read_text() == "mine"


def test_any_evaluated_model_can_be_named(ready: Ready, tmp_path: Path) -> None:
    name = large(ready.images[0], tmp_path, 0)
    by_default = told(ready.predict(name))
    folder = f"runs/{ready.run.name}/evaluate"
    for model in ("models:/bestepoch-mnist_sample@champion", "models:/bestepoch-mnist_sample/1", folder):
        printed = ready.predict(name, f"model={model}")
        assert f"model    {model}" in printed
        assert told(printed) == by_default
    assert told(ready.predict(name, f"model={ready.project / folder / 'model.pt'}")) == by_default


def test_without_a_champion_it_is_the_last_result(ready: Ready, tmp_path: Path) -> None:
    name = large(ready.images[0], tmp_path, 0)
    nowhere = f"http://127.0.0.1:{live.free_port()}"
    missing = ready.predict(name, code=2, MLFLOW_TRACKING_URI=nowhere)
    assert "warning: MLflow's registry does not answer" in missing
    assert "There is no model yet" in missing and "dvc repro" in missing
    assert "Traceback" not in missing
    last = ready.project / "results/evaluate"
    last.mkdir(parents=True, exist_ok=True)
    (last / "model.pt").write_bytes((ready.run / "evaluate/model.pt").read_bytes())
    try:
        empty = f"sqlite:///{tmp_path / 'not-there.db'}"
        assert "model    results/evaluate/model.pt" in ready.predict(name, MLFLOW_TRACKING_URI=empty)
        assert not (tmp_path / "not-there.db").exists(), "asking makes no store"
        edit(ready.project / "conf/config.yaml", "  enabled: true ", "  enabled: false ")
        assert "model    results/evaluate/model.pt" in ready.predict(name)
    finally:
        (last / "model.pt").unlink()
        with contextlib.suppress(AssertionError):
            edit(ready.project / "conf/config.yaml", "  enabled: false ", "  enabled: true ")


@pytest.fixture(scope="module")
def wrong(ready: Ready) -> Path:
    """Files that are no pictures of a digit."""
    place = ready.project / "wrong"
    (place / "folder").mkdir(parents=True)
    Image.new("L", (50, 40), 255).save(place / "blank.png")
    (place / "nothing.png").touch()
    (place / "text.png").write_text("a seven")
    Image.new("L", (50, 40)).save(place / "other.gif")
    whole = large(ready.images[0], place, 0)
    (place / "cut.png").write_bytes(Path(whole).read_bytes()[:2000])
    return place


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "Which picture? Type: python -m bestepoch.predict image.png"),
        ("wrong/none.png", "wrong/none.png is not there"),
        ("wrong/0.png wrong/none.png", "wrong/none.png is not there"),
        ("wrong/folder", "wrong/folder is a folder. Name the pictures in it: "),
        ("wrong/blank.png", "wrong/blank.png is empty: nothing on it stands out from the background"),
        ("wrong/nothing.png", "wrong/nothing.png cannot be read as a PNG or JPEG picture"),
        ("wrong/text.png", "wrong/text.png cannot be read as a PNG or JPEG picture"),
        ("wrong/other.gif", "wrong/other.gif cannot be read as a PNG or JPEG picture"),
        ("wrong/cut.png", "wrong/cut.png cannot be read as a PNG or JPEG picture ("),
        ("wrong/0.png --explian", "--explian is no option. There is: --explain"),
        ("wrong/0.png model=a model=b", "model= is given twice. Give one"),
    ],
)
def test_a_mistake_is_answered_in_a_line_before_anything_is_loaded(
    ready: Ready, wrong: Path, arguments: str, message: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "bestepoch.predict", *arguments.split()],
        cwd=ready.project,
        env=live.environment(ready.project),
        capture_output=True,
        text=True,
        timeout=60,
    )
    lines = done.stderr.splitlines()
    imported = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in lines if line.startswith("import time:")}
    (said,) = (line for line in lines if not line.startswith("import time:"))
    assert said.startswith(f"bestepoch: {message}")
    assert (done.returncode, done.stdout) == (2, "")
    assert "PIL" in imported and not imported & HEAVY


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nope", "model = nope is not there. It may be an address in MLflow"),
        ("models:/nope@champion", "models:/nope@champion is not there, or not a model that"),
        ("models:/bestepoch-mnist_sample/9", "models:/bestepoch-mnist_sample/9 is not there, or not a model that"),
        ("README.md", "README.md cannot be read: "),
    ],
)
def test_a_model_that_is_none_is_answered_in_a_line(ready: Ready, wrong: Path, model: str, message: str) -> None:
    printed = ready.predict("wrong/0.png", f"model={model}", code=2)
    assert printed.startswith(f"bestepoch: {message}")
    assert printed.count("\n") == 1


def test_only_digits_are_made_like_mnists() -> None:
    grey = np.arange(12.0).reshape(3, 4)
    chosen = {"data": "mine", "shape": [3, 4]}
    np.testing.assert_array_equal(preprocess(Path("a.png"), grey, chosen), grey)
    with pytest.raises(UsageError, match=r"a\.png has 4 × 3 pixels, and the model was trained on mine, 5 × 3\."):
        preprocess(Path("a.png"), grey, {**chosen, "shape": [3, 5]})
