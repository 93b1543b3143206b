"""Figures of the report, saved as PNG files and as SVG elements that follow the page's colour scheme."""

from __future__ import annotations

import io
import math
import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

INK, GREY, LINE, WHITE = "#1f2328", "#59636e", "#d1d9e0", "#ffffff"
TRAIN, VALIDATION, BEST, STOP, WRONG = "#9a6700", "#0969da", "#1a7f37", "#8250df", "#cf222e"
# In the SVG, these colours are CSS variables, which the page's style sheet redefines for dark mode.
THEME = {INK: "ink", GREY: "soft", LINE: "line", TRAIN: "train", VALIDATION: "val", BEST: "best", STOP: "stop"}
WIDTH, HEIGHT = 4.2, 2.8  # inches; text stays legible on a phone
MAX_NUMBERED_CLASSES = 30  # larger confusion matrices show no counts


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
    """Write ``<name>.png`` on a white background into ``out`` and return the figure's `render_svg`."""
    figure.savefig(out / f"{name}.png", dpi=150)
    return render_svg(figure, name)


def render_svg(figure: Figure, name: str) -> str:
    """Return an ``<svg>`` element with a transparent background, for a page that defines the variables in `THEME`."""
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


def plot_confusion(counts: np.ndarray, names: list[str] | None = None) -> Figure:
    """Plot a confusion matrix of shape ``(actual, predicted)``, with hits in blue and mistakes in red.

    ``names`` are those of the classes; without them their labels are shown.
    """
    classes = len(counts)
    numbered = classes <= MAX_NUMBERED_CLASSES
    size = max(WIDTH, classes * 0.33 * numbered)
    figure, axes = make_panel(size, size)
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
        names = names or [str(label) for label in range(classes)]
        upright = max(map(len, names)) <= 3
        axes.set_xticks(range(classes), names, rotation=0 if upright else 45, ha="center" if upright else "right")
        axes.set_yticks(range(classes), names)
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


def make_panel(width: float = WIDTH, height: float = HEIGHT) -> tuple[Figure, Axes]:
    """Return a figure with one panel, whose size is in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure, axes
