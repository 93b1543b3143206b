"""The report's figures: each is drawn once, and kept as a PNG file and as SVG in the colours of the page."""

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
# In the page's SVG each of these is a variable of its style sheet, which has other values for the dark.
THEME = {INK: "ink", GREY: "soft", LINE: "line", TRAIN: "train", VALIDATION: "val", BEST: "best", STOP: "stop"}
WIDTH, HEIGHT = 4.2, 2.8  # inches: the letters are still legible where a phone shows it
MAX_POINTS = 400  # that a curve over the iterations is drawn with
MAX_NUMBERED_CLASSES = 30  # classes up to which the confusion matrix has numbers
EpochMarks = list[tuple[str, int, str]]
"""Epochs to mark: name, epoch, colour."""


def figure_style() -> AbstractContextManager[None]:
    """The figures are drawn and saved inside of it."""
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
            "svg.fonttype": "none",  # text stays text, in the page's font
        }
    )


def save_figure(figure: Figure, out: Path, name: str) -> str:
    """``<name>.png`` into ``out``, on white.

    Returns:
        an ``<svg>`` element without ground, for a page that defines the variables of `THEME`.
    """
    figure.savefig(out / f"{name}.png", dpi=150)
    buffer = io.StringIO()
    # identifiers that are the same each time, and not those of another figure in the page
    with matplotlib.rc_context({"svg.hashsalt": name}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"| id="[\w.]+_\d+"', "", svg)
    for colour, variable in THEME.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg


def plot_loss(epochs: list[Row], marks: EpochMarks) -> Figure:
    """Training and validation loss against the epoch."""
    figure, axes = _plot_by_epoch(epochs, {"train/epoch_loss": TRAIN, "val/loss": VALIDATION}, marks)
    axes.set_ylabel("cross-entropy, nats")
    _use_log_scale_if_wide(axes, [row[name] for row in epochs for name in ("train/epoch_loss", "val/loss")])
    return figure


def plot_accuracy(epochs: list[Row], marks: EpochMarks) -> Figure:
    """Validation accuracy against the epoch."""
    figure, axes = _plot_by_epoch(epochs, {"val/accuracy": VALIDATION}, marks)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    return figure


def plot_gap(epochs: list[Row], marks: EpochMarks) -> Figure:
    """By how much the loss on validation images is above that on training images, against the epoch."""
    name = "val/loss − train/epoch_loss"
    rows = [{"epoch": row["epoch"], name: row["val/loss"] - row["train/epoch_loss"]} for row in epochs]
    figure, axes = _plot_by_epoch(rows, {name: VALIDATION}, marks)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set_ylabel("nats")
    return figure


def plot_training_loss(iterations: np.ndarray, losses: np.ndarray) -> Figure:
    """The loss of each update; where there are many, the mean and the range of every few."""
    figure, axes = _make_panel()
    parts = list(zip(*(np.array_split(a, min(len(a), MAX_POINTS)) for a in (iterations, losses)), strict=True))
    x, mean, low, high = (
        np.array([take(part) for part in (p[of] for p in parts)])
        for take, of in ((np.max, 0), (np.mean, 1), (np.min, 1), (np.max, 1))
    )
    axes.fill_between(x, low, high, color=TRAIN, alpha=0.25, linewidth=0)
    axes.plot(x, mean, marker="o" if len(x) == 1 else "", color=TRAIN, linewidth=1)
    axes.set_xlabel("iteration")
    axes.set_ylabel("train/loss, nats")
    _use_log_scale_if_wide(axes, mean)
    return figure


def plot_learning_rate(iterations: np.ndarray, rates: np.ndarray, planned: tuple[list[int], list[float]]) -> Figure:
    """The rate of every update, and what was planned for those that early stopping spared, (iterations, rates)."""
    figure, axes = _make_panel()
    shown = np.unique(np.linspace(0, len(rates) - 1, 2 * MAX_POINTS).astype(int))
    dots = "o" if len(shown) == 1 else ""
    axes.plot(iterations[shown], rates[shown], marker=dots, color=VALIDATION, label="used")
    if planned[0]:
        axes.plot(*planned, color=GREY, linestyle=":", label="planned, not reached")
        figure.legend(loc="outside upper left", ncols=2)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("iteration")
    axes.set_ylabel("lr")
    return figure


def plot_confusion(counts: np.ndarray) -> Figure:
    """How often each class was taken for which: (actual, predicted) counts, hits in blue and mistakes in red."""
    classes = len(counts)
    numbered = classes <= MAX_NUMBERED_CLASSES
    size = max(WIDTH, classes * 0.33 * numbered)
    figure, axes = _make_panel(size, size)
    hits = np.eye(classes, dtype=bool)
    # each on its own scale, and by its root, so that a few mistakes are visible beside the many hits
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
    """Up to 25 images, (n, height, width), each under its caption."""
    columns = min(len(images), 5)
    rows = -(-len(images) // 5)
    figure = Figure(figsize=(1.5 * columns, 1.6 * rows), layout="constrained")
    for place, (image, caption) in enumerate(zip(images, captions, strict=True), 1):
        axes = figure.add_subplot(rows, columns, place)
        axes.imshow(image, cmap="gray_r", interpolation="none")
        axes.set_axis_off()
        axes.set_title(caption, fontsize=8)
    return figure


def tile_images(images: np.ndarray, enlarged: int = 2) -> np.ndarray:
    """Images (n, height, width) side by side in a square, as one image; dark on light, as they are printed."""
    n, height, width = images.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    sheet = np.zeros((rows * columns, height + 2, width + 2), np.uint8)
    sheet[:n, 1:-1, 1:-1] = images
    sheet = sheet.reshape(rows, columns, height + 2, width + 2).swapaxes(1, 2).reshape(rows * (height + 2), -1)
    return 255 - sheet.repeat(enlarged, 0).repeat(enlarged, 1)


def plot_reliability(bins: list[dict[str, Any]]) -> Figure:
    """Accuracy against confidence with 95 % intervals, above how many images each bin holds."""
    figure = Figure(figsize=(WIDTH, 1.3 * HEIGHT), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="as sure as right")
    x, share, low, high = (np.array([b[key] for b in bins]) for key in ("confidence", "accuracy", "low", "high"))
    whiskers = np.array([share - low, high - share]).clip(0)
    upper.errorbar(x, share, whiskers, fmt="o", color=VALIDATION, elinewidth=1, label="a bin, 95% interval")
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
    """Columns of ``rows``, name to colour, and the marked epochs."""
    figure, axes = _make_panel()
    epochs = [row["epoch"] for row in rows]
    dots = "o" if len(rows) <= 40 else ""
    for name, colour in curves.items():
        values = np.array([row[name] for row in rows])
        axes.plot(epochs, np.where(np.isfinite(values), values, np.nan), marker=dots, color=colour, label=name)
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
