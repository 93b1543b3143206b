"""The evaluation's page and figures: what stands in them is what was measured, and they open anywhere."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright
from sklearn.metrics import balanced_accuracy_score, f1_score, precision_score, recall_score

import live
from bestepoch.base.config import compose, groups, schema
from bestepoch.base.errors import UsageError
from bestepoch.components.models import networks
from bestepoch.evaluation import evaluate, layers, predictions, remarks, report
from bestepoch.evaluation.diagnosis import Diagnosis
from bestepoch.runs import timing
from bestepoch.runs.run import Run
from bestepoch.runs.tables import read_columns, read_rows, write_table

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
FIGURES = {"loss", "accuracy", "gap", "train_loss", "lr", "confusion", "calibration"}  # the files
PICTURES = FIGURES | {"grad_norm"}  # of the page
TRAIN = (*live.SAMPLE, "model=mlp", "tracking.mlflow=false", "tracking.tensorboard=false")
pytestmark = pytest.mark.xdist_group("report")


class Content(HTMLParser):
    """A page's text, its tables by id, its pictures, and every attribute."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str]] = []
        self.tags: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.images: list[dict[str, str]] = []
        self.by_id: dict[str, str] = {}
        self._open: list[tuple[str, str]] = []
        self._table = ""
        self.text = ""
        self.feed(page)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attrs}
        self.tags.append(tag)
        self.attributes += values.items()
        if tag in ("p", "dt", "dd", "td", "th", "div", "figcaption"):
            self.text += " "
        if tag == "img":
            self.images.append(values)
        if tag == "table":
            self._table = values.get("id", "")
            self.tables[self._table] = []
        if tag == "tr":
            self.tables[self._table].append([])
        if tag in ("td", "th"):
            self.tables[self._table][-1].append("")
        if tag not in ("img", "meta", "br", "path", "use", "image", "rect"):
            self._open.append((tag, values.get("id", "")))

    def handle_endtag(self, tag: str) -> None:
        if self._open and self._open[-1][0] == tag:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if any(tag in ("style", "svg") for tag, _ in self._open):
            return
        self.text += data
        for name in {name for _, name in self._open if name}:
            self.by_id[name] = self.by_id.get(name, "") + data
        if any(tag in ("td", "th") for tag, _ in self._open):
            self.tables[self._table][-1][-1] += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return live.with_split(live.project(tmp_path_factory.mktemp("report")))


@pytest.fixture(scope="module")
def said(folder: Path) -> str:
    """What the evaluation of a run of four epochs printed."""
    live.run(folder, "train", *TRAIN, "train.epochs=4", "stopping.patience=1", "stopping=patience")
    return live.run(folder, "evaluate", *TRAIN[:1], *TRAIN[-1:], f"run={live.only_run(folder).relative_to(folder)}")


@pytest.fixture(scope="module")
def trained(folder: Path, said: str) -> Path:
    return live.only_run(folder)


@pytest.fixture(scope="module")
def page(trained: Path) -> str:
    return (trained / "evaluate/report.html").read_text()


@pytest.fixture(scope="module")
def metrics(trained: Path) -> dict[str, Any]:
    return dict(json.loads((trained / "evaluate/metrics.json").read_text()))


@pytest.fixture(scope="module")
def tested(folder: Path, trained: Path) -> dict[str, np.ndarray]:
    """The test images and the probabilities that the chosen network gives, without the evaluation's own code."""
    data = json.loads((trained / "run.json").read_text())["data"]
    state = torch.load(trained / "evaluate/model.pt", weights_only=True)
    network = networks.build_network(
        groups.MlpConfig(**state["model"]), tuple(data["shape"]), 10, state["pixel_mean"], state["pixel_std"]
    )
    network.load_state_dict(state["network"])
    with np.load(folder / data["folder"] / "test.npz") as arrays:
        images, labels = arrays["images"], arrays["labels"].astype(int)
    with torch.inference_mode():
        logits = network.eval()(torch.from_numpy(images)).double().numpy()
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return {"images": images, "labels": labels, "probabilities": odds / odds.sum(1, keepdims=True)}


# ---------------------------------------------------------------- opens anywhere


def outside(page: str) -> list[str]:
    """What a browser would fetch from elsewhere."""
    content = Content(page)
    named = [v for k, v in content.attributes if k in ("src", "href", "xlink:href", "srcset", "action", "data")]
    named += re.findall(r"url\(\s*['\"]?([^)'\"]*)", page)
    return [name for name in named if not name.startswith(("data:", "#"))]


def test_the_page_needs_nothing_from_outside(page: str) -> None:
    content = Content(page)
    assert outside(page) == []
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(content.tags)
    assert "@import" not in page
    assert [value for _, value in content.attributes if "http:" in value or "https:" in value] == []
    # the check sees what it is there for
    assert outside('<img src="https://x.org/a.png">') == ["https://x.org/a.png"]
    assert outside("<style>p { background: url(b.png) }</style>") == ["b.png"]


