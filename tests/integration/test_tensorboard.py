"""What TensorBoard shows of a run beside its curves: settings, words, images, and on request histograms."""

from __future__ import annotations

import csv
import io
import json
import signal
import urllib.parse
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard import program

import live
from bestepoch.base.config import compose
from bestepoch.base.config.groups import ShiftConfig
from bestepoch.components.data.augment import Augment
from bestepoch.components.data.order import epoch_permutation
from bestepoch.evaluation import figures

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("tensorboard")]
TRAIN = (*live.SAMPLE, "model=mlp", "model.hidden=[1024,512]", "train.epochs=12", "tracking.mlflow=false")


def written(run: Path) -> dict[str, list[Any]]:
    """Each value in a run's event files, by its tag: (step, value)."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    found: dict[str, list[Any]] = {}
    for path in sorted(run.glob("events.out.tfevents.*")):
        for event in LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value))
    return found


def text(values: list[Any]) -> str:
    return str(values[-1][1].tensor.string_val[0].decode())


def image(value: Any) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(value.image.encoded_image_string)))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return live.with_split(live.project(tmp_path_factory.mktemp("tensorboard") / "project"))


@pytest.fixture(scope="module")
def run(project: Path) -> Path:
    """One that was interrupted, went on, and was evaluated twice."""
    with live.started(project, "train", *TRAIN) as started:
        started.until(lambda: any(live.table(path) for path in project.glob("runs/*/epochs.csv")))
        started.signal(signal.SIGINT)
    live.run(project, "train", *TRAIN)
    folder = live.only_run(project)
    for _ in range(2):
        live.run(project, "evaluate", f"run={folder.relative_to(project)}", "tracking.mlflow=false")
    return folder


def test_the_settings_are_hyperparameters_of_the_run_itself(run: Path) -> None:
    from tensorboard.plugins.hparams import metadata

    values = written(run)
    ((_, start),) = values[metadata.SESSION_START_INFO_TAG]
    found = metadata.parse_session_start_info_plugin_data(start.metadata.plugin_data.content)
    assert found.hparams["model"].string_value == "mlp"
    assert found.hparams["optimizer.lr"].number_value == 0.01
    assert found.hparams["train.epochs"].number_value == 12
    assert "train.iterations" not in found.hparams
    assert found.group_name == run.name, "as the other tabs call it"
    assert len(values[metadata.SESSION_END_INFO_TAG]) == 1, "when it came to its end, not when it was interrupted"
    assert [path for path in run.rglob("events.*") if path.parent != run] == [], "no run beside the run"


def scalars(run: Path, prefix: str) -> dict[str, list[tuple[int, float]]]:
    return {
        tag: [(step, value.simple_value) for step, value in found]
        for tag, found in written(run).items()
        if tag.startswith(prefix)
    }


def test_the_best_epoch_is_among_the_hyperparameters_before_and_after_its_test(project: Path, run: Path) -> None:
    info = json.loads((run / "run.json").read_text())
    best = {key: [(0, np.float32(value))] for key, value in info["best"].items() if key != "time"}
    assert set(best) == {"best/epoch", "best/val_loss", "best/val_accuracy"}
    assert scalars(run, "best/") == best, "once, although it was evaluated twice"
    other = ("selection.metric=train/epoch_loss", "tracking.mlflow=false")
    live.run(project, "evaluate", f"run={run.relative_to(project)}", *other)
    chosen = min(live.table(run / "epochs.csv"), key=lambda row: float(row["train/epoch_loss"]))["epoch"]
    assert scalars(run, "best/epoch")["best/epoch"][-1] == (0, float(chosen))
    live.run(project, "evaluate", f"run={run.relative_to(project)}", "tracking.mlflow=false")
    assert scalars(run, "best/") == best


def test_the_custom_scalars_draw_training_beside_validation(run: Path) -> None:
    from tensorboard.plugins.custom_scalar import layout_pb2, metadata

    ((_, value),) = written(run)[metadata.CONFIG_SUMMARY_TAG]
    layout = layout_pb2.Layout.FromString(value.tensor.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for category in layout.category for chart in category.chart}
    assert ["^train/eval_loss$", "^val/loss$"] in charts.values()
    assert ["^train/eval_accuracy$", "^val/accuracy$"] in charts.values()
    tags = {tag.strip("^$") for chart in charts.values() for tag in chart}
    assert tags == (live.PER_ITERATION | live.PER_EPOCH) - {"train/epoch_loss"}


def test_the_words_are_there_once(run: Path) -> None:
    values, info = written(run), json.loads((run / "run.json").read_text())
    assert len(values["run/configuration"]) == len(values["run/evaluation"]) == 1
    settings = text(values["run/configuration"])
    assert "| `optimizer.lr` | 0.01 |" in settings and "| `train.batch_size` | 100 |" in settings
    assert "None" not in settings
    assert info["verdict"]["sentence"].partition(": ")[2] in text(values["run/summary"])
    assert len(values["run/summary"]) == 2, "interrupted, then finished"
    metrics = json.loads((run / "evaluate/metrics.json").read_text())
    assert f"**{metrics['test_accuracy']:.2%}**" in text(values["run/evaluation"])


def test_the_first_batch_is_shown_as_the_network_saw_it(project: Path, run: Path) -> None:
    ((step, value),) = written(run)["images/first batch"]
    (split,) = (project / "data/prepared").glob("mnist_sample-*")
    with np.load(split / "train.npz") as arrays:
        images = arrays["images"]
    import torch

    index = epoch_permutation(0, 1, len(images))[:100]
    menu = ShiftConfig(**compose.load_config([*TRAIN], False)[1].augment.model_dump())
    seen = Augment(menu, 0, 1, len(images), torch.device("cpu"))(torch.from_numpy(images)[index], index)
    assert not torch.equal(seen, torch.from_numpy(images)[index]), "not varied"
    sheet = image(value)
    assert step == 0 and sheet.shape == (2 * 10 * 30, 2 * 10 * 30)
    shrunk = 255 - sheet[::2, ::2]
    assert np.array_equal(shrunk[1:29, 31:59], seen[1].numpy()), "the second one, in the first row"
    assert np.array_equal(shrunk[271:299, 271:299], seen[99].numpy()), "the last one"


def test_confusion_and_mistakes_are_pictures_of_their_epochs(run: Path) -> None:
    values = written(run)
    metrics = json.loads((run / "evaluate/metrics.json").read_text())
    steps = [step for step, _ in values["confusion/validation"]]
    assert steps == sorted(set(steps)) and {1, 12, metrics["best_epoch"]} <= set(steps)
    assert 9 <= len(steps) <= 10, "as many as TensorBoard shows"
    shapes = {image(value).shape for _, value in values["confusion/validation"]}
    assert len(shapes) == 1
    ((step, value),) = values["mistakes/test"]
    assert step == metrics["best_epoch"] and min(image(value).shape[:2]) > 100


def test_the_confusion_matrix_counts_what_the_epoch_predicted(run: Path) -> None:
    import torch

    for row in live.table(run / "epochs.csv"):
        kept = torch.load(run / f"checkpoints/epoch-{int(row['epoch']):04}.pt", weights_only=True)["validation"]
        assert set(kept) == {"losses", "correct", "predicted"}
        assert kept["predicted"].dtype == torch.uint8 and len(kept["predicted"]) == 450
        assert kept["correct"].double().mean().item() == float(row["val/accuracy"])


def test_histograms_and_curves_of_precision_are_there_on_request(project: Path, run: Path) -> None:
    before = Counter(written(run))
    assert not [tag for tag in before if tag.startswith(("weights/", "test/class"))]
    live.run(
        project, "evaluate", f"run={run.relative_to(project)}", "tracking.mlflow=false", "tracking.histograms=true"
    )
    values = written(run)
    weights = {tag: [step for step, _ in found] for tag, found in values.items() if tag.startswith("weights/")}
    assert weights and all(steps == list(range(1, 13)) for steps in weights.values())
    classes = [tag for tag in values if tag.startswith("test/class ")]
    assert sorted(classes) == [f"test/class {label}" for label in range(10)]


def test_the_projector_shows_the_test_images_on_request(project: Path, run: Path) -> None:
    """After the test above: as TensorBoard's own server gives them to the browser."""
    board = program.TensorBoard()
    board.configure(argv=["", "--logdir", str(project / "runs"), "--port", str(live.free_port())])
    address = f"{board.launch()}data/plugin/projector"

    def ask(what: str, **query: str) -> bytes:
        with urllib.request.urlopen(f"{address}/{what}?{urllib.parse.urlencode({'run': run.name} | query)}") as answer:
            return bytes(answer.read())

    metrics = json.loads((run / "evaluate/metrics.json").read_text())
    (entry,) = json.loads(ask("info"))["embeddings"]
    assert entry["tensorName"] == f"test images, epoch {metrics['best_epoch']}"
    count, features = entry["tensorShape"]
    tensor = np.frombuffer(ask("tensor", name=entry["tensorName"]), np.float32).reshape(count, features)
    assert count == 500 and np.isfinite(tensor).all() and tensor.std(0).any()
    rows = list(csv.DictReader(ask("metadata", name=entry["tensorName"]).decode().splitlines(), delimiter="\t"))
    predictions = live.table(run / "evaluate/predictions.csv")
    assert [row["predicted"] for row in rows] == [row["predicted"] for row in predictions]
    assert [row["actual"] for row in rows] == [row["actual"] for row in predictions]
    width, height = entry["sprite"]["singleImageDim"]
    sheet = np.asarray(Image.open(io.BytesIO(ask("sprite_image", name=entry["tensorName"]))))
    assert (width, height) == (30, 30) and sheet.shape == (22 * 30, 23 * 30), "a square of 500 images"


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (2, 2, 1), (10, 4, 3), (100, 10, 10)])
def test_tiles_are_a_square_of_whole_images(count: int, columns: int, rows: int) -> None:
    images = np.full((count, 4, 6), 200, np.uint8)
    sheet = figures.tile_images(images, enlarged=1)
    assert sheet.shape == (rows * 6, columns * 8)
    assert (sheet == 55).sum() == count * 24 and (sheet == 255).sum() == sheet.size - count * 24
