"""Sentences about an evaluation, for the terminal and the report."""

from __future__ import annotations

from typing import Any

from bestepoch.base.config.schema import SelectionConfig
from bestepoch.components.models.model_file import losses_are_smoothed
from bestepoch.evaluation.selection import PER_EXAMPLE_COLUMN, best_epoch
from bestepoch.runs.tables import Row


def compare_runner_up(second: dict[str, Any], best: int, selection: SelectionConfig) -> str:
    """Say how much better or worse the runner-up is than the chosen epoch, and what that means.

    Args:
        second: ``runner_up`` of ``metrics.json``.
        best: the chosen epoch.
        selection: how it was chosen.
    """
    points = selection.metric == "val/accuracy"
    sign = -1 if points else 1  # an accuracy is worse where it is lower
    worse, *bounds = (sign * second[key] for key in ("difference", "low", "high"))
    low, high = sorted(bounds)

    def amount(value: float) -> str:
        return f"{100 * abs(value):.2f}" if points else f"{abs(value):.2g}"

    def side(value: float) -> str:
        return "worse" if value > 0 else "better"

    unit = " points" if points else "" if selection.metric in PER_EXAMPLE_COLUMN else " in val/loss"
    difference = f"{side(worse)} by {amount(worse)}{unit}" if worse else "equally good"
    if low < 0 < high:
        interval = f"{amount(low)} better to {amount(high)} worse"
    else:
        interval = " to ".join(sorted((amount(low), amount(high)), key=float))
    if selection.rule == "one_standard_error":
        meaning = f"epoch {best} is the earliest within one standard error of the best"
    else:
        meaning = "more than noise" if second["more_than_noise"] else "not more than noise"
    return f"{difference} (95% interval {interval}): {meaning}"


def explain_missing_scores(info: dict[str, Any], epochs: list[Row]) -> str | None:
    """Say why a run has no results on training images, and what stands in for them; None where it has them."""
    if "train/eval_loss" in epochs[0]:
        return None
    switched_off = info["config"]["train"].get("eval_images") == 0
    why = "with train.eval_images=0" if switched_off else "by an earlier version"
    return (
        f"This run was trained {why}, so no training images were scored: train/epoch_loss, the mean of the objective "
        "over the epoch, stands in for their loss, and their accuracy is missing."
    )


def explain_smoothing(info: dict[str, Any], epochs: list[Row], smoothing: int) -> str | None:
    """Say that loss and accuracy choose different epochs of a run with label smoothing; None where they do not."""
    share = info["config"]["loss"]["label_smoothing"]
    by_loss = int(best_epoch(epochs, "val/loss", "min", smoothing)["epoch"])
    by_accuracy = int(best_epoch(epochs, "val/accuracy", "max", smoothing)["epoch"])
    if not share or by_loss == by_accuracy:
        return None
    return (
        f"Label smoothing of {share:g} trains the network to be unsure, which val/loss counts as a fault and "
        f"val/accuracy does not: they choose epochs {by_loss} and {by_accuracy}."
    )


def warn_of_smoothed_losses(info: dict[str, Any]) -> str | None:
    """Say that the recorded losses of a run include label smoothing; None where they are plain cross-entropy."""
    if not losses_are_smoothed(info):
        return None
    return (
        f"an earlier version trained this run: its validation losses include label smoothing of "
        f"{info['config']['loss']['label_smoothing']:g}, so they do not compare with the test loss or with newer runs"
    )


def command_to_try(override: str) -> str:
    """Return what to type: the overrides, or for those of a multirun the command that takes them."""
    return f"python -m bestepoch.train ... {override}" if override.startswith("-m ") else override
