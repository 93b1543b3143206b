"""Diagnose a training run from its epoch table and suggest one override to try next.

Changes are relative (differences of log loss) and count when they exceed the noise estimated from the same curve. The
gap between training and validation loss decides nothing: label smoothing, L1, dropout and augmentation shift it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bestepoch.base.errors import UsageError
from bestepoch.runs.tables import Row

Kind = Literal["underfit", "overfit", "converged", "oscillating", "diverged"]

# Standard deviations of noise that a change must exceed. Noise alone puts the best of many epochs two to three below
# the last, and the estimate is only accurate to a third. At 6, 1 of 100 tables of 20 noisy epochs shows a false trend.
SIGMAS = 6.0
# Smallest relative change that counts. A smooth curve shows no noise, but another seed moves the final loss by 2 %
# (standard deviation over three seeds on MNIST, for mlp and for cnn); half of that is negligible.
LEAST = 0.01
# Relative change that always counts. Successful trainings at a constant learning rate rose by 5 to 15 % occasionally;
# SGD at a learning rate too high to make progress rose by 24 to 115 % repeatedly.
SWING = 0.2
# Final epochs used for noise and swings: enough for two swings and for a noise estimate accurate to a third.
RECENT = 10
# Accuracy up to this fraction of the way from chance to 1 counts as chance: 0.19 for ten classes. Networks that learn
# pass 0.4 within two epochs, and guessing on 450 images stays below 0.15.
GUESSING = 0.1


@dataclass(frozen=True)
class Diagnosis:
    """Diagnosis of a run, the numbers that support it, and one override to try.

    ``epoch`` is the best epoch (overfit), the first epoch as good as the last (converged), the low before the first
    swing (oscillating), the first bad epoch (diverged) or the last epoch (underfit).
    """

    kind: Kind
    epoch: int
    sentence: str
    suggestion: str
    override: str
    evidence: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return the diagnosis without its evidence, for ``run.json``."""
        return {key: getattr(self, key) for key in ("kind", "epoch", "sentence", "suggestion", "override")}


