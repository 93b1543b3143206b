"""The page of an evaluation: one file that opens without a network, and what stands in it."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup
from pydantic import TypeAdapter

from bestepoch.base import files
from bestepoch.base.config import schema
from bestepoch.components.schedules.learning_rate import Menu, Plan, learning_rate, plan, spans_the_plan
from bestepoch.evaluation import figures, statistics
from bestepoch.runs import timing
from bestepoch.runs.journal import Row
from bestepoch.runs.run import Run

if TYPE_CHECKING:
    import torch

    from bestepoch.evaluation.diagnosis import Diagnosis

BINS = 15
SHOWN = 25


@dataclass(frozen=True)
class Tested:
    """How the chosen epoch's network did on the test images.

    ``images`` uint8 (n, height, width); ``actual`` and ``predicted`` labels (n,); ``confidence`` (n,), the probability
    that it gave to the predicted label; ``seconds`` is the time that this took.
    """

    images: np.ndarray
    actual: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    seconds: float

    @classmethod
    def of(cls, images: torch.Tensor, labels: torch.Tensor, logits: torch.Tensor, seconds: float) -> Tested:
        """From logits (n, classes)."""
        confidence, predicted = logits.double().softmax(1).max(1)
        return cls(images.numpy(), labels.numpy(), predicted.numpy(), confidence.numpy(), seconds)

    def rows(self) -> list[list[Any]]:
        """For predictions.csv: index, actual, predicted, confidence."""
        columns = (self.actual.tolist(), self.predicted.tolist(), self.confidence.round(6).tolist())
        return [[index, *values] for index, values in enumerate(zip(*columns, strict=True))]

    def calibration(self) -> list[dict[str, Any]]:
        """`calibration` of these."""
        return calibration(self.confidence, self.actual == self.predicted)

    def mistakes(self) -> np.ndarray:
        """Indices of the images that it got wrong, the most confident first; of equals the earliest."""
        wrong = np.flatnonzero(self.actual != self.predicted)
        return wrong[np.argsort(-self.confidence[wrong], kind="stable")]


def calibration(confidence: np.ndarray, correct: np.ndarray) -> list[dict[str, Any]]:
    """The images by confidence, in 15 bins of equal width; bins without images are left out.

    Args:
        confidence, correct: (n,) each.

    Returns:
        for each bin ``left`` and ``right`` (which itself is in it), ``images``, their mean ``confidence``, and their
        ``accuracy`` with its 95 % interval ``low`` to ``high``.
    """
    edges = np.arange(1, BINS) / BINS
    place = np.searchsorted(edges, confidence)
    bins = []
    for i in np.unique(place):
        right, sure = correct[place == i], confidence[place == i]
        low, high = statistics.wilson(int(right.sum()), len(right))
        found = {"images": len(right), "confidence": float(sure.mean()), "accuracy": float(right.mean())}
        bins.append({"left": i / BINS, "right": (i + 1) / BINS, **found, "low": low, "high": high})
    return bins


def calibration_error(bins: list[dict[str, Any]]) -> float:
    """The expected calibration error, ECE: by how much confidence and accuracy differ, averaged over the images.

    Guo et al., https://arxiv.org/abs/1706.04599, equation 3.
    """
    apart = math.fsum(b["images"] * abs(b["accuracy"] - b["confidence"]) for b in bins)
    return float(apart / sum(b["images"] for b in bins))


def write(
    out: Path,
    run: Run,
    iterations: dict[str, np.ndarray],
    epochs: list[Row],
    metrics: dict[str, Any],
    choice: schema.Selection,
    stopping: schema.Patience | schema.Level,
    diagnosis: Diagnosis,
    tested: Tested,
) -> None:
    """``report.html`` and its figures into ``out``.

    Args:
        metrics: what ``metrics.json`` holds.
        stopping: what ``metrics["stopped"]`` goes by.
    """
    from sklearn.metrics import confusion_matrix

    classes = run.info["data"]["classes"]
    counts = confusion_matrix(tested.actual, tested.predicted, labels=list(range(classes)))
    planned = _planned(run)
    bins = tested.calibration()
    marks = _marks(metrics, early=bool(run.info.get("stopped")))
    with figures.style():
        drawn = {
            "loss": figures.loss(epochs, marks),
            "accuracy": figures.accuracy(epochs, marks),
            "gap": figures.gap(epochs, marks),
            "train_loss": figures.training_loss(iterations["iteration"], iterations["train/loss"]),
            "lr": figures.learning_rate(iterations["iteration"], iterations["lr"], _rest(run, planned, epochs)),
            "confusion": figures.confusion(counts),
            "calibration": figures.reliability(bins),
        }
        pictures = {name: Markup(figures.save(figure, out, name)) for name, figure in drawn.items()}
    wrong = tested.mistakes()
    pages = Environment(
        loader=PackageLoader("bestepoch.evaluation", "."),
        autoescape=select_autoescape(),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters.update(count="{:,}".format, percent=_percent, loss=_loss)
    page = pages.get_template("report.html").render(
        run=run.info,
        at=files.relative(run.folder),
        planned=planned,
        epochs=epochs,
        metrics=metrics,
        selection=choice,
        stopping=stopping,
        high_rate=spans_the_plan(_scheduler(run)),
        diagnosis=diagnosis,
        pictures=pictures,
        wide=12 < classes <= figures.NUMBERED,
        per_class=_per_class(tested, classes),
        confused=_confused(counts),
        wrong=len(wrong),
        mistakes=[_mistake(tested, index) for index in wrong[:SHOWN].tolist()],
        bins=bins,
        confidence=float(tested.confidence.mean()),
        seconds=math.fsum(row["seconds"] for row in epochs),
        testing=tested.seconds,
        costs=timing.told(run.info["spent"], run.info.get("peak_memory")) if "spent" in run.info else None,
    )
    files.write_atomic(out / "report.html", page)


def _loss(value: float | None) -> str:
    return "not finite" if value is None or not math.isfinite(value) else f"{value:.4f}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _planned(run: Run) -> Plan:
    return plan(run.info["data"]["sizes"]["train"], schema.Train(**run.info["config"]["train"]))


def _scheduler(run: Run) -> Menu:
    menu: Menu = TypeAdapter(schema.Scheduler).validate_python(run.info["config"]["scheduler"])
    return menu


def _rest(run: Run, planned: Plan, epochs: list[Row]) -> tuple[list[int], list[float]]:
    """Iterations that were planned and not made, and their learning rates; none where the rate hangs on the results."""
    menu, last = _scheduler(run), int(epochs[-1]["iteration"])
    if isinstance(menu, schema.Plateau) or last >= planned.iterations:
        return [], []
    peak = run.info["config"]["optimizer"]["lr"]
    at = np.unique(np.linspace(last, planned.iterations, figures.POINTS).astype(int)).tolist()
    return at, [learning_rate(menu, peak, planned, i) for i in at]


def _marks(metrics: dict[str, Any], early: bool) -> figures.Marks:
    """The epochs to mark; where two are the same, one mark names both."""
    wanted = [
        ("best", metrics["best_epoch"], figures.BEST),
        ("stopped" if early else "last", metrics["last_epoch"], figures.INK),
    ]
    if "stopped" in metrics and not early:
        wanted.append(("would stop", metrics["stopped"]["epoch"], figures.STOP))
    marks: dict[int, tuple[str, int, str]] = {}
    for name, epoch, colour in wanted:
        first = marks.get(epoch, (None, epoch, colour))
        marks[epoch] = (f"{first[0]}, {name}" if first[0] else name, epoch, first[2])
    return list(marks.values())


def _per_class(tested: Tested, classes: int) -> list[dict[str, Any]]:
    """Precision and recall of each class; NaN where nothing was predicted, or nothing there is, to have a share of."""
    from sklearn.metrics import precision_recall_fscore_support

    found = precision_recall_fscore_support(
        tested.actual, tested.predicted, labels=list(range(classes)), zero_division=np.nan
    )
    names = ("precision", "recall", "f1", "images")
    return [dict(zip(names, values, strict=True)) for values in zip(*(a.tolist() for a in found), strict=True)]


def _confused(counts: np.ndarray) -> list[tuple[int, int, int]]:
    """The five most frequent mistakes: actual, predicted, how often."""
    pairs = [(i, j, int(counts[i, j])) for i, j in zip(*(a.tolist() for a in counts.nonzero()), strict=True) if i != j]
    return sorted(pairs, key=lambda pair: -pair[2])[:5]


def _mistake(tested: Tested, index: int) -> dict[str, Any]:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(tested.images[index]).save(buffer, "png")
    return {
        "index": index,
        "actual": int(tested.actual[index]),
        "predicted": int(tested.predicted[index]),
        "confidence": float(tested.confidence[index]),
        "picture": "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode(),
    }
