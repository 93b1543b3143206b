"""What the curves show and what to try next: a pure function of the epoch table.

A change is a share of the loss (a difference of logarithms) and counts when it is more than the noise, which is read
off the same curve. The gap between the losses decides nothing: label smoothing, L1, dropout and augmentation move it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bestepoch.base.errors import UsageError
from bestepoch.runs.tables import Row

Kind = Literal["underfit", "overfit", "converged", "oscillating", "diverged"]

# How many standard deviations a change must have: the best of many epochs is two to three below the last by noise,
# and the standard deviation itself is only known to a third. At 6, noise passes for a trend in 1 of 100 tables of 20.
SIGMAS = 6.0
# The least change that counts, as a share of the loss. A smooth curve has no noise to see, but another seed moves the
# end of a training by 2 % (standard deviation of three on MNIST, with mlp and with cnn); half of that is nothing.
LEAST = 0.01
# A change this large, as a share of the loss, always counts. Trainings that went well at a constant rate rose by 5 to
# 15 % now and then; SGD at a rate that kept it from getting anywhere rose by 24 to 115 %, again and again.
SWING = 0.2
# The epochs that are "the end" for noise and swings: enough for two swings, and for a noise that is known to a third.
RECENT = 10
# Up to this share of the way from guessing to perfect, accuracy is that of guessing: of ten classes, 0.19. Those that
# learn at all pass 0.4 in an epoch or two, and guessing 450 images gives no more than 0.15.
GUESSING = 0.1


@dataclass(frozen=True)
class Diagnosis:
    """What the table shows, the numbers that led there, and one thing to try.

    ``epoch`` is the best one (overfit), the first that is as good as the last (converged), the low before the first
    swing (oscillating), the first bad one (diverged) or the last one (underfit).
    """

    kind: Kind
    epoch: int
    sentence: str
    suggestion: str
    override: str
    evidence: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """What a person is told of it, as plain values."""
        return {key: getattr(self, key) for key in ("kind", "epoch", "sentence", "suggestion", "override")}


class Curve:
    """One loss, oldest epoch first: ``values``, their ``noise``, and the ``level``, a running median of their logs."""

    def __init__(self, values: np.ndarray) -> None:
        n = len(values)
        self.logs = logs = np.log(np.maximum(values, max(1e-9 * values.max(), 1e-300)))  # a loss of 0 has no logarithm
        # Every epoch of a short table counts; a median leaves slopes and steps where they are and drops single spikes.
        width = max(3, n // 20 | 1) if n >= RECENT else 1
        # Narrower at the start, where losses are steep; at the end, where the answer is, never below three epochs.
        halves = [min(i, width // 2) for i in range(n)]
        windows = (logs[min(i - half, n - min(width, 3)) : i + half + 1] for i, half in enumerate(halves))
        self.values, self.level = values, np.array([np.median(window) for window in windows])
        self.noise = estimate_noise(logs[-max(RECENT, 3 * n // 4) :])
        self.tolerance = min(max(SIGMAS * self.noise / math.sqrt(width), LEAST), SWING)

    def flat_since(self) -> int | None:
        """The first index from which on the level stays what it is at the end, and where the value is as low as that.

        None where that is not long enough.
        """
        n, end = len(self.level), max(3, len(self.level) // 10)  # for a while, a slow fall looks flat as well
        last = np.median(self.level[-end:])
        first = 1 + int(np.append(-1, np.flatnonzero(np.abs(self.level - last) > self.tolerance))[-1])
        if n - first < min(end, max(2, n - 1)):
            return None
        # within the tolerance a slow fall may still be going on: so many epochs are enough that end as low (95 %)
        low = np.flatnonzero(self.logs[first : n - 1] - last <= max(2 * self.noise, LEAST))
        return first + int(np.append(low, 0)[0])

    def rises(self, scale: float) -> list[tuple[int, int]]:
        """The large rises among the last epochs, as indices (low, high), if there are two and no schedule ended them.

        Large is a share of the loss, or of ``scale`` if that is more: how a training loss near zero moves is no matter.
        """
        first = max(0, len(self.values) - RECENT)
        x, found, low, top = self.values[first:], list[tuple[int, int]](), 0, -1  # no top while it is not rising
        large = SWING * max(float(np.median(x)), scale)
        for i, value in enumerate(x):
            if top < 0 and value > x[low] + large:
                found, top = [*found, (low, i)], i
            elif top >= 0 and value > x[top]:
                found[-1], top = (low, i), i
            elif value < (x[low] if top < 0 else x[top] - large):
                low, top = i, -1
        # a lower rate takes the loss to the lows and below
        over = len(found) < 2 or x[-3:].mean() < min(x[low] for low, _ in found) + large / 4
        return [] if over else [(first + low, first + high) for low, high in found]

    def next_fall(self) -> float:
        """By how much one more epoch lowers the loss if its falls go on to shrink by the same factor, 1 at most.

        The least of what blocks of 1, 2, ... epochs say, until noise averages out. Exact for a geometric series.
        """
        x, n, falls = self.values, len(self.values), [0.0]
        if n < 3:  # one fall shows no factor
            return float((x[0] - x[-1]) * x[-1] / x[0]) / 2 if x[0] > x[-1] else 0.0
        for size in range(1, min(max(math.ceil((self.noise / LEAST) ** 2), 1), n // 3) + 1):
            first, middle, last = (float(np.median(x[n - i * size : n - (i - 1) * size])) for i in (3, 2, 1))
            fall = max(middle - last, 0.0)
            factor = min(fall / (first - middle), 1.0) ** (1 / size) if first > middle else 1.0
            falls.append(fall * size * factor ** (2 * size - 1) / sum(factor**i for i in range(size)) ** 2)
        return min(max(falls), float(x[-1]), *(fall for fall in falls if fall > 0))


def estimate_noise(logs: np.ndarray) -> float:
    """Standard deviation of one epoch, from how far each is outside the two around it (one or two epochs away).

    A trend has none of this, however steep or curved; a spread about a line or second differences take it for noise.
    The middle one of three normal values is 1/sqrt(pi) standard deviations outside on average, with 0 where it is
    between the others. The largest counts like the second: one spike is not noise.
    """
    n, outside = len(logs), []
    for i in range(1, n - 1):
        pairs = [(logs[j], logs[k]) for j in range(max(0, i - 2), i) for k in range(i + 1, min(n, i + 3))]
        outside.append(np.mean([max(0.0, min(pair) - logs[i], logs[i] - max(pair)) for pair in pairs]))
    outside = sorted(outside)[:-1] + sorted(outside)[-2:-1]
    wider = 1 + 2 / len(outside) if len(outside) >= 3 else 0.0  # for few, as Student's t; one or two are no estimate
    return wider * math.sqrt(math.pi) * float(np.mean(outside or [0.0]))


def diagnose_run(info: dict[str, Any], epochs: list[Row]) -> Diagnosis:
    """`diagnose`, for what a run's ``run.json`` holds."""
    from bestepoch.components.models import inference

    config, classes = info["config"], info["data"]["classes"]
    floor = inference.smoothed_ce_floor(config["loss"]["label_smoothing"], classes)
    return diagnose(epochs, lr=config["optimizer"]["lr"], classes=classes, floor=floor)


