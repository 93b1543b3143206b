"""Figures of the report, saved as PNG files and as SVG elements that follow the page's colour scheme."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from bestepoch.runs.tables import Row

INK, GREY, LINE, WHITE = "#1f2328", "#59636e", "#d1d9e0", "#ffffff"
TRAIN, VALIDATION, BEST, STOP, WRONG = "#9a6700", "#0969da", "#1a7f37", "#8250df", "#cf222e"
# In the SVG, these colours are CSS variables, which the page's style sheet redefines for dark mode.
THEME = {INK: "ink", GREY: "soft", LINE: "line", TRAIN: "train", VALIDATION: "val", BEST: "best", STOP: "stop"}
WIDTH, HEIGHT = 4.2, 2.8  # inches; text stays legible on a phone
MAX_POINTS = 400  # of a curve over iterations
MAX_NUMBERED_CLASSES = 30  # larger confusion matrices show no counts
EpochMarks = list[tuple[str, int, str]]  # name, epoch, colour


def figure_style() -> AbstractContextManager[None]:
    """Return the context manager in which figures must be drawn and saved."""
    return matplotlib.rc_context(
        {
            "font.size": 8.5,
            "legend.fontsize": 8,
            "legend.frameon": False,
            "legend.handlelength": 1.6,
            "lines.linewidth": 1.5,
            "lines.markersize": 3.5,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": LINE,
            "grid.linewidth": 0.6,
            **dict.fromkeys(("text.color", "axes.labelcolor", "legend.labelcolor"), INK),
            **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), GREY),
            "svg.fonttype": "none",  # keep text as text, in the page's font
        }
    )


def save_figure(figure: Figure, out: Path, name: str) -> str:
    """Write ``<name>.png`` on a white background into ``out``.

    Returns:
        An ``<svg>`` element with a transparent background, for a page that defines the CSS variables in `THEME`.
    """
    figure.savefig(out / f"{name}.png", dpi=150)
    buffer = io.StringIO()
    # The salt makes identifiers reproducible and different from those of other figures in the page.
    with matplotlib.rc_context({"svg.hashsalt": name}):
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"| id="[\w.]+_\d+"', "", svg)
    for colour, variable in THEME.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg


def plot_loss(epochs: list[Row], marks: EpochMarks) -> Figure:
    """Plot training and validation loss against the epoch."""
    figure, axes = _plot_by_epoch(epochs, {"train/epoch_loss": TRAIN, "val/loss": VALIDATION}, marks)
    axes.set_ylabel("cross-entropy, nats")
    _use_log_scale_if_wide(axes, [row[name] for row in epochs for name in ("train/epoch_loss", "val/loss")])
    return figure


def plot_accuracy(epochs: list[Row], marks: EpochMarks) -> Figure:
    """Plot validation accuracy against the epoch."""
    figure, axes = _plot_by_epoch(epochs, {"val/accuracy": VALIDATION}, marks)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    return figure


def plot_gap(epochs: list[Row], marks: EpochMarks) -> Figure:
    """Plot validation loss minus training loss against the epoch."""
    name = "val/loss − train/epoch_loss"
    rows = [{"epoch": row["epoch"], name: row["val/loss"] - row["train/epoch_loss"]} for row in epochs]
    figure, axes = _plot_by_epoch(rows, {name: VALIDATION}, marks)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set_ylabel("nats")
    return figure


def plot_training_loss(iterations: np.ndarray, losses: np.ndarray) -> Figure:
    """Plot the loss of each iteration, or the mean and range over chunks if there are more than ``MAX_POINTS``.

    Both arrays have shape ``(N,)``.
    """
    figure, axes = _make_panel()
    parts = list(zip(*(np.array_split(a, min(len(a), MAX_POINTS)) for a in (iterations, losses)), strict=True))
    x, mean, low, high = (
        np.array([reduce(part[i]) for part in parts])
        for reduce, i in ((np.max, 0), (np.mean, 1), (np.min, 1), (np.max, 1))
    )
    axes.fill_between(x, low, high, color=TRAIN, alpha=0.25, linewidth=0)
    axes.plot(x, mean, marker="o" if len(x) == 1 else "", color=TRAIN, linewidth=1)
    axes.set_xlabel("iteration")
    axes.set_ylabel("train/loss, nats")
    _use_log_scale_if_wide(axes, mean)
    return figure


def plot_learning_rate(iterations: np.ndarray, rates: np.ndarray, planned: tuple[list[int], list[float]]) -> Figure:
    """Plot the learning rate of each iteration.

    Args:
        iterations: iteration numbers, shape ``(N,)``.
        rates: learning rates that were used, shape ``(N,)``.
        planned: iterations and learning rates of the schedule after early stopping; empty lists if there are none.
    """
    figure, axes = _make_panel()
    index = np.unique(np.linspace(0, len(rates) - 1, 2 * MAX_POINTS).astype(int))
    marker = "o" if len(index) == 1 else ""
    axes.plot(iterations[index], rates[index], marker=marker, color=VALIDATION, label="used")
    if planned[0]:
        axes.plot(*planned, color=GREY, linestyle=":", label="planned, not reached")
        figure.legend(loc="outside upper left", ncols=2)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("iteration")
    axes.set_ylabel("lr")
    return figure


def plot_confusion(counts: np.ndarray) -> Figure:
    """Plot a confusion matrix of shape ``(actual, predicted)``, with hits in blue and mistakes in red."""
    classes = len(counts)
    numbered = classes <= MAX_NUMBERED_CLASSES
    size = max(WIDTH, classes * 0.33 * numbered)
    figure, axes = _make_panel(size, size)
    hits = np.eye(classes, dtype=bool)
    # Hits and mistakes have separate square-root scales, so that few mistakes are visible beside many hits.
    strength = np.zeros(counts.shape)
    for cells in (hits, ~hits):
        strength[cells] = (counts[cells] / max(counts[cells].max(initial=0), 5)) ** 0.5
    tints = np.empty((classes, classes, 4))
    tints[..., :3] = np.where(hits[..., None], to_rgb(VALIDATION), to_rgb(WRONG))
    tints[..., 3] = strength * np.where(hits, 0.9, 0.75)
    axes.imshow(tints, interpolation="none")
    axes.grid(False)
    axes.spines[:].set_visible(True)
    if numbered:
        axes.set_xticks(range(classes))
        axes.set_yticks(range(classes))
        axes.tick_params(length=0)
        for i, j in zip(*counts.nonzero(), strict=True):
            colour = WHITE if tints[i, j, 3] > 0.55 else INK
            axes.text(j, i, str(counts[i, j]), ha="center", va="center", color=colour, fontsize=7.5)
    axes.set_xlabel("predicted")
    axes.set_ylabel("actual")
    return figure


def plot_mistakes(images: np.ndarray, captions: list[str]) -> Figure:
    """Plot up to 25 images of shape ``(N, H, W)``, each with its caption."""
    columns = min(len(images), 5)
    rows = -(-len(images) // 5)
    figure = Figure(figsize=(1.5 * columns, 1.6 * rows), layout="constrained")
    for position, (image, caption) in enumerate(zip(images, captions, strict=True), 1):
        axes = figure.add_subplot(rows, columns, position)
        axes.imshow(image, cmap="gray_r", interpolation="none")
        axes.set_axis_off()
        axes.set_title(caption, fontsize=8)
    return figure


def tile_images(images: np.ndarray, enlarged: int = 2) -> np.ndarray:
    """Arrange uint8 images of shape ``(N, H, W)`` in a square grid and return one inverted (dark on light) image."""
    n, height, width = images.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    sheet = np.zeros((rows * columns, height + 2, width + 2), np.uint8)
    sheet[:n, 1:-1, 1:-1] = images
    sheet = sheet.reshape(rows, columns, height + 2, width + 2).swapaxes(1, 2).reshape(rows * (height + 2), -1)
    return 255 - sheet.repeat(enlarged, 0).repeat(enlarged, 1)


def plot_reliability(bins: list[dict[str, Any]]) -> Figure:
    """Plot accuracy with 95 % intervals against confidence, and a histogram of the images below.

    ``bins`` is the result of `bestepoch.evaluation.predictions.calibration_bins`.
    """
    figure = Figure(figsize=(WIDTH, 1.3 * HEIGHT), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="as sure as right")
    x, accuracy, low, high = (np.array([b[key] for b in bins]) for key in ("confidence", "accuracy", "low", "high"))
    whiskers = np.array([accuracy - low, high - accuracy]).clip(0)
    upper.errorbar(x, accuracy, whiskers, fmt="o", color=VALIDATION, elinewidth=1, label="a bin, 95% interval")
    left, right = (np.array([b[key] for b in bins]) for key in ("left", "right"))
    lower.bar(left, [b["images"] for b in bins], right - left, align="edge", color=VALIDATION, alpha=0.6)
    lower.set_yscale("log")
    lower.set_ylim(bottom=0.7)
    lower.yaxis.set_major_locator(LogLocator(numticks=4))
    lower.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    lower.yaxis.set_minor_formatter(NullFormatter())
    upper.set_ylim(-0.03, 1.03)
    lower.set_xlim(-0.03, 1.03)
    upper.set_ylabel("accuracy")
    lower.set_ylabel("images")
    lower.set_xlabel("confidence")
    figure.legend(loc="outside upper left", ncols=2)
    return figure


def _plot_by_epoch(rows: list[Row], curves: dict[str, str], marks: EpochMarks) -> tuple[Figure, Axes]:
    """Plot columns of ``rows`` (``curves`` maps column to colour) and mark epochs with vertical lines."""
    figure, axes = _make_panel()
    epochs = [row["epoch"] for row in rows]
    marker = "o" if len(rows) <= 40 else ""
    for name, colour in curves.items():
        values = np.array([row[name] for row in rows])
        axes.plot(epochs, np.where(np.isfinite(values), values, np.nan), marker=marker, color=colour, label=name)
    for (name, epoch, colour), dashes in zip(marks, ("--", ":", "-."), strict=False):
        axes.axvline(epoch, color=colour, linestyle=dashes, linewidth=1.2, label=f"{name}: epoch {epoch}")
    axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
    axes.set_xlabel("epoch")
    figure.legend(loc="outside upper left", ncols=2)
    return figure, axes


def _make_panel(width: float = WIDTH, height: float = HEIGHT) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure, axes


def _use_log_scale_if_wide(axes: Axes, values: Sequence[float] | np.ndarray) -> None:
    finite = np.array(values)[np.isfinite(values)]
    if len(finite) and finite.min() > 0 and finite.max() > 8 * finite.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
