"""Whether a new model is better than the champion."""

from __future__ import annotations

from typing import Any

from bestepoch.evaluation.selection import PER_EXAMPLE_COLUMN
from bestepoch.evaluation.statistics import paired_bootstrap_ci
from bestepoch.tracking.mlflow.registry import CHAMPION


def compare_with_champion(
    metric: str, new: dict[str, Any], champion: dict[str, Any] | None, champion_name: str
) -> tuple[bool, str]:
    """Return whether ``new`` is better on validation by more than noise, and the reason in a sentence.

    Args:
        metric: val/loss or val/accuracy; any other metric has no value for each image, and val/loss decides. Where
            an earlier version has smoothed the labels in one model's losses, val/accuracy decides.
        new: content of the new model's ``model.pt``.
        champion: content of the champion's; None where it has none.
        champion_name: how the sentence calls the champion.
    """
    by_hand = f'To use this version all the same, give it the alias "{CHAMPION}" by hand.'
    if champion is None:
        return False, f"{champion_name} stays the champion: it keeps no validation results to compare with. {by_hand}"
    champion_name = f"{champion_name} (run {champion['run']}, epoch {champion['epoch']})"
    if new["checksum"] != champion["checksum"]:
        return False, (
            f"{champion_name} stays the champion: its validation images are not the same ones (data checksum "
            f"{champion['checksum'][:12]}, here {new['checksum'][:12]}), so the two cannot be compared. {by_hand}"
        )
    if new["label_smoothing"] != champion["label_smoothing"]:
        metric = "val/accuracy"
    elif metric not in PER_EXAMPLE_COLUMN:
        metric = "val/loss"
    values = [model["validation"][PER_EXAMPLE_COLUMN[metric]].double().numpy() for model in (champion, new)]
    interval = paired_bootstrap_ci(*values)
    better = interval["more_than_noise"] and (interval["difference"] < 0) == (metric == "val/loss")
    outcome = f"The champion, in place of {champion_name}" if better else f"{champion_name} stays the champion"
    return better, (
        f"{outcome}: on the same {len(values[0]):,} validation images {metric} differs by "
        f"{interval['difference']:+.2g} (95% interval {interval['low']:+.2g} to {interval['high']:+.2g}), "
        f"{'' if interval['more_than_noise'] else 'not '}more than noise."
    )