def diagnose(epochs: list[Row], *, lr: float | None = None, classes: int = 10, floor: float = 0.0) -> Diagnosis:
    """Why a training ended as it did, from its epoch table alone; the rows may come in any order.

    ``lr`` is ``optimizer.lr`` (by default the highest rate in the table), ``classes`` how many there are to guess from,
    ``floor`` what no loss can be below (label smoothing has one): shares of a loss are shares of what is above it.

    Raises:
        UsageError: the table is empty.
    """
    if not epochs:
        raise UsageError("No epoch was finished, so there is nothing to diagnose. Train at least one: train.epochs=1")
    rows = sorted(epochs, key=lambda row: row["epoch"])
    t, v, accuracy = (np.array([row[c] for row in rows]) for c in ("train/epoch_loss", "val/loss", "val/accuracy"))
    t, v = t - floor, v - floor
    number, n = [int(row["epoch"]) for row in rows], len(rows)
    lr = lr or max((row["lr"] for row in rows if 0 < row.get("lr", 0) < math.inf), default=0.01)
    numbers = {
        "epochs": n,
        "lr": lr,
        "train_loss": t[-1] + floor,
        "val_loss": v[-1] + floor,
        "val_accuracy": accuracy[-1],
    }

    def found(kind: Kind, index: int, sentence: str, suggestion: str, override: str, **more: float) -> Diagnosis:
        evidence = {name: float(value) for name, value in (numbers | more).items() if math.isfinite(value)}
        return Diagnosis(kind, number[index], sentence, suggestion, override, evidence)

    def since(i: int) -> str:
        (v0, v1), (t0, t1) = v[[i, -1]] + floor, t[[i, -1]] + floor
        losses = f"validation loss went from {v0:.4g} to {v1:.4g}, training loss from {t0:.4g} to {t1:.4g}"
        return f"from epoch {number[i]} to {number[-1]} {losses}"

    third = "Lower the learning rate to a third.", f"optimizer.lr={lr / 3:.3g}"
    tenth = "Lower the learning rate to a tenth.", f"optimizer.lr={lr / 10:.3g}"
    longer = "Train for more epochs.", f"train.epochs={max(2 * n, 5)}"  # five show noise beside a trend, fewer do not
    if len(broken := np.flatnonzero(~(np.isfinite(t) & np.isfinite(v)))):
        i = int(broken[0])
        sentence = f"In epoch {number[i]} training loss is {t[i] + floor:.4g} and validation loss {v[i] + floor:.4g}."
        return found("diverged", i, sentence, *tenth)
    if n == 1:
        losses = f"{t[0] + floor:.4g} and {v[0] + floor:.4g} (validation)"
        return found("underfit", 0, f"One epoch is no trend: losses {losses}.", *longer)

    train, val, k = Curve(t), Curve(v), int(v.argmin())
    limit, flat, drift = val.tolerance, val.flat_since(), train.level[-1] - train.level[k]
    gap, gap_now = v[[k, -1]] - t[[k, -1]]
    numbers |= {"noise": val.noise, "counts_from": limit, "best_epoch": number[k], "gap_at_best": gap, "gap": gap_now}
    least = max(limit, (val.level[k:].max() - val.level[k]) / 2)  # and not half way down again
    rising = n - 1 - k >= max(2, n // 20) and val.level[-1] - val.level[k] > least
    sentence = f"Validation loss rose beyond noise ({limit:.1%}): {since(k)}, the gap from {gap:.4g} to {gap_now:.4g}"
    better = f"; only the loss is overfit, for accuracy still rose from {accuracy[k]:.4g} to {accuracy[-1]:.4g}"
    sentence += better if accuracy[-1] > accuracy[k] else ""
    harder = "Drop units and shift the images, so that the training set is harder to learn by heart."
    overfit = found("overfit", k, f"{sentence}.", harder, "model.dropout=0.3 augment=shift")
    i = 1 + int(np.append(-1, np.flatnonzero(~(accuracy < 1 / classes + GUESSING * (1 - 1 / classes))))[-1])
    # it learns where training loss falls while accuracy rises, however slowly, or has learned labels that mean nothing
    learns = (train.flat_since() is None and accuracy[-1] > accuracy[0]) or t[-1] < (1 - SWING) * v[k]
    if i < n and not learns:
        sentence = f"Accuracy is {accuracy[-1]:.4g}, no better than guessing one of {classes} classes: {since(0)}."
        return found("diverged", i, sentence, *tenth)
    if rising and drift < -train.tolerance:
        return overfit
    for name, curve in (("Validation", val), ("Training", train)):
        if rises := curve.rises(float(np.median(v[-RECENT:]))):
            i, where = rises[0][0], f"between epochs {number[rises[0][0]]} and {number[rises[-1][1]]}"
            x = curve.values + floor
            each = " and ".join(f"from {x[low]:.4g} to {x[high]:.4g}" for low, high in rises[-2:])
            sentence = f"{name} loss went up and down {where}: last it rose {each}."
            return found("oscillating", i, sentence, *third, rises=len(rises))
    # one bad epoch is enough if it is bad enough; a training loss near zero is measured by the other one
    large = [c.values[-1] - c.values[k] > max(SWING, SIGMAS * c.noise) * max(c.values[k], v[k]) for c in (val, train)]
    if all(large) or (rising and drift > train.tolerance and t[-1] - t[k] > LEAST * v[k]):
        return found("diverged", k + 1, f"Both losses have risen: {since(k)}.", *tenth)
    if flat is not None and val.noise > SWING / 2 < np.ptp(v[-3:]) / v[-1]:
        sentence = f"Validation loss jumps by {val.noise:.0%} in each epoch (standard deviation): {since(flat)}."
        return found("oscillating", flat, sentence, *third)
    if flat is not None:
        sentence = f"Validation loss has changed by no more than its noise ({limit:.1%}): {since(flat)}."
        so_many = "1 epoch is" if number[flat] == 1 else f"{number[flat]} epochs are"
        enough = f"{so_many} enough.", f"train.epochs={number[flat]}"
        return found("converged", flat, sentence, *enough, change=v[-1] - v[flat])
    if rising:
        return overfit
    i, fall = max(0, n - 1 - max(3, n // 5)), val.next_fall()
    what = " and ".join(name for name, x in (("training", t), ("validation", v)) if x[-1] < x[i]) or "neither"
    sentence = f"Still falling ({what} loss): {since(i)}. One more epoch may lower validation loss by {fall:.2g}."
    return found("underfit", -1, sentence, *longer, expected_fall=fall)