def test_every_declared_figure_is_a_file_and_in_the_page(trained: Path, page: str) -> None:
    pipeline = yaml.safe_load((live.CHECKOUT / "dvc.yaml").read_text())["stages"]["evaluate"]
    declared = {Path(out).stem for out in pipeline["outs"] if out.endswith(".png")}
    assert declared == FIGURES
    assert {path.stem for path in (trained / "evaluate").glob("*.png")} == declared
    for name in declared:
        with Image.open(trained / f"evaluate/{name}.png") as picture:
            assert min(picture.size) > 300
            assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 20
        assert re.search(rf'<figure id="{name}"[^>]*>\s*(<div[^>]*>)?<svg', page), name
    assert page.count("<svg") == len(PICTURES)
    assert re.search(r'<figure id="grad_norm"[^>]*>\s*<svg', page)
    assert {str(Path(out).name) for out in pipeline["outs"] + pipeline["metrics"]} == {
        path.name for path in (trained / "evaluate").iterdir()
    }


@pytest.fixture(scope="module")
def plain(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `write` makes when nothing is said: the trained run, not stopped, with invented results."""
    out = tmp_path_factory.mktemp("plain") / "out"
    write(out, trained, stopped=None)
    return out


def test_the_same_evaluation_writes_the_same_page(trained: Path, plain: Path, tmp_path: Path) -> None:
    write(tmp_path / "again", trained, stopped=None)
    files = sorted(path.name for path in plain.iterdir())
    assert len(files) == 1 + len(FIGURES)
    for name in files:
        assert (plain / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


# ---------------------------------------------------------------- says what was measured


def percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def test_the_verdict_is_that_of_the_metrics(page: str, metrics: dict[str, Any], said: str) -> None:
    content = Content(page)
    second = metrics["runner_up"]
    assert second["difference"] > 0
    comparison = f"worse by {second['difference']:.2g} (95% interval "
    noise = "more than noise" if second["more_than_noise"] else "not more than noise"
    assert re.search(rf"^second   epoch {second['epoch']}, {re.escape(comparison)}.*: {noise}$", said, re.MULTILINE)
    verdict = (
        f"By val/loss on 450 validation images, epoch {metrics['best_epoch']} of {metrics['last_epoch']} is best; "
        f"epoch {second['epoch']}, the best of the others, is {comparison}"
    )
    result = (
        f": {noise}. The weights of epoch {metrics['best_epoch']} classify "
        f"{percent(metrics['test_accuracy'])} of 500 test images correctly (95% interval "
        f"{percent(metrics['test_accuracy_low'])} to {percent(metrics['test_accuracy_high'])}); "
        "they had no part in the choice. With every class counting the same: macro-F1 "
        f"{metrics['test_macro_f1']:.4f}, balanced accuracy {percent(metrics['test_balanced_accuracy'])}."
    )
    assert verdict in content.text and result in content.text
    assert content.by_id["ece"] == f"{metrics['test_ece']:.4f}"
    told = re.search(r"^verdict  (.+)\nsuggest  (.+?)(?:  (\S.*))?$", said, re.MULTILINE)
    assert told
    sentence, suggestion, override = told.groups()
    shown = " ".join(content.by_id["diagnosis"].split())
    assert shown.startswith(f"{sentence[0].upper()}{sentence[1:]} {'Try: ' if override else ''}{suggestion}")
    assert (override or "") in shown
    assert {"kind", "epoch"} < set(metrics["diagnosis"])


def test_the_tables_are_those_of_the_record(page: str, trained: Path, metrics: dict[str, Any]) -> None:
    tables = Content(page).tables
    epochs = live.table(trained / "epochs.csv")
    head, *rows = tables["epochs"]
    assert len(rows) == len(epochs) == metrics["last_epoch"]
    for row, epoch in zip(rows, epochs, strict=True):
        shown = dict(zip(head, row, strict=True))
        assert shown["epoch"] == epoch["epoch"] + (" · best" if int(epoch["epoch"]) == metrics["best_epoch"] else "")
        loss, train = float(epoch["val/loss"]), float(epoch["train/eval_loss"])
        assert shown["val/loss"] == f"{loss:.4f}"
        assert shown["train/eval_loss"] == f"{train:.4f}"
        assert shown["train/eval_accuracy"] == percent(float(epoch["train/eval_accuracy"]))
        assert shown["train/epoch_loss"] == f"{float(epoch['train/epoch_loss']):.4f}"
        assert shown["gap"] == f"{loss - train:+.4f}".replace("-", "−")
        assert shown["val/accuracy"] == percent(float(epoch["val/accuracy"]))
        assert shown["lr"] == f"{float(epoch['lr']):.2e}"
        assert shown["iteration"] == f"{int(epoch['iteration']):,}"
        assert shown["seconds"] == f"{float(epoch['seconds']):.1f}"
    best = {"epoch": metrics["best_epoch"], **{key: metrics[key] for key in ("val_loss", "val_accuracy")}}
    wanted = [("best", best), ("best of the others", metrics["runner_up"]), ("last", metrics["last"])]
    if "stopped" in metrics:
        early = "stopped" in json.loads((trained / "run.json").read_text())
        wanted.append(("stopped early" if early else "early stopping", metrics["stopped"]))
    assert tables["choice"][1:] == [
        [name, str(row["epoch"]), f"{row['val_loss']:.4f}", percent(row["val_accuracy"])] for name, row in wanted
    ]


def test_precision_and_recall_are_those_of_sklearn(page: str, trained: Path) -> None:
    rows = live.table(trained / "evaluate/predictions.csv")
    actual, predicted = ([int(row[key]) for row in rows] for key in ("actual", "predicted"))
    shown = Content(page).tables["classes"][1:]
    assert [row[0] for row in shown] == [str(i) for i in range(10)]
    assert [row[1] for row in shown] == [str(actual.count(i)) for i in range(10)]
    for place, score in ((2, precision_score), (3, recall_score)):
        values = score(actual, predicted, average=None, labels=range(10), zero_division=np.nan)
        assert [row[place] for row in shown] == ["–" if math.isnan(value) else f"{value:.3f}" for value in values]


def test_means_over_classes_are_those_of_sklearn(trained: Path, metrics: dict[str, Any]) -> None:
    rows = live.table(trained / "evaluate/predictions.csv")
    actual, predicted = ([int(row[key]) for row in rows] for key in ("actual", "predicted"))
    assert metrics["test_macro_f1"] == pytest.approx(f1_score(actual, predicted, average="macro"), abs=1e-12)
    assert metrics["test_balanced_accuracy"] == pytest.approx(balanced_accuracy_score(actual, predicted), abs=1e-12)


def test_a_class_without_test_images_does_not_count_in_the_means() -> None:
    actual, predicted = np.array([0, 0, 0, 1]), np.array([0, 0, 2, 1])
    tested = predictions.TestPredictions(np.zeros((4, 1, 1)), actual, predicted, np.ones(4), seconds=0.0)
    # recall 2/3 and 1; F1 2 * 1 * (2/3) / (1 + 2/3) = 0.8 and 1
    assert tested.class_means() == {
        "test_macro_f1": pytest.approx(0.9),
        "test_balanced_accuracy": pytest.approx(5 / 6),
    }


def test_the_layers_of_the_network(page: str, trained: Path) -> None:
    config = json.loads((trained / "run.json").read_text())["config"]["model"]
    first, second = config["hidden"]
    sizes = [784 * first + first, first * second + second, second * 10 + 10]
    shown = [row for row in Content(page).tables["layers"] if row[0] in ("Linear", "total")]
    assert shown == [
        ["Linear", str(first), f"{sizes[0]:,}"],
        ["Linear", str(second), f"{sizes[1]:,}"],
        ["Linear", "10", f"{sizes[2]:,}"],
        ["total", "", f"{sum(sizes):,}"],
    ]


def test_the_layers_of_a_network_that_takes_three_views_are_those_of_one() -> None:
    config = groups.CnnConfig(
        name="cnn", channels=[4], kernel_sizes=[3], strides=[1], pool_sizes=[2], padding=1, activation="relu",
        dropout=0.0, tta_shift=1,
    )  # fmt: skip
    network = networks.evaluation_network(config, networks.build_network(config, (8, 8), 3, 0.0, 1.0))
    found = layers.list_layers(network, torch.zeros(2, 8, 8))
    assert [(layer.kind, layer.shape, layer.weights) for layer in found] == [
        ("Conv2d", (4, 8, 8), 36), ("MaxPool2d", (4, 4, 4), 0), ("BatchNorm2d", (4, 4, 4), 8), ("ReLU", (4, 4, 4), 0),
        ("Flatten", (64,), 0), ("Dropout", (64,), 0), ("Linear", (3,), 195),
    ]  # fmt: skip
    assert sum(layer.weights for layer in found) == sum(p.numel() for p in network.parameters())


def test_predictions_come_with_their_confidence(trained: Path, tested: dict[str, np.ndarray]) -> None:
    rows = live.table(trained / "evaluate/predictions.csv")
    assert list(rows[0]) == ["index", "actual", "predicted", "confidence"]
    assert [int(row["index"]) for row in rows] == list(range(500))
    assert [int(row["actual"]) for row in rows] == tested["labels"].tolist()
    assert [int(row["predicted"]) for row in rows] == tested["probabilities"].argmax(1).tolist()
    np.testing.assert_allclose([float(row["confidence"]) for row in rows], tested["probabilities"].max(1), atol=2e-6)


def test_the_mistakes_shown_are_the_most_confident_ones(page: str, tested: dict[str, np.ndarray]) -> None:
    sure, predicted = tested["probabilities"].max(1), tested["probabilities"].argmax(1)
    wrong = [i for i in range(500) if predicted[i] != tested["labels"][i]]
    assert len(wrong) > 5  # of the small network after four epochs
    expected = sorted(wrong, key=lambda i: -sure[i])[:25]
    content = Content(page)
    assert [image["title"] for image in content.images] == [f"test image {i}" for i in expected]
    shown = f"25 of {len(wrong)}" if len(wrong) > 25 else f"All {len(wrong)}"
    assert f"{shown} mistakes in 500 test images" in content.text
    for image, i in zip(content.images, expected, strict=True):
        assert image["alt"] == f"Test image {i}: {tested['labels'][i]} taken for {predicted[i]}"
        with Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))) as picture:
            assert (np.asarray(picture) == tested["images"][i]).all()
    captions = re.findall(r"<figcaption><b>(\d)</b> → <b class=\"wrong\">(\d)</b><br>([\d.]+%)</figcaption>", page)
    assert captions == [(str(tested["labels"][i]), str(predicted[i]), percent(sure[i])) for i in expected]


def test_the_times_are_the_recorded_ones(page: str, trained: Path) -> None:
    info, epochs = json.loads((trained / "run.json").read_text()), live.table(trained / "epochs.csv")
    text = Content(page).text
    assert f"training {math.fsum(float(row['seconds']) for row in epochs):.1f} s," in text
    assert f"start to end {info['ended'] - info['started']:.1f} s" in text
    assert f"of the command {timing.format_breakdown(info['time_by_section'], info['peak_memory'])}" in text
    assert re.search(r"testing \d+\.\d s, 500 images, once", text)


def test_a_last_epoch_whose_loss_is_not_finite_is_reported(folder: Path, trained: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "project")
    run = copy / trained.relative_to(folder)
    header, *rows = (run / "epochs.csv").read_text().splitlines()
    values = dict(zip(header.split(","), rows[-1].split(","), strict=True)) | {"val/loss": "nan"}
    (run / "epochs.csv").write_text("\n".join([header, *rows[:-1], ",".join(values.values())]) + "\n")
    said = live.run(copy, "evaluate", f"run=runs/{run.name}", "tracking.mlflow=false")
    metrics = json.loads((run / "evaluate/metrics.json").read_text())
    assert metrics["last"] == {"epoch": 4, "val_loss": None, "val_accuracy": float(values["val/accuracy"])}
    assert metrics["best_epoch"] < 4 and metrics["diagnosis"]["kind"] == "diverged"
    assert "in epoch 4" in said
    content = Content((run / "evaluate/report.html").read_text())
    assert ["last", "4", "not finite", percent(float(values["val/accuracy"]))] in content.tables["choice"]


def test_how_to_make_it_again(page: str, trained: Path) -> None:
    info, text = json.loads((trained / "run.json").read_text()), Content(page).text
    assert info["git"]["commit"] in text
    assert "with nothing uncommitted" in text
    assert info["command"] in text
    assert info["data"]["checksum"] in text
    assert f"python -m bestepoch.evaluate run=runs/{info['name']} selection.metric=val/loss" in text


def test_dvc_reads_the_metrics(folder: Path, trained: Path, metrics: dict[str, Any]) -> None:
    path = trained / "evaluate/metrics.json"
    done = subprocess.run(
        ["dvc", "metrics", "show", "--json", str(path.relative_to(folder))],
        cwd=folder, env=live.environment(folder), capture_output=True, text=True, check=True,
    )  # fmt: skip
    read_back = next(iter(json.loads(done.stdout).values()))["data"]
    assert next(iter(read_back.values()))["data"] == metrics


# ---------------------------------------------------------------- calibration


def test_a_calibration_error_by_hand() -> None:
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.55])
    bins = predictions.calibration_bins(confidence, np.array([True, True, True, False, False]))
    assert [b["images"] for b in bins] == [1, 4]
    assert [(b["left"], b["right"]) for b in bins] == [(8 / 15, 9 / 15), (14 / 15, 1)]
    assert [b["accuracy"] for b in bins] == [0, 0.75]
    # 1/5 × |0 − 0.55| + 4/5 × |0.75 − 0.95|
    assert predictions.calibration_error(bins) == pytest.approx(0.27, abs=1e-12)


def test_a_bin_has_its_right_edge_and_not_its_left_one() -> None:
    edges = np.arange(1, 16) / 15
    bins = predictions.calibration_bins(edges, np.ones(15, dtype=bool))
    assert [b["images"] for b in bins] == [1] * 15
    assert [b["right"] for b in bins] == edges.tolist()
    assert predictions.calibration_bins(np.array([np.nextafter(0.2, 1)]), np.array([True]))[0]["left"] == 0.2
    assert predictions.calibration_bins(np.array([1 + 1e-15]), np.array([True]))[0]["right"] == 1


def test_always_right_and_always_sure_is_calibrated() -> None:
    assert predictions.calibration_error(predictions.calibration_bins(np.ones(7), np.ones(7, dtype=bool))) == 0
    assert predictions.calibration_error(predictions.calibration_bins(np.ones(7), np.zeros(7, dtype=bool))) == 1


def test_the_calibration_error_is_that_of_a_plain_sum(metrics: dict[str, Any], tested: dict[str, np.ndarray]) -> None:
    def plain(confidence: list[float], correct: list[bool]) -> float:
        total = 0.0
        for i in range(15):
            held = [k for k, sure in enumerate(confidence) if i / 15 < sure <= (i + 1) / 15]
            if held:
                apart = sum(correct[k] for k in held) / len(held) - sum(confidence[k] for k in held) / len(held)
                total += len(held) / len(confidence) * abs(apart)
        return total

    draw = random.Random(0)
    for n in (1, 2, 30, 1000):
        confidence = [draw.uniform(0.1, 1) for _ in range(n)]
        correct = [draw.random() < 0.7 for _ in range(n)]
        bins = predictions.calibration_bins(np.array(confidence), np.array(correct))
        assert predictions.calibration_error(bins) == pytest.approx(plain(confidence, correct), abs=1e-12)
    sure, predicted = tested["probabilities"].max(1), tested["probabilities"].argmax(1)
    error = plain(sure.tolist(), (predicted == tested["labels"]).tolist())
    assert metrics["test_ece"] == pytest.approx(error, abs=1e-6)


# ---------------------------------------------------------------- unusual runs


LAYER = layers.Layer("Linear", (10,), 7850)


def write(
    out: Path,
    trained: Path,
    *,
    epochs: int | None = None,
    classes: int = 10,
    mistakes: int = 5,
    selection: dict[str, Any] | None = None,
    metrics: dict[str, Any] | None = None,
    spoiled: bool = False,
    without: tuple[str, ...] = (),
    diagnosis: Diagnosis | None = None,
    names: list[str] | None = None,
    **info: Any,
) -> str:
    """A page as of the trained run, but for what is said here."""
    out.mkdir()
    run = Run.read(trained)
    run.info["data"] = {**run.info["data"], "classes": classes}
    config = info.pop("config", {})
    run.info = {**run.info, **info, "config": {**run.info["config"], **config}}
    rows, iterations = read_rows(trained / "epochs.csv"), read_columns(trained / "iterations.csv")
    if epochs is not None:
        rows = [{**rows[0], "epoch": float(i), "val/loss": 2 / i, "iteration": float(i)} for i in range(1, epochs + 1)]
        iterations = {key: np.resize(values, epochs) for key, values in iterations.items()}
    rows = [{name: value for name, value in row.items() if name not in without} for row in rows]
    iterations = {name: values for name, values in iterations.items() if name not in without}
    if spoiled:
        rows[0] = {**rows[0], "val/loss": math.nan, "train/eval_loss": math.inf}
    draw = np.random.default_rng(0)
    actual = np.arange(500) % classes
    predicted = actual.copy()
    predicted[:mistakes] = (actual[:mistakes] + 1) % classes
    images = draw.integers(0, 256, (500, 28, 28), np.uint8)
    tested = predictions.TestPredictions(images, actual, predicted, draw.uniform(0.5, 1, 500), seconds=0.1)
    result = {"epoch": len(rows), "val_loss": 0.5, "val_accuracy": 0.9}
    values = {
        "best_epoch": len(rows), "last_epoch": len(rows), "val_loss": 0.5, "val_accuracy": 0.9, "last": result,
        "test_accuracy": 1 - mistakes / 500, "test_accuracy_low": 0.9, "test_accuracy_high": 1.0,
        "test_ece": predictions.calibration_error(tested.calibration()), **tested.class_means(), **(metrics or {}),
    }  # fmt: skip
    choice = schema.SelectionConfig(
        **{"metric": "val/loss", "mode": "min", "rule": "best", "smoothing": 1, **(selection or {})}
    )
    stopping = groups.PatienceStoppingConfig(
        name="patience", metric="val/loss", mode="min", min_delta=0.0, relative=False, warmup_epochs=0,
        max_seconds=None, patience=3,
    )  # fmt: skip
    if diagnosis is None:
        diagnosis = Diagnosis("overfit", 1, "overfit since epoch 1: one rose.", "Stop.", "train.epochs=1", {})
    source = out.with_name(f"{out.name}-tables")
    source.mkdir()
    write_table(source / "epochs.csv", list(rows[0]), [list(row.values()) for row in rows])
    write_table(source / "iterations.csv", list(iterations), np.stack(list(iterations.values()), 1).tolist())
    names = names or [str(label) for label in range(classes)]
    report.write_report(out, report.Report(run, source, values, choice, stopping, diagnosis, tested, [LAYER], names))
    return (out / "report.html").read_text()


def test_a_schedule_that_early_stopping_cut_off_is_named(trained: Path, plain: Path, tmp_path: Path) -> None:
    stopped = {"epoch": 4, "reason": "val/loss has not improved"}
    train = {"epochs": 20, "iterations": None, "batch_size": 100}
    onecycle = Run.read(trained).info["config"]["scheduler"]
    assert onecycle["name"] == "onecycle"
    constant = {"name": "constant", "warmup_epochs": 0.0}
    assert "stopped" not in Content((plain / "report.html").read_text()).by_id
    cut = Content(write(tmp_path / "1", trained, stopped=stopped, config={"train": train}))
    rate = float(live.table(trained / "epochs.csv")[-1]["lr"])
    warning = " ".join(cut.by_id["stopped"].split())
    assert warning.startswith("Stopped early after epoch 4 of 20: val/loss has not improved.")
    assert f"The learning rate was still {rate:.2e}: onecycle lowers it over all 20 planned epochs" in warning
    assert warning.endswith("train.epochs=4")
    level = write(tmp_path / "2", trained, stopped=stopped, config={"train": train, "scheduler": constant})
    said = " ".join(Content(level).by_id["stopped"].split())
    assert said == "Stopped early after epoch 4 of 20: val/loss has not improved."
    assert "planned, not reached" in level


def test_the_verdict_comes_first_and_what_to_try_can_be_typed(trained: Path, plain: Path, tmp_path: Path) -> None:
    page = (plain / "report.html").read_text()
    assert "<strong>Overfit since epoch 1</strong>: one rose." in page
    assert " ".join(Content(page).by_id["diagnosis"].split()).endswith("rose. Try: Stop. train.epochs=1")
    nothing = Diagnosis("converged", 2, "converged: level.", "Nothing to do.", "", {})
    page = write(tmp_path / "1", trained, diagnosis=nothing)
    assert " ".join(Content(page).by_id["diagnosis"].split()) == "Converged: level. Nothing to do."
    several = Diagnosis("finished as planned", 4, "finished as planned: low.", "Compare.", "-m seed=0,1", {})
    page = write(tmp_path / "2", trained, diagnosis=several)
    assert "Try:</strong> Compare. <code>python -m bestepoch.train ... -m seed=0,1</code> (several runs, each" in page


def test_training_and_validation_are_in_one_picture(plain: Path) -> None:
    page = (plain / "report.html").read_text()
    pictures = dict(re.findall(r'<figure id="(\w+)".*?(<svg.*?</svg>)', page, re.DOTALL))
    assert "train/eval_loss" in pictures["loss"] and "val/loss" in pictures["loss"]
    assert "train/eval_accuracy" in pictures["accuracy"] and "val/accuracy" in pictures["accuracy"]
    assert "val/loss − train/eval_loss" in pictures["gap"]
    assert "train/grad_norm" in pictures["grad_norm"]
    assert "The gap, val/loss − train/eval_loss, grows where" in Content(page).text
    assert "missing" not in Content(page).by_id


@pytest.mark.parametrize(
    ("images", "why"), [({"eval_images": 0}, "with train.eval_images=0"), ({}, "by an earlier version")], ids=str
)
def test_a_run_whose_training_images_were_not_scored(
    trained: Path, tmp_path: Path, images: dict[str, int], why: str
) -> None:
    train = {key: value for key, value in Run.read(trained).info["config"]["train"].items() if key != "eval_images"}
    without = ("train/eval_loss", "train/eval_accuracy", "train/grad_norm")
    page = write(tmp_path / "out", trained, without=without, config={"train": train | images})
    content = Content(page)
    assert content.by_id["missing"].startswith(f"This run was trained {why}, so no training images were scored: ")
    assert {path.stem for path in (tmp_path / "out").glob("*.png")} == FIGURES
    pictures = dict(re.findall(r'<figure id="(\w+)".*?(<svg.*?</svg>)', page, re.DOTALL))
    assert set(pictures) == FIGURES
    assert "train/epoch_loss" in pictures["loss"] and "val/loss − train/epoch_loss" in pictures["gap"]
    assert "val/accuracy" in pictures["accuracy"] and "train/" not in pictures["accuracy"]
    row = live.table(trained / "epochs.csv")[0]
    shown = dict(zip(*content.tables["epochs"][:2], strict=True))
    difference = float(row["val/loss"]) - float(row["train/epoch_loss"])
    assert shown["gap"] == f"{difference:+.4f}".replace("-", "−") and "train/eval_loss" not in shown


def test_classes_have_their_names(trained: Path, tmp_path: Path) -> None:
    names = compose.load_option("data", "fashion_mnist").class_names
    page = write(tmp_path / "out", trained, names=names)
    content = Content(page)
    assert [row[0] for row in content.tables["classes"][1:]] == names
    matrix = re.findall(r'<figure id="confusion".*?(<svg.*?</svg>)', page, re.DOTALL)[0]
    assert all(matrix.count(f">{name}<") == 2 for name in names)
    assert "T-shirt/top taken for Trouser" in page and "Trouser&nbsp;→&nbsp;Pullover&nbsp;(1)" in page


def test_names_do_not_change_a_run_and_must_be_as_many_as_the_classes(tmp_path: Path) -> None:
    config = compose.load_config(["data=kmnist"], False)[1]
    renamed = config.model_copy(update={"data": config.data.model_copy(update={"class_names": None})})
    assert renamed.training() == config.training()
    run = Run(tmp_path, {"data": {"name": "kmnist", "classes": 10}})
    assert evaluate._read_class_names(run)[:3] == ["o", "ki", "su"]
    run.info["data"]["classes"] = 9
    with pytest.raises(UsageError, match=r"kmnist\.yaml has 10 class_names, and the data set has 9 classes"):
        evaluate._read_class_names(run)
    run.info["data"] = {"name": "elsewhere", "classes": 3}
    assert evaluate._read_class_names(run) == ["0", "1", "2"]


def test_label_smoothing_that_parts_loss_and_accuracy_is_named(trained: Path, plain: Path, tmp_path: Path) -> None:
    ids = Content((plain / "report.html").read_text()).by_id
    assert not {"disagreement", "smoothed"} & set(ids)
    epochs = [{"epoch": float(i), "val/loss": loss, "val/accuracy": accuracy} for i, loss, accuracy in
              ((1, 0.5, 0.8), (2, 0.3, 0.9), (3, 0.4, 0.95))]  # fmt: skip
    smoothed = {"config": {"loss": {"label_smoothing": 0.1}, "train": {"eval_images": None}}}
    sentence = remarks.explain_smoothing(smoothed, epochs, 1)
    assert sentence is not None and sentence.endswith("they choose epochs 2 and 3.") and "smoothing of 0.1" in sentence
    assert remarks.explain_smoothing(smoothed, epochs[:2], 1) is None
    plain_loss = {"config": {"loss": {"label_smoothing": 0.0}}}
    assert remarks.explain_smoothing(plain_loss, epochs, 1) is None
    assert remarks.warn_of_smoothed_losses(smoothed) is None
    train = {key: value for key, value in Run.read(trained).info["config"]["train"].items() if key != "eval_images"}
    page = write(tmp_path / "old", trained, config={"loss": {"label_smoothing": 0.1}, "train": train})
    assert "validation losses include label smoothing of 0.1" in Content(page).by_id["smoothed"]


def test_an_old_run_with_smoothed_losses_is_evaluated_with_a_warning(
    folder: Path, trained: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(folder, tmp_path / "project")
    run = copy / trained.relative_to(folder)
    info = json.loads((run / "run.json").read_text())
    del info["config"]["train"]["eval_images"]
    info["config"]["loss"]["label_smoothing"] = 0.1
    (run / "run.json").write_text(json.dumps(info))
    header, *rows = [line.split(",") for line in (run / "epochs.csv").read_text().splitlines()]
    kept = [i for i, name in enumerate(header) if not name.startswith("train/eval_")]
    table = [",".join(line[i] for i in kept) for line in (header, *rows)]
    (run / "epochs.csv").write_text("\n".join(table) + "\n")
    said = live.run(copy, "evaluate", f"run=runs/{run.name}", "tracking.mlflow=false")
    assert len(re.findall(r"^WARNING  an earlier version trained this run: .* smoothing of 0\.1", said, re.M)) == 1
    content = Content((run / "evaluate/report.html").read_text())
    assert {"smoothed", "missing"} <= set(content.by_id)
    assert {path.stem for path in (run / "evaluate").glob("*.png")} == FIGURES


@pytest.mark.parametrize(
    ("values", "choice", "says"),
    [
        (
            (0.00123, 0.0003, 0.002, True), {},
            "worse by 0.0012 (95% interval 0.0003 to 0.002): more than noise",
        ),
        (
            (-0.00123, -0.002, 0.0003, False), {"smoothing": 3},
            "better by 0.0012 (95% interval 0.002 better to 0.0003 worse): not more than noise",
        ),
        (
            (-0.05, -0.0614, -0.002, True), {"metric": "val/accuracy"},
            "worse by 5.00 points (95% interval 0.20 to 6.14): more than noise",
        ),
        ((0.0, 0.0, 0.0, False), {}, "equally good (95% interval 0 to 0): not more than noise"),
        (
            (0.2, 0.1, 0.3, True), {"metric": "train/eval_loss"},
            "worse by 0.2 in val/loss (95% interval 0.1 to 0.3): more than noise",
        ),
        (
            (-0.02, -0.04, 0.01, False), {"rule": "one_standard_error"},
            "better by 0.02 (95% interval 0.04 better to 0.01 worse): epoch 3 is the earliest within one standard "
            "error of the best",
        ),
    ],
    ids=str,
)  # fmt: skip
def test_the_runner_up_is_better_or_worse(values: tuple[Any, ...], choice: dict[str, Any], says: str) -> None:
    second = dict(zip(("difference", "low", "high", "more_than_noise"), values, strict=True))
    wanted = {"metric": "val/loss", "mode": "auto", "rule": "best", "smoothing": 1} | choice
    assert remarks.compare_runner_up(second, 3, schema.SelectionConfig(**wanted)) == says


def test_where_stopping_would_have_ended_it_is_said(trained: Path, plain: Path, tmp_path: Path) -> None:
    would = {"epoch": 2, "val_loss": 0.7, "val_accuracy": 0.8}
    page = write(tmp_path / "1", trained, metrics={"stopped": would}, stopped=None)
    assert ["early stopping", "2", "0.7000", "80.00%"] in Content(page).tables["choice"]
    assert "have ended this training after epoch 2" in Content(page).text
    assert "would stop: epoch 2" in page
    page = (plain / "report.html").read_text()
    assert "would not have ended this training" in Content(page).text
    assert "would stop" not in page


def test_another_rule_is_explained(trained: Path, plain: Path, tmp_path: Path) -> None:
    assert not {"rule", "smoothing"} & set(Content((plain / "report.html").read_text()).by_id)
    chosen = {"rule": "one_standard_error", "smoothing": 5, "metric": "val/accuracy", "mode": "max"}
    second = {
        "epoch": 1, "val_loss": 0.6, "val_accuracy": 0.85, "difference": -0.05, "low": -0.0614, "high": 0.002,
        "more_than_noise": False,
    }  # fmt: skip
    other = Content(write(tmp_path / "2", trained, selection=chosen, metrics={"runner_up": second}))
    assert "earliest epoch whose val/accuracy is within one standard error" in " ".join(other.by_id["rule"].split())
    assert other.by_id["smoothing"].startswith("smoothing = 5")
    assert (
        "is chosen; epoch 1, the best of the others, is worse by 5.00 points (95% interval 0.20 better to 6.14 worse): "
        "epoch 4 is the earliest within one standard error of the best." in other.text
    )


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ({"epochs": 1}, ["epoch 1 of 1 is best; there is no other to compare it with.", "1 epoch of 4,050 images"]),
        ({"mistakes": 0, "git": {"commit": None, "dirty": False}}, ["None: all 500 test images", "commit none"]),
        ({"mistakes": 1, "spoiled": True}, ["The only mistake in 500 test images", "nan"]),
        ({"mistakes": 25, "status": "killed"}, ["All 25 mistakes in 500", "Training is not complete (killed)"]),
        ({"mistakes": 26, "git": {"commit": "0" * 40, "dirty": True}}, ["25 of 26 mistakes", "uncommitted changes"]),
        ({"epochs": 300, "classes": 20}, ["epoch 300 of 300 is best", "20 classes"]),
        ({"classes": 256, "mistakes": 500}, ["25 of 500 mistakes", "256 classes"]),
    ],
    ids=str,
)
def test_unusual_runs_have_a_whole_page(
    trained: Path, tmp_path: Path, browser: Browser, case: dict[str, Any], says: list[str]
) -> None:
    page = write(tmp_path / "out", trained, **case)
    content = Content(page)
    assert [line for line in says if line not in content.text] == []
    assert outside(page) == []
    assert {path.stem for path in (tmp_path / "out").glob("*.png")} == FIGURES
    assert len(content.tables["classes"]) == 1 + case.get("classes", 10)
    assert len(content.images) == min(case.get("mistakes", 5), 25)
    for width in (390, 1100):
        shown = opened(browser, tmp_path / "out/report.html", width)
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        shown.close()


def test_a_name_is_no_markup(trained: Path, tmp_path: Path) -> None:
    page = write(tmp_path / "out", trained, name="<script>alert(1)</script>", command="python <b>")
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page and "<b>" in Content(page).text


# ---------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium: Debian's package, or CHROMIUM=/path/to/it")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield started
        started.close()


def opened(browser: Browser, path: Path, width: int, scheme: Any = "light") -> Page:
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page.goto(path.as_uri())
    return page


def brightness(page: Page, element: str, of: str) -> float:
    """Of a colour as the browser computed it: 0 is black and 1 is white."""
    colour = page.evaluate(f"getComputedStyle(document.querySelector({element!r})).{of}")
    return sum(map(int, re.findall(r"\d+", colour)[:3])) / 765


@pytest.mark.parametrize("width", [320, 390, 1100])
def test_it_fits_the_screen(trained: Path, browser: Browser, width: int) -> None:
    asked: list[str] = []
    page = browser.new_page(viewport={"width": width, "height": 844})
    page.on("request", lambda request: asked.append(request.url))
    page.goto((trained / "evaluate/report.html").as_uri())
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    sizes = page.evaluate("[...document.querySelectorAll('svg')].map(s => [s.clientWidth, s.clientHeight])")
    assert len(sizes) == len(PICTURES)
    assert all(min(width - 40, 350) <= w <= width and h > 150 for w, h in sizes)
    letters = page.evaluate(
        "[...document.querySelectorAll('svg text')].map(t => parseFloat(getComputedStyle(t).fontSize)"
        " * t.ownerSVGElement.clientWidth / t.ownerSVGElement.viewBox.baseVal.width)"
    )
    assert min(letters) > 7  # pixels
    assert min(page.evaluate("[...document.images].map(i => i.naturalWidth)")) == 28
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_and_figures_follow_the_scheme(trained: Path, browser: Browser, scheme: str) -> None:
    page = opened(browser, trained / "evaluate/report.html", 1100, scheme)
    ground = brightness(page, "body", "backgroundColor")
    assert ground > 0.9 if scheme == "light" else ground < 0.15
    assert abs(brightness(page, "body", "color") - ground) > 0.7
    for figure in sorted(PICTURES):
        label = f"#{figure} svg text:last-of-type"
        assert abs(brightness(page, label, "fill") - ground) > 0.3, figure
    # no figure brings a ground of its own: its corner has the page's colour
    for figure in sorted(PICTURES):
        with Image.open(io.BytesIO(page.locator(f"#{figure} svg").screenshot())) as shot:
            assert abs(sum(shot.convert("RGB").getpixel((1, 1))) / 765 - ground) < 0.02, figure  # type: ignore[arg-type]
    page.close()
