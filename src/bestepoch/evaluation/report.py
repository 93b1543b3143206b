"""The report of an evaluation: an HTML page that opens without a network, and its figures."""

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

from bestepoch.base import files, paths
from bestepoch.base.config import groups, schema
from bestepoch.components.schedules.learning_rate import SchedulerConfig, decays_over_full_run, learning_rate
from bestepoch.components.schedules.plan import TrainingPlan, plan_of_run
from bestepoch.evaluation import figures, learning_curves, remarks
from bestepoch.evaluation.predictions import MAX_SHOWN, TestPredictions
from bestepoch.runs import timing
from bestepoch.runs.run import Run
from bestepoch.runs.tables import Row, read_columns, read_rows

if TYPE_CHECKING:
    from bestepoch.evaluation.diagnosis import Diagnosis
    from bestepoch.evaluation.layers import Layer


@dataclass(frozen=True)
class Report:
    """What the report shows.

    Args:
        run: the run.
        source: folder of the run's tables.
        metrics: content of ``metrics.json``.
        selection: how the epoch was chosen.
        stopping: the early stopping that ``metrics["stopped"]`` goes by.
        diagnosis: the verdict on the curves.
        tested: predictions on the test images.
        layers: the network's layers.
        names: the names of the classes.
    """

    run: Run
    source: Path
    metrics: dict[str, Any]
    selection: schema.SelectionConfig
    stopping: groups.PatienceStoppingConfig | groups.PlateauStoppingConfig
    diagnosis: Diagnosis
    tested: TestPredictions
    layers: list[Layer]
    names: list[str]


def write_report(out: Path, report: Report) -> None:
    """Write ``report.html`` and its figures into ``out``."""
    from sklearn.metrics import confusion_matrix

    run, metrics, tested = report.run, report.metrics, report.tested
    iterations, epochs = read_columns(report.source / "iterations.csv"), read_rows(report.source / "epochs.csv")
    classes = run.info["data"]["classes"]
    counts = confusion_matrix(tested.actual, tested.predicted, labels=list(range(classes)))
    planned = plan_of_run(run.info)
    bins = tested.calibration()
    marks = _marks(metrics, early=bool(run.info.get("stopped")))
    with figures.figure_style():
        drawn = {
            "loss": learning_curves.plot_loss(epochs, marks),
            "accuracy": learning_curves.plot_accuracy(epochs, marks),
            "gap": learning_curves.plot_gap(epochs, marks),
            "train_loss": learning_curves.plot_by_iteration(
                iterations["iteration"], iterations["train/loss"], "train/loss, nats", figures.TRAIN
            ),
            "lr": learning_curves.plot_learning_rate(
                iterations["iteration"], iterations["lr"], _remaining_schedule(run, planned, epochs)
            ),
            "confusion": figures.plot_confusion(counts, report.names),
            "calibration": figures.plot_reliability(bins),
        }
        pictures = {name: Markup(figures.save_figure(figure, out, name)) for name, figure in drawn.items()}
        if (norms := iterations.get("train/grad_norm")) is not None:  # no file: not every run has it
            figure = learning_curves.plot_by_iteration(
                iterations["iteration"], norms, "train/grad_norm", figures.VALIDATION
            )
            pictures["grad_norm"] = Markup(figures.render_svg(figure, "grad_norm"))
    wrong = tested.mistakes()
    pages = Environment(
        loader=PackageLoader("bestepoch.evaluation", "."),
        autoescape=select_autoescape(),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters.update(count="{:,}".format, percent=_format_percent, loss=_format_loss)
    page = pages.get_template("report.html").render(
        run=run.info,
        at=paths.display_path(run.folder),
        planned=planned,
        epochs=epochs,
        metrics=metrics,
        selection=report.selection,
        stopping=report.stopping,
        high_rate=decays_over_full_run(_read_scheduler(run)),
        diagnosis=report.diagnosis,
        to_try=remarks.command_to_try(report.diagnosis.override),
        remarks=remarks,
        training_loss=learning_curves.training_loss_column(epochs),
        layers=report.layers,
        names=report.names,
        pictures=pictures,
        wide=12 < classes <= figures.MAX_NUMBERED_CLASSES,
        per_class=_class_metrics(tested, classes),
        confused=_most_confused(counts),
        wrong=len(wrong),
        mistakes=[_describe_mistake(tested, index) for index in wrong[:MAX_SHOWN].tolist()],
        bins=bins,
        confidence=float(tested.confidence.mean()),
        seconds=math.fsum(row["seconds"] for row in epochs),
        testing=tested.seconds,
        costs=_describe_times(run.info),
    )
    files.write_atomic(out / "report.html", page)


def _describe_times(info: dict[str, Any]) -> str | None:
    """Return where the time of the training command went, or None for a run that has not ended."""
    if "time_by_section" not in info:
        return None
    return timing.format_breakdown(info["time_by_section"], info.get("peak_memory"))


def _format_loss(value: float | None) -> str:
    return "not finite" if value is None or not math.isfinite(value) else f"{value:.4f}"


def _format_percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _read_scheduler(run: Run) -> SchedulerConfig:
    config: SchedulerConfig = TypeAdapter(groups.SchedulerChoice).validate_python(run.info["config"]["scheduler"])
    return config


def _remaining_schedule(run: Run, planned: TrainingPlan, epochs: list[Row]) -> tuple[list[int], list[float]]:
    """Return the planned iterations after the last one and their rates; none where rates depend on the results."""
    config, last = _read_scheduler(run), int(epochs[-1]["iteration"])
    if isinstance(config, groups.PlateauSchedulerConfig) or last >= planned.iterations:
        return [], []
    peak = run.info["config"]["optimizer"]["lr"]
    at = np.unique(np.linspace(last, planned.iterations, learning_curves.MAX_POINTS).astype(int)).tolist()
    return at, [learning_rate(config, peak, planned, i) for i in at]


def _marks(metrics: dict[str, Any], early: bool) -> learning_curves.EpochMarks:
    """Return the epochs to mark; one mark names both where two are the same epoch."""
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


def _class_metrics(tested: TestPredictions, classes: int) -> list[dict[str, Any]]:
    """Return precision, recall, F1 and the number of images of each class; NaN where a denominator is 0."""
    from sklearn.metrics import precision_recall_fscore_support

    found = precision_recall_fscore_support(
        tested.actual, tested.predicted, labels=list(range(classes)), zero_division=np.nan
    )
    names = ("precision", "recall", "f1", "images")
    return [dict(zip(names, values, strict=True)) for values in zip(*(a.tolist() for a in found), strict=True)]


def _most_confused(counts: np.ndarray) -> list[tuple[int, int, int]]:
    """Return the five most frequent mistakes as (actual, predicted, count)."""
    pairs = [(i, j, int(counts[i, j])) for i, j in zip(*(a.tolist() for a in counts.nonzero()), strict=True) if i != j]
    return sorted(pairs, key=lambda pair: -pair[2])[:5]


def _describe_mistake(tested: TestPredictions, index: int) -> dict[str, Any]:
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
