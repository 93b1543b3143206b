"""The figures, and one page that opens without a network."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib.figure import Figure

from bestepoch import project
from bestepoch.journal import Row
from bestepoch.run import Run
from bestepoch.schema import Selection

TRAIN, VALIDATION, BEST = "#9a6700", "#0969da", "#cf222e"


def write(
    out: Path,
    run: Run,
    iterations: dict[str, np.ndarray],
    epochs: list[Row],
    best: Row,
    metrics: dict[str, float],
    selection: Selection,
    actual: list[int],
    predicted: list[int],
) -> None:
    """``curves.png``, ``lr.png``, ``confusion.png`` and ``report.html`` into ``out``."""
    figures = {
        "curves": curves(epochs, best),
        "lr": learning_rate(iterations),
        "confusion": confusion(actual, predicted, run.info["data"]["classes"]),
    }
    for name, figure in figures.items():
        figure.savefig(out / f"{name}.png", dpi=120)
    pictures = {
        name: "data:image/png;base64," + base64.b64encode((out / f"{name}.png").read_bytes()).decode()
        for name in figures
    }
    pages = Environment(loader=PackageLoader("bestepoch", "."), autoescape=select_autoescape())
    page = pages.get_template("report.html").render(
        run=run.info, epochs=epochs, best=best, metrics=metrics, selection=selection, pictures=pictures
    )
    project.write_atomic(out / "report.html", page)


def curves(epochs: list[Row], best: Row) -> Figure:
    """Loss and validation accuracy against the epoch, the chosen one marked."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    x = [row["epoch"] for row in epochs]
    style: dict[str, Any] = {"marker": "o", "markersize": 4}
    left.plot(x, [row["train/epoch_loss"] for row in epochs], color=TRAIN, label="train/epoch_loss", **style)
    left.plot(x, [row["val/loss"] for row in epochs], color=VALIDATION, label="val/loss", **style)
    right.plot(x, [row["val/accuracy"] for row in epochs], color=VALIDATION, label="val/accuracy", **style)
    for axes, label in ((left, "cross-entropy, nats"), (right, "accuracy")):
        axes.axvline(best["epoch"], color=BEST, linestyle="--", linewidth=1, label=f"best: epoch {best['epoch']:.0f}")
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def learning_rate(iterations: dict[str, np.ndarray]) -> Figure:
    """The rate of every update, and the loss it met."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    x = iterations["iteration"]
    left.plot(x, iterations["train/loss"], color=TRAIN, linewidth=0.6)
    left.set_ylabel("train/loss, nats")
    left.set_yscale("log")
    right.plot(x, iterations["lr"], color=VALIDATION)
    right.set_ylabel("lr")
    for axes in (left, right):
        axes.set_xlabel("iteration")
        axes.grid(alpha=0.3)
    return figure


def confusion(actual: list[int], predicted: list[int], classes: int) -> Figure:
    """How often each class was taken for which, on the test images."""
    from sklearn.metrics import confusion_matrix

    counts = confusion_matrix(actual, predicted, labels=list(range(classes)))
    size = min(max(4.0, classes * 0.55), 14.0)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    # the root keeps the few mistakes visible beside the many hits
    axes.imshow(counts**0.5, cmap="Blues")
    if classes <= 30:
        axes.set_xticks(range(classes))
        axes.set_yticks(range(classes))
        for i, j in ((i, j) for i in range(classes) for j in range(classes) if counts[i, j]):
            dark = counts[i, j] ** 0.5 > counts.max() ** 0.5 / 2
            axes.text(j, i, str(counts[i, j]), ha="center", va="center", color="white" if dark else "black", fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("actual")
    return figure
