"""The rules of the diagnosis, in the order in which they are asked; the first one that applies gives the verdict.

Failures come first, because the curves of a training that failed say nothing else. Each rule states its reason.
`thresholds` says what counts as much, and where that comes from.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from bestepoch.evaluation import advice, thresholds
from bestepoch.evaluation.advice import Advice
from bestepoch.evaluation.curves import LOSS, Curves, count_swings

Kind = Literal[
    "diverged",
    "penalty too strong",
    "rate too high",
    "rate too low",
    "oscillating",
    "underfit",
    "overfit",
    "finished as planned",
    "still falling",
    "converged",
]


class Verdict(NamedTuple):
    """What a rule found: the kind, the index of the epoch it speaks of, its reason, and what to try."""

    kind: Kind
    at: int
    reason: str
    advice: Advice
    since: bool = False


Rule = Callable[[Curves], Verdict | None]


def not_finite(c: Curves) -> Verdict | None:
    """A loss that is no number ends all that was learnt."""
    bad = np.flatnonzero(~(np.isfinite(c.train) & np.isfinite(c.val)))
    if not len(bad):
        return None
    i = int(bad[0])
    reason = f"training loss is {c.train[i]:.4g} and validation loss {c.val[i]:.4g} in epoch {c.epochs[i]}"
    return Verdict("diverged", i, reason, advice.scale_rate(c.config, 0.1))


def worse_than_guessing(c: Curves) -> Verdict | None:
    """A network that is surer and more wrong than a guess was thrown out of reach by its updates."""
    if c.train[-1] <= thresholds.WORSE_THAN_GUESSING * c.guess:
        return None
    i = int(np.flatnonzero(c.train > thresholds.WORSE_THAN_GUESSING * c.guess)[0])
    reason = f"the training loss is {c.train[-1]:.4g}, where guessing has {c.guess:.3g}"
    return Verdict("diverged", i, reason, advice.scale_rate(c.config, 0.1))


def guessing(c: Curves) -> Verdict | None:
    """No better than chance: held down by a penalty, not yet begun, too narrow, or broken by the first updates."""
    chance = 1 / c.classes
    limit = chance + thresholds.GUESSING * (1 - chance)
    if c.val_accuracy[-1] > limit or (c.train_accuracy is not None and c.train_accuracy[-1] > 2 * limit):
        return None
    reason = (
        f"accuracy is {c.val_accuracy[-1]:.3g} after epoch {c.epochs[-1]}, no better than guessing one of {c.classes}"
    )
    if (penalty := advice.strong_penalty(c.config)) is not None:
        return Verdict("penalty too strong", c.n - 1, f"{reason}, with {penalty[0]}", penalty[1])
    if c.is_falling:
        return Verdict("rate too low", c.n - 1, f"{reason}, but {c.describe(0)}", advice.scale_rate(c.config, 10))
    if (units := advice.narrowest_layer(c.config)) < thresholds.NARROW * c.classes:
        return Verdict(
            "underfit", c.n - 1, f"{reason}, with a layer of {units:.0f} units", advice.enlarge_network(c.config)
        )
    name, rate = c.config["optimizer"]["name"], c.config["optimizer"]["lr"]
    if rate <= thresholds.SMALL_RATES.get(name, 0.0):
        reason += f", and optimizer.lr = {rate:g} is small for {name}"
        return Verdict("rate too low", c.n - 1, reason, advice.scale_rate(c.config, 10))
    return Verdict("rate too high", c.n - 1, reason, advice.scale_rate(c.config, 0.1))


def validation_worse_than_guessing(c: Curves) -> Verdict | None:
    """Weights that fit nothing and are sure of it: updates are too large for the network to settle."""
    if c.val[-1] <= c.guess or c.train[-1] <= thresholds.SLOW * c.guess:
        return None
    reason = f"the validation loss is {c.val[-1]:.4g}, where guessing has {c.guess:.3g}"
    return Verdict("rate too high", c.n - 1, reason, advice.scale_rate(c.config, 0.1))


def too_slow(c: Curves) -> Verdict | None:
    """Falls that do not shrink, far above what one epoch can reach: the updates are too small."""
    if c.train[-1] <= thresholds.SLOW * c.guess or advice.strong_penalty(c.config) is not None or not c.is_falling:
        return None
    levels = [c.guess, *c.train]
    middle = len(levels) // 2
    if c.n > 1 and levels[middle] - levels[-1] < 0.5 * (levels[0] - levels[middle]):
        return None
    if c.n == 1 and c.train[-1] < 0.9 * c.guess:
        return None
    return Verdict(
        "rate too low", c.n - 1, f"losses fall at an even, slow pace: {c.describe(0)}", advice.scale_rate(c.config, 10)
    )


def collapsed(c: Curves) -> Verdict | None:
    """Both losses back up after they were low: an update too large has destroyed what was learnt."""
    k = int(c.train.argmin())
    rise, learnt = c.train[-1] - c.train[k], c.guess - c.train[k]
    if rise <= thresholds.LOST * learnt or c.val[-1] <= c.val[k]:
        return None
    reason = f"both losses have risen: {c.describe(k)}"
    return Verdict("diverged", k + 1, reason, advice.scale_rate(c.config, 0.1), True)


def swinging(c: Curves) -> Verdict | None:
    """A loss that rises by a fifth again and again: the updates jump across the minimum."""
    if c.rate_has_come_down:
        return None
    first = max(0, c.n - thresholds.RECENT)
    typical = float(np.median(c.val[first:]))
    large = max(thresholds.SWING * typical, 2 * c.noise_at(typical))
    for name, values in (("training", c.train[first:]), ("validation", c.val[first:])):
        count, low, high = count_swings(values, large)
        if count >= thresholds.SWINGS:
            where = f"between epochs {c.epochs[first + low]} and {c.epochs[first + high]}"
            reason = f"the {name} loss rose {count} times by more than {large:.2g} {where}"
            return Verdict("oscillating", first + low, reason, advice.scale_rate(c.config, 1 / 3))
    return None


def held_down(c: Curves) -> Verdict | None:
    """Training images that stay unlearnt under a strong penalty: the penalty decides, not the images."""
    penalty = advice.strong_penalty(c.config)
    if c.train[-1] <= thresholds.NOT_FITTED * c.guess or penalty is None:
        return None
    reason = f"the training loss is {c.train[-1]:.3g} after {c.n} epochs, with {penalty[0]}"
    return Verdict("penalty too strong", c.n - 1, reason, penalty[1])


def unsettled(c: Curves) -> Verdict | None:
    """Training images whose loss is high and has risen by a fifth: no network is too small for what it has held."""
    k = int(c.train.argmin())
    if c.rate_has_come_down or c.train[-1] <= max((1 + thresholds.SWING) * c.train[k], thresholds.NOT_FITTED * c.guess):
        return None
    reason = f"the training loss has risen again: {c.describe(k)}"
    return Verdict("oscillating", k, reason, advice.scale_rate(c.config, 1 / 3), True)


def too_small(c: Curves) -> Verdict | None:
    """Both losses high and level: the network cannot hold what there is to learn."""
    level = max(c.noise_at(float(c.val[-1])), 0.1 * float(c.train[-1]))
    if c.train[-1] <= thresholds.NOT_FITTED * c.guess or c.n < 4 or c.expected_gain > level:
        return None
    return Verdict(
        "underfit",
        c.n - 1,
        f"both losses are high and level: {c.describe((c.n - 1) // 2)}",
        advice.enlarge_network(c.config),
    )


def overfit(c: Curves) -> Verdict | None:
    """Training goes on to improve and validation gets worse: what is learnt since is about these images alone."""
    k = c.best
    wider = float(np.median(c.val[-thresholds.LAST :]) - c.val[k] + c.train[k] - c.train[-1])
    better = c.val_accuracy[-1] > c.val_accuracy[k]
    # a rate that comes down raises the accuracy to the end, and makes the network surer of its last errors
    limit = (math.inf if better else c.noise) if c.rate_has_come_down else thresholds.RISE * c.noise
    if k >= c.n - 2 or c.rise <= limit or wider <= c.noise or c.train[-1] > thresholds.BY_HEART * c.train[k]:
        return None
    reason = c.describe(k)
    if c.val_accuracy[-1] >= c.val_accuracy[k] and c.unit == LOSS:
        reason += (
            f"; accuracy did not fall ({c.val_accuracy[k]:.2%}, {c.val_accuracy[-1]:.2%}), so only the loss is overfit"
        )
    if c.train[-1] > thresholds.NOT_FITTED * c.guess:  # variation would make the images harder still
        return Verdict("overfit", k, reason, advice.stop_early(c.config, int(c.epochs[k])), True)
    return Verdict("overfit", k, reason, advice.regularize(c.config, int(c.epochs[k])), True)


def finished_as_planned(c: Curves) -> Verdict | None:
    """A rate at its end: a curve that falls or is level there follows the schedule and says nothing of more epochs."""
    if not c.rate_has_come_down:
        return None
    reason = (
        f"the {c.config['scheduler']['name']} schedule has brought the learning rate down to {c.lr[-1]:.1e}, so this "
        "curve cannot tell whether more epochs would help"
    )
    return Verdict("finished as planned", c.n - 1, reason, advice.compare_lengths(c.config, c.n))


def still_falling(c: Curves) -> Verdict | None:
    """More epochs are worth their time where they are expected to bring more than another seed does."""
    gain = c.expected_gain
    if gain <= c.noise or c.n - 1 - c.best > max(1, c.n // 4):
        return None
    if c.n == 1:
        reason = f"one epoch brought training loss to {c.train[0]:.4g} and validation loss to {c.val[0]:.4g}"
    else:
        more = f"as many epochs again may bring {gain:.2g}, and seeds differ by {c.noise:.2g}"
        reason = f"{c.describe((c.n - 1) // 2)}; {more}"
    return Verdict("still falling", c.n - 1, reason, advice.train_longer(c.config, c.n))


def converged(c: Curves) -> Verdict | None:
    """Neither falling nor rising by more than the noise of a seed."""
    k, best = c.best, c.epochs[c.best]
    noise = f"the {c.noise:.2g} by which seeds differ"
    if k < c.n - 2 and (c.val[k:] - c.val[k] <= c.noise).all():
        reason = f"{best} epochs are enough: since epoch {best} {c.unit} has changed by no more than {noise}"
    else:
        reason = f"more epochs are expected to bring less than {noise}"
    gap = float(c.val[-1] - c.train[-1])
    fitted = c.train_accuracy is not None and c.train[-1] <= thresholds.NOT_FITTED * c.guess
    if fitted and gap > thresholds.LARGE_GAP * c.noise and c.config["augment"]["name"] == "none":
        reason += f"; validation is {gap:.2g} above training"
        return Verdict("converged", k, reason, advice.regularize(c.config, int(best)))
    return Verdict("converged", k, reason, advice.NOTHING)


RULES: tuple[Rule, ...] = (
    not_finite,
    worse_than_guessing,
    guessing,
    validation_worse_than_guessing,
    too_slow,
    collapsed,
    swinging,
    held_down,
    overfit,
    unsettled,
    too_small,
    finished_as_planned,
    still_falling,
    converged,
)
