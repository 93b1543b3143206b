"""Figures of a training: curves by epoch and by iteration."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from bestepoch.evaluation.figures import GREY, TRAIN, VALIDATION, make_panel
from bestepoch.runs.tables import Row

MAX_POINTS = 400  # of a curve over iterations
EpochMarks = list[tuple[str, int, str]]  # name, epoch, colour


def training_loss_column(epochs: list[Row]) -> str:
    """Return the column to compare val/loss with: train/epoch_loss where no training images were scored."""
    return "train/eval_loss" if "train/eval_loss" in epochs[0] else "train/epoch_loss"


def plot_loss(epochs: list[Row], marks: EpochMarks) -> Figure:
    """Plot training and validation loss against the epoch."""
    training = training_loss_column(epochs)
    figure, axes = _plot_by_epoch(epochs, {training: TRAIN, "val/loss": VALIDATION}, marks)
    axes.set_ylabel("cross-entropy, nats" if training == "train/eval_loss" else "nats")
    _use_log_scale_if_wide(axes, [row[name] for row in epochs for name in (training, "val/loss")])
    return figure


def plot_accuracy(epochs: list[Row], marks: EpochMarks) -> Figure:
    """Plot validation accuracy, and training accuracy where it was recorded, against the epoch."""
    curves = {"train/eval_accuracy": TRAIN, "val/accuracy": VALIDATION}
    figure, axes = _plot_by_epoch(epochs, {name: curves[name] for name in curves if name in epochs[0]}, marks)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    return figure


def plot_gap(epochs: list[Row], marks: EpochMarks) -> Figure:
    """Plot validation loss minus training loss against the epoch."""
    training = training_loss_column(epochs)
    name = f"val/loss − {training}"
    rows = [{"epoch": row["epoch"], name: row["val/loss"] - row[training]} for row in epochs]
    figure, axes = _plot_by_epoch(rows, {name: VALIDATION}, marks)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set_ylabel("nats")
    return figure


def plot_by_iteration(iterations: np.ndarray, values: np.ndarray, label: str, colour: str) -> Figure:
    """Plot a value of each iteration, or its mean and range over chunks if there are more than ``MAX_POINTS``.

    Both arrays have shape ``(N,)``.
    """
    figure, axes = make_panel()
    parts = list(zip(*(np.array_split(a, min(len(a), MAX_POINTS)) for a in (iterations, values)), strict=True))
    x, mean, low, high = (
        np.array([reduce(part[i]) for part in parts])
        for reduce, i in ((np.max, 0), (np.mean, 1), (np.min, 1), (np.max, 1))
    )
    axes.fill_between(x, low, high, color=colour, alpha=0.25, linewidth=0)
    axes.plot(x, mean, marker="o" if len(x) == 1 else "", color=colour, linewidth=1)
    axes.set_xlabel("iteration")
    axes.set_ylabel(label)
    _use_log_scale_if_wide(axes, mean)
    return figure


def plot_learning_rate(iterations: np.ndarray, rates: np.ndarray, planned: tuple[list[int], list[float]]) -> Figure:
    """Plot the learning rate of each iteration.

    Args:
        iterations: iteration numbers, shape ``(N,)``.
        rates: learning rates that were used, shape ``(N,)``.
        planned: iterations and learning rates of the schedule after early stopping; empty lists if there are none.
    """
    figure, axes = make_panel()
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


def _plot_by_epoch(rows: list[Row], curves: dict[str, str], marks: EpochMarks) -> tuple[Figure, Axes]:
    """Plot columns of ``rows`` (``curves`` maps column to colour) and mark epochs with vertical lines."""
    figure, axes = make_panel()
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


def _use_log_scale_if_wide(axes: Axes, values: Sequence[float] | np.ndarray) -> None:
    finite = np.array(values)[np.isfinite(values)]
    if len(finite) and finite.min() > 0 and finite.max() > 8 * finite.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