class Curve:
    """One loss curve of shape ``(N,)``, oldest epoch first, with its noise and its level (running median of the logs).

    ``noise`` and ``tolerance`` (the smallest change that counts) are relative to the loss.
    """

    def __init__(self, values: np.ndarray) -> None:
        n = len(values)
        self.logs = logs = np.log(np.maximum(values, max(1e-9 * values.max(), 1e-300)))  # a loss of 0 has no logarithm
        # A median preserves slopes and steps and drops single spikes; a short table is too short to smooth.
        width = max(3, n // 20 | 1) if n >= RECENT else 1
        # Windows are narrower at the start, where losses are steep, but at the end span at least three epochs.
        halves = [min(i, width // 2) for i in range(n)]
        windows = (logs[min(i - half, n - min(width, 3)) : i + half + 1] for i, half in enumerate(halves))
        self.values, self.level = values, np.array([np.median(window) for window in windows])
        self.noise = estimate_noise(logs[-max(RECENT, 3 * n // 4) :])
        self.tolerance = min(max(SIGMAS * self.noise / math.sqrt(width), LEAST), SWING)

    def flat_since(self) -> int | None:
        """Return the first index that is as low as the end and after which the level stays the same.

        Return None if the level has not been flat long enough.
        """
        n, end = len(self.level), max(3, len(self.level) // 10)  # a slow fall also looks flat over few epochs
        last = np.median(self.level[-end:])
        first = 1 + int(np.append(-1, np.flatnonzero(np.abs(self.level - last) > self.tolerance))[-1])
        if n - first < min(end, max(2, n - 1)):
            return None
        # A slow fall may continue within the tolerance, so require a value as low as the end (95 %).
        low = np.flatnonzero(self.logs[first : n - 1] - last <= max(2 * self.noise, LEAST))
        return first + int(np.append(low, 0)[0])

    def rises(self, scale: float) -> list[tuple[int, int]]:
        """Return the large rises among the last ``RECENT`` epochs as index pairs ``(low, high)``.

        The list is empty if there are fewer than two, or if a learning rate schedule has ended the oscillation. A rise
        is large relative to the median loss or to ``scale``, whichever is greater: a training loss near zero may
        fluctuate.
        """
        first = max(0, len(self.values) - RECENT)
        x, rises, low, top = self.values[first:], list[tuple[int, int]](), 0, -1  # top is -1 while not rising
        large = SWING * max(float(np.median(x)), scale)
        for i, value in enumerate(x):
            if top < 0 and value > x[low] + large:
                rises, top = [*rises, (low, i)], i
            elif top >= 0 and value > x[top]:
                rises[-1], top = (low, i), i
            elif value < (x[low] if top < 0 else x[top] - large):
                low, top = i, -1
        # A decayed learning rate takes the loss down to the lows or below.
        settled = len(rises) < 2 or x[-3:].mean() < min(x[low] for low, _ in rises) + large / 4
        return [] if settled else [(first + low, first + high) for low, high in rises]

    def next_fall(self) -> float:
        """Extrapolate by how much one more epoch lowers the loss, assuming that falls shrink by a constant factor <= 1.

        Return the smallest positive estimate from blocks of 1, 2, ... epochs, up to the size at which noise averages
        out. The result is exact for a geometric series.
        """
        x, n, falls = self.values, len(self.values), [0.0]
        if n < 3:  # a single fall determines no factor
            return float((x[0] - x[-1]) * x[-1] / x[0]) / 2 if x[0] > x[-1] else 0.0
        for size in range(1, min(max(math.ceil((self.noise / LEAST) ** 2), 1), n // 3) + 1):
            first, middle, last = (float(np.median(x[n - i * size : n - (i - 1) * size])) for i in (3, 2, 1))
            fall = max(middle - last, 0.0)
            factor = min(fall / (first - middle), 1.0) ** (1 / size) if first > middle else 1.0
            falls.append(fall * size * factor ** (2 * size - 1) / sum(factor**i for i in range(size)) ** 2)
        return min(max(falls), float(x[-1]), *(fall for fall in falls if fall > 0))


def estimate_noise(logs: np.ndarray) -> float:
    """Return the standard deviation of a single epoch's log loss.

    The estimate is the mean distance of each epoch from the interval between two neighbours, one or two epochs before
    and after. A trend contributes nothing, however steep or curved, whereas residuals of a line or second differences
    would include it. For three normal values, the one in the middle is on average 1/sqrt(pi) standard deviations
    outside the other two (0 if between them). The largest distance is replaced by the second largest, so that a single
    spike is not noise.
    """
    n, outside = len(logs), []
    for i in range(1, n - 1):
        pairs = [(logs[j], logs[k]) for j in range(max(0, i - 2), i) for k in range(i + 1, min(n, i + 3))]
        outside.append(np.mean([max(0.0, min(pair) - logs[i], logs[i] - max(pair)) for pair in pairs]))
    outside = sorted(outside)[:-1] + sorted(outside)[-2:-1]
    # Few epochs widen the estimate, like Student's t; one or two are not enough for any.
    widening = 1 + 2 / len(outside) if len(outside) >= 3 else 0.0
    return widening * math.sqrt(math.pi) * float(np.mean(outside or [0.0]))


def diagnose_run(info: dict[str, Any], epochs: list[Row]) -> Diagnosis:
    """Call `diagnose` with the settings in a run's ``run.json``."""
    return diagnose(epochs, lr=info["config"]["optimizer"]["lr"], classes=info["data"]["classes"])


def diagnose(epochs: list[Row], *, lr: float | None = None, classes: int = 10, floor: float = 0.0) -> Diagnosis:
    """Diagnose a training run from its epoch table.

    Args:
        epochs: rows of the epoch table, in any order.
        lr: ``optimizer.lr``; the highest learning rate in the table by default.
        classes: number of classes.
        floor: lower bound of the loss, nonzero with label smoothing. Relative changes refer to the loss above it.

    Raises:
        UsageError: the table is empty.
    """
    if not epochs:
        raise UsageError("No epoch was finished, so there is nothing to diagnose. Train at least one: train.epochs=1")
    rows = sorted(epochs, key=lambda row: row["epoch"])
    train_column = "train/eval_loss" if "train/eval_loss" in rows[0] else "train/epoch_loss"
    t, v, accuracy = (np.array([row[c] for row in rows]) for c in (train_column, "val/loss", "val/accuracy"))
    t, v = t - floor, v - floor
    epoch_at, n = [int(row["epoch"]) for row in rows], len(rows)
    lr = lr or max((row["lr"] for row in rows if 0 < row.get("lr", 0) < math.inf), default=0.01)
    values = {
        "epochs": n,
        "lr": lr,
        "train_loss": t[-1] + floor,
        "val_loss": v[-1] + floor,
        "val_accuracy": accuracy[-1],
    }

    def result(kind: Kind, index: int, sentence: str, suggestion: str, override: str, **extra: float) -> Diagnosis:
        evidence = {name: float(value) for name, value in (values | extra).items() if math.isfinite(value)}
        return Diagnosis(kind, epoch_at[index], sentence, suggestion, override, evidence)

    def since(i: int) -> str:
        (v0, v1), (t0, t1) = v[[i, -1]] + floor, t[[i, -1]] + floor
        losses = f"validation loss went from {v0:.4g} to {v1:.4g}, training loss from {t0:.4g} to {t1:.4g}"
        return f"from epoch {epoch_at[i]} to {epoch_at[-1]} {losses}"

    third = "Lower the learning rate to a third.", f"optimizer.lr={lr / 3:.3g}"
    tenth = "Lower the learning rate to a tenth.", f"optimizer.lr={lr / 10:.3g}"
    longer = "Train for more epochs.", f"train.epochs={max(2 * n, 5)}"  # 5 are enough to tell noise from a trend
    if len(broken := np.flatnonzero(~(np.isfinite(t) & np.isfinite(v)))):
        i = int(broken[0])
        sentence = f"In epoch {epoch_at[i]} training loss is {t[i] + floor:.4g} and validation loss {v[i] + floor:.4g}."
        return result("diverged", i, sentence, *tenth)
    if n == 1:
        losses = f"{t[0] + floor:.4g} and {v[0] + floor:.4g} (validation)"
        return result("underfit", 0, f"One epoch is no trend: losses {losses}.", *longer)

    train, val, k = Curve(t), Curve(v), int(v.argmin())
    limit, flat, drift = val.tolerance, val.flat_since(), train.level[-1] - train.level[k]
    gap, gap_now = v[[k, -1]] - t[[k, -1]]
    values |= {"noise": val.noise, "counts_from": limit, "best_epoch": epoch_at[k], "gap_at_best": gap, "gap": gap_now}
    min_rise = max(limit, (val.level[k:].max() - val.level[k]) / 2)  # a loss half way down again is not rising
    rising = n - 1 - k >= max(2, n // 20) and val.level[-1] - val.level[k] > min_rise
    sentence = f"Validation loss rose beyond noise ({limit:.1%}): {since(k)}, the gap from {gap:.4g} to {gap_now:.4g}"
    if accuracy[-1] > accuracy[k]:
        sentence += f"; only the loss is overfit, for accuracy still rose from {accuracy[k]:.4g} to {accuracy[-1]:.4g}"
    harder = "Drop units and shift the images, so that the training set is harder to learn by heart."
    overfit = result("overfit", k, f"{sentence}.", harder, "model.dropout=0.3 augment=shift")
    i = 1 + int(np.append(-1, np.flatnonzero(~(accuracy < 1 / classes + GUESSING * (1 - 1 / classes))))[-1])
    # The network learns if training loss falls and accuracy rises, however slowly, or if it memorises random labels.
    learns = (train.flat_since() is None and accuracy[-1] > accuracy[0]) or t[-1] < (1 - SWING) * v[k]
    if i < n and not learns:
        sentence = f"Accuracy is {accuracy[-1]:.4g}, no better than guessing one of {classes} classes: {since(0)}."
        return result("diverged", i, sentence, *tenth)
    if rising and drift < -train.tolerance:
        return overfit
    for name, curve in (("Validation", val), ("Training", train)):
        if rises := curve.rises(float(np.median(v[-RECENT:]))):
            i, interval = rises[0][0], f"between epochs {epoch_at[rises[0][0]]} and {epoch_at[rises[-1][1]]}"
            x = curve.values + floor
            last_rises = " and ".join(f"from {x[low]:.4g} to {x[high]:.4g}" for low, high in rises[-2:])
            sentence = f"{name} loss went up and down {interval}: last it rose {last_rises}."
            return result("oscillating", i, sentence, *third, rises=len(rises))
    # A single epoch suffices if its rise is large enough; a training loss near zero is compared to validation loss.
    large = [c.values[-1] - c.values[k] > max(SWING, SIGMAS * c.noise) * max(c.values[k], v[k]) for c in (val, train)]
    if all(large) or (rising and drift > train.tolerance and t[-1] - t[k] > LEAST * v[k]):
        return result("diverged", k + 1, f"Both losses have risen: {since(k)}.", *tenth)
    if flat is not None and val.noise > SWING / 2 < np.ptp(v[-3:]) / v[-1]:
        sentence = f"Validation loss jumps by {val.noise:.0%} in each epoch (standard deviation): {since(flat)}."
        return result("oscillating", flat, sentence, *third)
    if flat is not None:
        sentence = f"Validation loss has changed by no more than its noise ({limit:.1%}): {since(flat)}."
        count = "1 epoch is" if epoch_at[flat] == 1 else f"{epoch_at[flat]} epochs are"
        shorter = f"{count} enough.", f"train.epochs={epoch_at[flat]}"
        return result("converged", flat, sentence, *shorter, change=v[-1] - v[flat])
    if rising:
        return overfit
    i, fall = max(0, n - 1 - max(3, n // 5)), val.next_fall()
    falling = " and ".join(name for name, x in (("training", t), ("validation", v)) if x[-1] < x[i]) or "neither"
    sentence = f"Still falling ({falling} loss): {since(i)}. One more epoch may lower validation loss by {fall:.2g}."
    return result("underfit", -1, sentence, *longer, expected_fall=fall)
