"""Whether a new model is better than the champion."""

from __future__ import annotations

from typing import Any

from bestepoch.evaluation.selection import PER_EXAMPLE_COLUMN
from bestepoch.evaluation.statistics import paired_bootstrap_ci
from bestepoch.tracking.mlflow.registry import CHAMPION


def compare_with_champion(
    new: dict[str, Any], champion: dict[str, Any] | None, metric: str, holder: str
) -> tuple[bool, str]:
    """Whether ``new`` is better on validation by more than noise, and the reason in a sentence.

    Args:
        new, champion: what their ``model.pt`` hold; None where the champion has none.
        metric: val/loss or val/accuracy; by any other, which has no value for each image, it is val/loss. Losses with
            different label smoothing are no comparison: then it is val/accuracy.
        holder: how the champion is called.
    """
    by_hand = f'To use this version all the same, give it the alias "{CHAMPION}" by hand.'
    if champion is None:
        return False, f"{holder} stays the champion: it keeps no validation results to compare with. {by_hand}"
    holder = f"{holder} (run {champion['run']}, epoch {champion['epoch']})"
    if new["checksum"] != champion["checksum"]:
        return False, (
            f"{holder} stays the champion: its validation images are not the same ones (data checksum "
            f"{champion['checksum'][:12]}, here {new['checksum'][:12]}), so the two cannot be compared. {by_hand}"
        )
    alike = new["label_smoothing"] == champion["label_smoothing"]
    metric = "val/accuracy" if not alike else metric if metric in PER_EXAMPLE_COLUMN else "val/loss"
    pair = [one["validation"][PER_EXAMPLE_COLUMN[metric]].double().numpy() for one in (champion, new)]
    found = paired_bootstrap_ci(*pair)
    better = found["more_than_noise"] and (found["difference"] < 0) == (metric == "val/loss")
    return better, (
        f"{f'The champion, in place of {holder}' if better else f'{holder} stays the champion'}: on the same "
        f"{len(pair[0]):,} validation images {metric} differs by {found['difference']:+.2g} (95% interval "
        f"{found['low']:+.2g} to {found['high']:+.2g}), {'' if found['more_than_noise'] else 'not '}more than noise."
    )
