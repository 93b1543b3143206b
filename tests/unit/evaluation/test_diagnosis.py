"""What the curves show: constructed ones of every kind, noisy ones, and trainings made to show each."""

from __future__ import annotations

import copy
import math
import random
import re

import numpy as np
import pytest

import live
from bestepoch.base.config import compose
from bestepoch.base.errors import UsageError
from bestepoch.evaluation.diagnosis import Curve, Diagnosis, diagnose, estimate_noise
from bestepoch.runs.tables import Row

NAN, INF = math.nan, math.inf
Losses = list[float]


def table(train: Losses, val: Losses, accuracies: Losses | None = None, lr: float = 0.1) -> list[Row]:
    """An epoch table with these values, beginning with epoch 1; accuracy grows where none is given."""
    accuracies = accuracies or [0.9 - 0.4 / i for i in range(1, len(val) + 1)]
    columns = zip(train, val, accuracies, strict=True)
    return [
        {
            "epoch": float(i),
            "iteration": 10.0 * i,
            "train/epoch_loss": t,
            "val/loss": v,
            "val/accuracy": a,
            "lr": lr,
            "seconds": 5.0,
            "time": 1000.0 + i,
        }
        for i, (t, v, a) in enumerate(columns, 1)
    ]


def fall(n: int, start: float, end: float, factor: float) -> Losses:
    """What is left to fall shrinks by ``factor`` from each epoch to the next."""
    return [end + (start - end) * factor**i for i in range(n)]


def line(n: int, start: float, end: float) -> Losses:
    return [start + (end - start) * i / max(n - 1, 1) for i in range(n)]


def turn(n: int, at: int, start: float = 1.0, low: float = 0.3, end: float = 0.45) -> Losses:
    """A fall that is fast at first to its lowest value in epoch ``at``, then a straight rise."""
    down = [low + (start - low) * (1 - i / (at - 1)) ** 2 for i in range(at)] if at > 1 else [low]
    return down + line(n - at + 1, low, end)[1:]


def noisy(losses: Losses, share: float, seed: int) -> Losses:
    """Each value off by a normal share."""
    draw = random.Random(f"{seed} {len(losses)} {losses[0]}")
    return [x * math.exp(draw.gauss(0, share)) for x in losses]


def put(losses: Losses, epoch: int, value: float) -> Losses:
    """With another value in one epoch; -1 is the last."""
    out = list(losses)
    out[epoch - 1 if epoch > 0 else epoch] = value
    return out


def zigzag(n: int, low: float, high: float) -> Losses:
    return [high if i % 2 else low for i in range(n)]


def numbers(text: str) -> Losses:
    return [float(word) for word in text.split()]


GUESS = 2.3026  # ln 10
DOWN = fall(20, 2.0, 0.01, 0.75)  # a training loss that falls all the time

# Validation and training losses and accuracies as trainings of this project gave them (MNIST and its sample).
MLP_ONECYCLE = ([0.5541, 0.3383, 0.2809, 0.1913, 0.1203, 0.0890], [0.2284, 0.2140, 0.1554, 0.1203, 0.0778, 0.0703])
CNN_ONECYCLE = ([1.0075, 0.2667, 0.2105, 0.1347, 0.0722, 0.0474], [0.4238, 0.1670, 0.3283, 0.1034, 0.0836, 0.0793])
SMALL_RATE = ([1.8860, 1.1358, 0.8909, 0.7918], [1.1083, 0.6916, 0.5989, 0.5206])
FEW_IMAGES = (
    numbers(
        "2.2180 1.6172 1.0212 0.6131 0.3491 0.2023 0.1255 0.0640 0.0407 0.0253 0.0200 0.0134 0.0115 0.0082 0.0067 "
        "0.0055 0.0052 0.0045 0.0040 0.0037 0.0034 0.0032 0.0029 0.0027 0.0026 0.0024 0.0023"
    ),
    numbers(
        "1.9392 1.4574 1.0665 0.8475 0.8075 0.6881 0.6576 0.7221 0.6867 0.6729 0.6825 0.6966 0.7119 0.7226 0.7165 "
        "0.7152 0.7188 0.7247 0.7317 0.7344 0.7376 0.7400 0.7422 0.7443 0.7475 0.7495 0.7518"
    ),
)
COSINE = (
    numbers(
        "0.6270 0.2894 0.1979 0.1920 0.1771 0.1146 0.0666 0.0536 0.0337 0.0279 0.0524 0.0196 0.0112 0.0028 0.0009 "
        "0.0008 0.0008 0.0008 0.0008 0.0008 0.0008 0.0008 0.0008 0.0008 0.0008 0.0008 0.0008 0.0008 0.0008 0.0008"
    ),
    numbers(
        "0.4727 0.3135 0.3881 0.5069 0.2883 0.3856 0.4002 0.3700 0.3578 0.5093 0.3847 0.3357 0.3184 0.2978 0.2888 "
        "0.2833 0.2782 0.2750 0.2715 0.2692 0.2671 0.2658 0.2645 0.2638 0.2632 0.2628 0.2625 0.2624 0.2624 0.2624"
    ),
)
SGD_TOO_FAST = (
    numbers(
        "1.0516 0.6509 0.5834 0.5182 0.5151 0.5517 0.5342 0.5406 0.5051 0.5178 0.5239 0.4719 0.4931 0.5911 0.5014 "
        "0.5101 0.4709 0.4984 0.5011 0.4525"
    ),
    numbers(
        "0.4909 0.6635 0.5242 0.5798 0.5173 0.5358 0.4716 0.4845 0.3679 0.5389 0.7382 0.4474 0.9604 0.4554 0.5885 "
        "0.4957 0.5781 0.5288 0.5685 0.4187"
    ),
)
ADAM_AT_01 = (
    [11.8798, 3.6766, 4.1370, 4.0866, 7.3452, 3.0700, 3.1742, 4.1086, 2.3901, 5.4029],
    [3.1268, 2.3308, 2.3243, 2.3072, 2.3110, 2.3190, 2.3135, 2.3144, 2.2825, 2.3059],
    [0.1267, 0.1022, *[0.1] * 6, 0.1133, 0.1],
)
MLP_AT_1 = (
    [5292.6, 102.22, 2.9633, 2.4259, 2.3952, 2.4373],
    [12.177, 2.4919, 2.4170, 2.4243, 2.4015, 2.4563],
    [0.1] * 6,
)
CNN_AT_1 = (
    [3.2229, 2.3131, 2.3987, 2.3825, 2.3401, 2.3107],
    [3.4180, 2.5124, 2.3684, 2.3565, 2.3105, 2.3049],
    [0.4533, 0.1, 0.1, 0.1, 0.1, 0.1],
)

# name: table, kind, epoch (None where the kind says it all), by how much the epoch may be off
# A real training (the sample, mlp, onecycle) whose last epochs, at a falling rate, are quieter than those before.
SETTLING = (
    numbers(
        "1.6127 .8793 .668 .557 .6157 .5615 .5434 .5149 .4387 .4009 "
        ".3908 .3417 .2965 .2716 .2409 .2062 .1736 .1897 .166 .1609"
    ),
    numbers(
        ".7742 .5649 .5053 .4589 .6285 .464 .5087 .41 .4065 .388 "
        ".3365 .3094 .3326 .3766 .3021 .3083 .3076 .2827 .2866 .2861"
    ),
)
CURVES: dict[str, tuple[list[Row], str, int | None, int]] = {
    # ------------------------------------------------ underfit
    "one epoch": (table([1.0], [0.5]), "underfit", 1, 0),
    "one epoch, still guessing": (table([2.5], [2.3], [0.1]), "underfit", 1, 0),
    "two epochs": (table([1.0, 0.6], [0.7, 0.5]), "underfit", 2, 0),
    "two epochs, the second worse": (table([1.0, 0.25], [0.26, 0.33]), "underfit", 2, 0),
    "three epochs": (table([1.0, 0.6, 0.4], [0.7, 0.5, 0.4]), "underfit", 3, 0),
    "three epochs that settle nothing": (table([1.0, 0.7, 0.5], [0.5, 0.3, 0.4]), "underfit", 3, 0),
    "four epochs at a small rate": (table(*SMALL_RATE), "underfit", 4, 0),
    "five epochs": (table([1.2, 0.9, 0.7, 0.6, 0.5], [1.0, 0.7, 0.5, 0.4, 0.33]), "underfit", 5, 0),
    "ten smooth epochs": (table(fall(10, 2.0, 0, 0.85), fall(10, 1.8, 0.1, 0.85)), "underfit", 10, 0),
    "a straight line down": (table(line(20, 2.0, 0.5), line(20, 1.8, 0.6)), "underfit", 20, 0),
    "50 slow epochs": (table(fall(50, 2.0, 0, 0.97), fall(50, 2.0, 0.2, 0.97)), "underfit", 50, 0),
    "200 slow epochs": (table(fall(200, 2.0, 0, 0.99), fall(200, 2.0, 0, 0.992)), "underfit", 200, 0),
    "50 slow epochs with noise": (
        table(noisy(fall(50, 2.0, 0, 0.96), 0.02, 1), noisy(fall(50, 2.0, 0, 0.96), 0.03, 1)),
        *("underfit", 50, 0),
    ),
    "200 slow epochs with noise": (
        table(noisy(fall(200, 2.0, 0, 0.985), 0.02, 2), noisy(fall(200, 2.0, 0, 0.985), 0.04, 2)),
        *("underfit", 200, 0),
    ),
    "one cycle, falling to its end": (table(*MLP_ONECYCLE), "underfit", 6, 0),
    "one cycle with a spike at its peak": (table(*CNN_ONECYCLE), "underfit", 6, 0),
    "one cycle of 12 epochs": (
        table(
            [1.2, 0.9, 0.8, 0.78, 0.75, 0.7, 0.64, 0.56, 0.46, 0.35, 0.26, 0.2],
            [0.7, 0.6, 0.62, 0.65, 0.6, 0.55, 0.5, 0.44, 0.36, 0.29, 0.24, 0.21],
        ),
        *("underfit", 12, 0),
    ),
    "a step just before the end": (
        table([*fall(17, 2, 0.8, 0.6), 0.6, 0.5, 0.42], [*fall(17, 2, 0.9, 0.6), 0.7, 0.6, 0.52]),
        *("underfit", 20, 0),
    ),
    "an early spike, then on": (table(DOWN, put(fall(20, 2, 0.05, 0.85), 4, 3.0)), "underfit", 20, 0),
    "up for a while, and now below": (
        table(DOWN, [*turn(12, 6, 1.0, 0.4, 0.6), *line(9, 0.6, 0.3)[1:]]),
        *("underfit", 20, 0),
    ),
    "up for a while, and now nearly back": (
        table(DOWN, [*turn(12, 6, 1.0, 0.4, 0.6), *line(9, 0.6, 0.42)[1:]]),
        *("underfit", 20, 0),
    ),
    "label smoothing: training above validation": (
        table([x + 0.5 for x in fall(10, 1.5, 0, 0.85)], fall(10, 1.2, 0.05, 0.85)),
        *("underfit", 10, 0),
    ),
    "training loss is at its floor": (table([0.7] * 10, fall(10, 1.0, 0.1, 0.85)), "underfit", 10, 0),
    "slow from the start, still guessing": (
        table(line(6, 2.31, 2.1), line(6, 2.3, 2.0), line(6, 0.1, 0.17)),
        *("underfit", 6, 0),
    ),
    # ------------------------------------------------ overfit
    "three epochs, rising": (table([0.6, 0.4, 0.2], [0.3, 0.35, 0.42]), "overfit", 1, 0),
    "five epochs, rising after the second": (
        table([1.0, 0.6, 0.3, 0.15, 0.08], [0.7, 0.4, 0.44, 0.5, 0.55]),
        *("overfit", 2, 0),
    ),
    "from the first epoch": (table(fall(10, 0.5, 0, 0.6), line(10, 0.3, 0.6)), "overfit", 1, 0),
    "ten epochs": (table(DOWN[:10], turn(10, 5)), "overfit", 5, 0),
    "20 epochs": (table(DOWN, turn(20, 8)), "overfit", 8, 0),
    "50 epochs": (table(fall(50, 2, 0.01, 0.9), turn(50, 12, end=0.6)), "overfit", 12, 0),
    "200 epochs": (table(fall(200, 2, 0.01, 0.97), turn(200, 60, end=0.6)), "overfit", 60, 0),
    "late in 50": (table(fall(50, 2, 0.01, 0.95), turn(50, 42, end=0.36)), "overfit", 42, 0),
    "late in 200": (table(fall(200, 2, 0.01, 0.98), turn(200, 170, end=0.36)), "overfit", 170, 0),
    "slowly": (table(fall(50, 2, 0.001, 0.9), turn(50, 20, end=0.32)), "overfit", 20, 0),
    "few training images": (table(*FEW_IMAGES), "overfit", 7, 0),
    "risen, then level": (table(fall(30, 2, 0, 0.8), [*turn(15, 8), *[0.45] * 15]), "overfit", 8, 0),
    "the second of two dips": (
        table(fall(24, 2, 0, 0.8), [*turn(9, 5, 1, 0.5, 0.7), *line(7, 0.7, 0.3)[1:], *line(10, 0.3, 0.5)[1:]]),
        *("overfit", 15, 0),
    ),
    "label smoothing, overfit": (
        table([x + 0.5 for x in fall(20, 1.0, 0, 0.8)], turn(20, 8, 0.6, 0.1, 0.15)),
        *("overfit", 8, 0),
    ),
    "accuracy grows on": (table(DOWN, turn(20, 8), line(20, 0.7, 0.95)), "overfit", 8, 0),
    "accuracy falls": (table(DOWN, turn(20, 8), line(20, 0.95, 0.8)), "overfit", 8, 0),
    "labels at random": (table(DOWN, turn(20, 3, 2.35, GUESS, 6.0), [0.1] * 20), "overfit", 3, 0),
    "with noise": (table(noisy(DOWN, 0.03, 3), noisy(turn(20, 8, end=0.6), 0.03, 3)), "overfit", 8, 2),
    # ------------------------------------------------ converged
    "constant, two epochs": (table([0.5, 0.5], [0.5, 0.5]), "converged", 1, 0),
    "constant, three epochs": (table([0.5] * 3, [0.5] * 3), "converged", 1, 0),
    "constant, 200 epochs": (table([0.5] * 200, [0.5] * 200), "converged", 1, 0),
    "a loss of 0": (table([0.0] * 5, [0.0] * 5), "converged", 1, 0),
    # within 1 % of the end: 0.7 * 0.8^i < 0.003 after 25 epochs
    "smooth, to a floor": (table(fall(50, 1.2, 0.2, 0.8), fall(50, 1.0, 0.3, 0.8)), "converged", 25, 2),
    "six epochs": (table([1.2, 0.6, 0.4, 0.3, 0.29, 0.29], [1, 0.5, 0.31, 0.3, 0.299, 0.299]), "converged", 4, 0),
    "a noisy fall that settles": (table(*SETTLING), "converged", 12, 0),
    "only training loss falls on": (table(DOWN, fall(20, 1.0, 0.3, 0.5)), "converged", 9, 1),
    "with a small wobble": (
        table(DOWN, [x * (1 + 0.004 * (-1) ** i) for i, x in enumerate(fall(20, 1.0, 0.3, 0.5))]),
        *("converged", 9, 2),
    ),
    "20 epochs about a floor": (
        table(noisy(fall(20, 1, 0.2, 0.5), 0.02, 4), noisy(fall(20, 1, 0.3, 0.4), 0.03, 4)),
        *("converged", 5, 3),
    ),
    "50 epochs about a floor": (
        table(noisy(fall(50, 1, 0.2, 0.6), 0.02, 5), noisy(fall(50, 1, 0.3, 0.5), 0.04, 5)),
        *("converged", 6, 2),
    ),
    "200 epochs about a floor": (
        table(noisy(fall(200, 1, 0.2, 0.9), 0.02, 6), noisy([*line(30, 1.0, 0.3), *[0.3] * 170], 0.04, 6)),
        *("converged", 29, 3),
    ),
    "a step and a second floor": (
        table([*fall(20, 2, 0.8, 0.5), *fall(20, 0.6, 0.4, 0.4)], [*fall(20, 2, 0.9, 0.5), *fall(20, 0.7, 0.5, 0.4)]),
        *("converged", 25, 2),
    ),
    "a step ten epochs before the end of 100": (
        table([*[0.8] * 90, *[0.4] * 10], [*[0.9] * 90, *[0.5] * 10]),
        *("converged", 91, 0),
    ),
    "cosine to zero": (table(*COSINE), "converged", 22, 1),
    "an early spike, then flat": (table(DOWN, put(fall(20, 1.0, 0.3, 0.5), 3, 2.5)), "converged", 9, 1),
    "a late spike, then flat": (table(DOWN, put(fall(20, 1.0, 0.3, 0.5), 15, 0.9)), "converged", 9, 1),
    "a spike at the very end": (table(DOWN, put(fall(20, 1.0, 0.3, 0.5), -1, 0.9)), "converged", 9, 1),
    "swings that are over": (
        table(DOWN, [1.0, 0.5, 0.9, 0.5, 0.9, 0.5, 0.8, *[0.3] * 13]),
        *("converged", 8, 1),
    ),
    "swings that have just ended": (
        table(DOWN[:12], [1.0, 0.7, 0.6, 0.4, 0.6, 0.4, 0.6, 0.4, *[0.4] * 4]),
        *("converged", 8, 4),
    ),
    "label smoothing, converged": (table(fall(20, 1.5, 0.6, 0.5), fall(20, 1.0, 0.1, 0.5)), "converged", 11, 1),
    "training loss bounces near zero": (
        table([*fall(10, 1, 0.004, 0.4), *zigzag(10, 0.001, 0.006)], fall(20, 1.0, 0.3, 0.5)),
        *("converged", 9, 1),
    ),
    "stuck, with a third of the images right": (table([1.7] * 10, [1.8] * 10, [0.37] * 10), "converged", 1, 0),
    # ------------------------------------------------ oscillating
    "five epochs, up and down": (table([1.0, 0.7, 0.8, 0.6, 0.7], [1.0, 0.5, 0.9, 0.45, 0.8]), "oscillating", 2, 0),
    "ten epochs, up and down": (table([0.6] * 10, zigzag(10, 0.4, 0.7)), "oscillating", 1, 0),
    "both losses, at the end of 20": (
        table([*fall(10, 2, 0.5, 0.6), *zigzag(10, 0.5, 0.8)], [*fall(10, 2, 0.6, 0.6), *zigzag(10, 0.6, 1.0)]),
        *("oscillating", 11, 0),
    ),
    "only training loss": (table([*fall(10, 2, 0.5, 0.6), *zigzag(10, 0.4, 0.8)], [0.5] * 20), "oscillating", 11, 0),
    "in waves, to the end of 50": (
        table([0.7] * 50, [0.6 + 0.2 * math.sin(math.pi / 2 * i) for i in range(50)]),
        *("oscillating", None, 0),
    ),
    "SGD at a high rate": (table(*SGD_TOO_FAST), "oscillating", 12, 0),
    "at random, by a quarter": (
        table(noisy([0.7] * 30, 0.1, 7), noisy([0.6] * 30, 0.25, 7)),
        *("oscillating", None, 0),
    ),
    # ------------------------------------------------ diverged
    "NaN in the first epoch": (table([NAN, 0.5, 0.4], [0.5, 0.4, 0.3]), "diverged", 1, 0),
    "NaN in the only epoch": (table([NAN], [NAN], [NAN]), "diverged", 1, 0),
    "NaN in the last epoch": (table([0.6, 0.5, 0.4, NAN], [0.6, 0.5, 0.4, NAN]), "diverged", 4, 0),
    "NaN in the middle": (table([0.6, 0.5, 0.4, 0.3], [0.6, NAN, 0.4, 0.3]), "diverged", 2, 0),
    "infinite, and NaN from then on": (
        table([0.6, 0.5, 0.6, NAN, NAN], [0.6, 0.5, INF, NAN, NAN]),
        *("diverged", 3, 0),
    ),
    "nothing but NaN": (table([NAN] * 20, [NAN] * 20, [NAN] * 20), "diverged", 1, 0),
    "exploded at the end": (table(put(DOWN, -1, 40.0), put(fall(20, 2, 0.3, 0.8), -1, 50.0)), "diverged", 20, 0),
    "exploded at the end of six": (
        table([1.0, 0.6, 0.4, 0.3, 0.25, 9.0], [0.9, 0.5, 0.4, 0.3, 0.25, 8.0]),
        *("diverged", 6, 0),
    ),
    "two epochs, ten times as much": (table([0.5, 5.0], [0.6, 6.0]), "diverged", 2, 0),
    "exploded on the way": (
        table([*fall(8, 2, 0.2, 0.6), *[2.2] * 8], [*fall(8, 2, 0.3, 0.6), *[2.4] * 8], [0.9] * 16),
        *("diverged", 9, 0),
    ),
    "both losses climb": (table(turn(20, 6, 1.0, 0.4, 0.7), turn(20, 6, 1.1, 0.5, 0.8)), "diverged", 7, 0),
    "never learned": (table([GUESS + 0.01] * 6, [GUESS] * 6, [0.1] * 6), "diverged", 1, 0),
    "never learned, 50 noisy epochs": (
        table(noisy([2.35] * 50, 0.01, 8), noisy([2.32] * 50, 0.01, 8), noisy([0.1] * 50, 0.1, 8)),
        *("diverged", 1, 0),
    ),
    "learned, then forgot": (
        table([*fall(6, 2, 0.3, 0.6), *[GUESS] * 6], [*fall(6, 2, 0.3, 0.6), *[GUESS] * 6], [0.9] * 6 + [0.1] * 6),
        *("diverged", 7, 0),
    ),
    "Adam at a rate of 0.1": (table(*ADAM_AT_01), "diverged", 1, 0),
    "an MLP at a rate of 1": (table(*MLP_AT_1), "diverged", 1, 0),
    "it comes down to guessing, and no further": (
        table([70.9, 2.78, 2.50, 2.44], [7.65, 2.395, 2.45, 2.499], [0.1] * 4),
        *("diverged", 1, 0),
    ),
    "a CNN at a rate of 1": (table(*CNN_AT_1), "diverged", 2, 0),
}


@pytest.mark.parametrize("name", CURVES)
def test_a_curve_with_a_known_answer(name: str) -> None:
    rows, kind, epoch, off = CURVES[name]
    before = copy.deepcopy(rows)
    found = diagnose(rows)
    assert found.kind == kind, found
    assert epoch is None or abs(found.epoch - epoch) <= off, found
    assert str(rows) == str(before)  # the table is as it was


def test_there_are_enough_curves_of_every_kind() -> None:
    kinds = [kind for _, kind, _, _ in CURVES.values()]
    assert len(kinds) >= 80
    assert min(kinds.count(kind) for kind in ("underfit", "overfit", "converged", "oscillating", "diverged")) >= 7


# ---------------------------------------------------------------- noise

Curves = tuple[Losses, Losses]
LEVEL = [1.0, 0.6, 0.4, *[0.3] * 47]
# name: training and validation loss without noise, kind, epoch or None
SHAPES: dict[str, tuple[Curves, str, int | None]] = {
    "five epochs, falling": ((fall(5, 2, 0, 0.7), fall(5, 1.8, 0.1, 0.7)), "underfit", 5),
    "ten epochs, falling": ((fall(10, 2, 0, 0.8), fall(10, 1.8, 0.1, 0.8)), "underfit", 10),
    "50 epochs, falling": ((fall(50, 2, 0, 0.94), fall(50, 1.8, 0, 0.94)), "underfit", 50),
    "200 epochs, falling": ((fall(200, 2, 0, 0.98), fall(200, 1.8, 0, 0.98)), "underfit", 200),
    "eight epochs, rising": ((fall(8, 2, 0, 0.6), turn(8, 4, end=0.5)), "overfit", 4),
    "20 epochs, rising": ((DOWN, turn(20, 8, end=0.6)), "overfit", 8),
    "50 epochs, rising": ((fall(50, 2, 0.01, 0.9), turn(50, 15, end=0.8)), "overfit", 15),
    "200 epochs, rising": ((fall(200, 2, 0.01, 0.97), turn(200, 60, end=0.8)), "overfit", None),
    "20 epochs at a floor": ((LEVEL[:20], LEVEL[:20]), "converged", 4),
    "20 epochs, only training loss falls": ((DOWN, LEVEL[:20]), "converged", 4),
    "50 epochs at a floor": ((LEVEL, LEVEL), "converged", 4),
    "200 epochs at a floor": (
        (fall(200, 1, 0.2, 0.9), [*line(30, 1.0, 0.3), *[0.3] * 170]),
        *("converged", 29),
    ),
    "six epochs, swinging": ((zigzag(6, 0.5, 0.8), zigzag(6, 0.5, 0.9)), "oscillating", None),
    "20 epochs, swinging at the end": (
        ([*fall(10, 2, 0.5, 0.6), *zigzag(10, 0.5, 0.8)], [*fall(10, 2, 0.6, 0.6), *zigzag(10, 0.6, 1.0)]),
        *("oscillating", 11),
    ),
    "never learned, six epochs": (([GUESS] * 6, [GUESS] * 6), "diverged", 1),
    "never learned, 50 epochs": (([GUESS] * 50, [GUESS] * 50), "diverged", 1),
    "both losses climb": ((turn(20, 6, 1, 0.4, 0.8), turn(20, 6, 1.1, 0.5, 0.9)), "diverged", None),
}


@pytest.mark.parametrize("share", [0.002, 0.01, 0.02, 0.03])
@pytest.mark.parametrize("name", SHAPES)
def test_it_is_right_for_every_seed_under_moderate_noise(name: str, share: float) -> None:
    (train, val), kind, epoch = SHAPES[name]
    accuracies = [0.1] * len(val) if name.startswith("never") else None
    right = 0
    for seed in range(20):
        # training loss, a mean over an epoch, is the quieter one
        rows = table(noisy(train, share / 2, seed), noisy(val, share, 100 + seed), accuracies)
        found = diagnose(rows)
        assert found.kind == kind, (seed, found)
        right += epoch is None or abs(found.epoch - epoch) <= 2
    assert right >= 18  # where it began is less sure than what it is


@pytest.mark.parametrize("share", [0.01, 0.05])
@pytest.mark.parametrize("n", [10, 20, 50, 200])
def test_the_noise_is_that_of_the_curve_and_no_trend_adds_to_it(n: int, share: float) -> None:
    flat = [estimate_noise(np.log(noisy([0.3] * n, share, seed))) for seed in range(40)]
    assert sum(flat) / 40 == pytest.approx(share, rel=0.2)
    # next to nothing even where a curve turns
    for shape, most in ((fall(n, 2, 0.1, 0.5), 1e-9), (fall(n, 2, 0.1, 1 - 3 / n), 1e-9), (turn(n, n // 2), 0.012)):
        assert estimate_noise(np.log(shape)) < most
        assert all(estimate_noise(np.log(noisy(shape, share, seed))) < 2.2 * share for seed in range(40))


# ---------------------------------------------------------------- what must not matter


@pytest.mark.parametrize("scale", [1e-6, 0.01, 100.0, 1e6])
@pytest.mark.parametrize("name", CURVES)
def test_the_unit_of_the_loss_does_not_matter(name: str, scale: float) -> None:
    rows = CURVES[name][0]
    scaled = [
        {**row, "train/epoch_loss": scale * row["train/epoch_loss"], "val/loss": scale * row["val/loss"]}
        for row in rows
    ]
    here, there = diagnose(rows), diagnose(scaled)
    assert (there.kind, there.epoch, there.override) == (here.kind, here.epoch, here.override)


@pytest.mark.parametrize("name", sorted(set(CURVES) - {"a loss of 0"}))  # of which nothing is left on a floor
def test_a_floor_under_both_losses_does_not_matter_where_it_is_known(name: str) -> None:
    rows, floor = CURVES[name][0], 0.5003
    raised = [{**row, **{key: floor + row[key] for key in ("train/epoch_loss", "val/loss")}} for row in rows]
    here, there = diagnose(rows), diagnose(raised, floor=floor)
    assert (there.kind, there.epoch, there.override) == (here.kind, here.epoch, here.override)
    assert set(there.evidence) == set(here.evidence)
    if "val_loss" in here.evidence:  # it is a number
        assert there.evidence["val_loss"] == pytest.approx(here.evidence["val_loss"] + floor)
    told = re.search(r"alidation loss went from (\S+) to", there.sentence)
    assert told is None or float(told[1]) > floor, "as the table has it"


@pytest.mark.parametrize("name", CURVES)
def test_the_order_of_the_rows_does_not_matter(name: str) -> None:
    rows = CURVES[name][0]
    for seed in range(3):
        assert diagnose(random.Random(seed).sample(rows, len(rows))) == diagnose(rows)


@pytest.mark.parametrize("name", CURVES)
def test_after_every_epoch_there_is_an_answer_in_plain_numbers(name: str) -> None:
    rows = CURVES[name][0]
    for n in range(1, len(rows) + 1, 1 if len(rows) < 50 else 7):
        found = diagnose(rows[:n])
        assert found.kind in ("underfit", "overfit", "converged", "oscillating", "diverged")
        assert type(found.epoch) is int
        assert 1 <= found.epoch <= n
        assert all(type(value) is float and math.isfinite(value) for value in found.evidence.values())
        assert found.evidence["epochs"] == n
        assert found.sentence.endswith(".")
        assert found.suggestion.endswith(".")


@pytest.mark.filterwarnings("error")
def test_whatever_the_values_it_never_raises() -> None:
    draw = random.Random(0)
    for _ in range(500):
        n = draw.randint(1, 25)
        values = [0.0, 1e-300, 1e-9, 0.1, 0.3, 0.5, 2.3, 1e9, *([NAN, INF] if draw.random() < 0.3 else [])]
        columns = [[draw.choice(values) for _ in range(n)] for _ in range(2)]
        rows = table(columns[0], columns[1], [draw.choice([0.0, 0.1, 0.9, 1.0, NAN]) for _ in range(n)])
        found = diagnose(rows)
        finite = all(map(math.isfinite, columns[0] + columns[1]))
        assert found.kind == "diverged" or finite


def test_an_empty_table_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(UsageError) as caught:
        diagnose([])
    assert (
        str(caught.value)
        == "No epoch was finished, so there is nothing to diagnose. Train at least one: train.epochs=1"
    )


# ---------------------------------------------------------------- what it says


def of(name: str) -> Diagnosis:
    return diagnose(CURVES[name][0])


def test_underfit_names_the_falls_and_what_another_epoch_is_expected_to_bring() -> None:
    found = of("four epochs at a small rate")
    assert found.sentence == (
        "Still falling (training and validation loss): from epoch 1 to 4 validation loss went from 1.108 to 0.5206, "
        "training loss from 1.886 to 0.7918. One more epoch may lower validation loss by 0.066."
    )
    assert found.override == "train.epochs=8"
    assert of("one epoch").sentence == "One epoch is no trend: losses 1 and 0.5 (validation)."
    assert of("one epoch").override == "train.epochs=5"
    assert "Still falling (training loss)" in of("two epochs, the second worse").sentence
    assert "Still falling (validation loss)" in of("training loss is at its floor").sentence


@pytest.mark.parametrize("n", [3, 4, 5, 10, 30])
@pytest.mark.parametrize("factor", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("floor", [0.0, 0.2])
def test_the_next_fall_of_a_geometric_curve_is_known(n: int, factor: float, floor: float) -> None:
    losses = fall(n + 1, 2.0, floor, factor)
    assert Curve(np.array(losses[:n])).next_fall() == pytest.approx(losses[n - 1] - losses[n])


@pytest.mark.parametrize("share", [0.01, 0.03])
def test_the_next_fall_of_a_noisy_curve_is_a_cautious_one(share: float) -> None:
    for factor in (0.9, 0.97):
        losses = fall(41, 2.0, 0, factor)
        falls = [Curve(np.array(noisy(losses[:40], share, seed))).next_fall() for seed in range(20)]
        assert all(0 <= x < 4 * (losses[39] - losses[40]) for x in falls)


def test_no_fall_is_expected_to_be_larger_than_the_last_or_than_the_loss() -> None:
    for losses in (
        [1.0, 0.9, 0.6, 0.2],
        [1.0, 0.99, 0.5, 0.4],
        [1.0, 0.5, 0.0],
        [1.0, 0.1],
        [1.0, 0.5, 0.7],
        [0.0, 0.0],
    ):
        expected = Curve(np.array(losses)).next_fall()
        assert 0 <= expected <= min(losses[-1], max(losses[-2] - losses[-1], 0))


def test_overfit_names_the_rise_and_the_gap_then_and_now() -> None:
    found = of("few training images")
    assert found.sentence == (
        "Validation loss rose beyond noise (1.1%): from epoch 7 to 27 validation loss went from 0.6576 to 0.7518, "
        "training loss from 0.1255 to 0.0023, the gap from 0.5321 to 0.7495; only the loss is "
        "overfit, for accuracy still rose from 0.8429 to 0.8852."
    )
    assert found.override == "model.dropout=0.3 augment=shift"
    assert found.evidence["gap_at_best"] == pytest.approx(0.5321)
    assert found.evidence["gap"] == pytest.approx(0.7495)
    assert found.evidence["best_epoch"] == 7


def test_where_accuracy_grows_on_only_the_loss_is_overfit_and_it_says_so() -> None:
    assert of("accuracy grows on").sentence.endswith(
        "; only the loss is overfit, for accuracy still rose from 0.7921 to 0.95."
    )
    assert "accuracy" not in of("accuracy falls").sentence


def test_converged_names_the_change_and_the_epochs_that_are_enough() -> None:
    found = of("only training loss falls on")
    assert found.sentence == (
        "Validation loss has changed by no more than its noise (1.0%): from epoch 9 to 20 validation loss went from "
        "0.3027 to 0.3, training loss from 0.2092 to 0.01841."
    )
    assert found.suggestion == "9 epochs are enough."
    assert found.override == "train.epochs=9"
    assert found.evidence["change"] == pytest.approx(0.3 - 0.3027, abs=1e-4)


def test_oscillating_names_where_and_a_third_of_the_rate() -> None:
    found = of("SGD at a high rate")
    assert found.sentence == (
        "Validation loss went up and down between epochs 12 and 15: last it rose from 0.4474 to 0.9604 and "
        "from 0.4554 to 0.5885."
    )
    assert found.override == "optimizer.lr=0.0333"
    assert of("only training loss").sentence.startswith("Training loss went up and down between epochs 11 and 20")


def test_diverged_names_the_values_and_a_tenth_of_the_rate() -> None:
    found = of("infinite, and NaN from then on")
    assert found.sentence == "In epoch 3 training loss is 0.6 and validation loss inf."
    assert found.override == "optimizer.lr=0.01"
    assert of("a CNN at a rate of 1").sentence.startswith(
        "Accuracy is 0.1, no better than guessing one of 10 classes: "
    )
    assert of("both losses climb").sentence == (
        "Both losses have risen: from epoch 6 to 20 validation loss went from 0.5 to 0.8, "
        "training loss from 0.4 to 0.7."
    )


def test_the_rate_is_the_one_given_or_the_highest_in_the_table() -> None:
    rows = [{**row, "lr": 0.3 / row["epoch"]} for row in CURVES["never learned"][0]]
    assert diagnose(rows).override == "optimizer.lr=0.03"
    assert diagnose(rows, lr=1e-4).override == "optimizer.lr=1e-05"
    assert diagnose([{**row, "lr": NAN} for row in rows]).override == "optimizer.lr=0.001"


def test_what_guessing_gives_depends_on_the_number_of_classes() -> None:
    flat = table([0.69] * 6, [0.69] * 6, [0.52] * 6)
    assert diagnose(flat).kind == "converged"
    assert diagnose(flat, classes=2).kind == "diverged"


def test_every_override_is_one_of_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(live.CHECKOUT)
    overrides = {
        "underfit": "train.epochs=",
        "overfit": "model.dropout=0.3 augment=shift",
        "converged": "train.epochs=",
        "oscillating": "optimizer.lr=",
        "diverged": "optimizer.lr=",
    }
    tried = set()
    for rows, kind, *_ in CURVES.values():
        for lr in (1e-5, 0.05, 1e12):
            override = diagnose(rows, lr=lr).override
            assert override.startswith(overrides[kind])
            if override not in tried:
                compose.load_config(override.split(), False)  # it raises where it is not allowed
                tried.add(override)
    for model in compose.list_options("model"):
        compose.load_config([f"model={model}", *overrides["overfit"].split()], False)


# ---------------------------------------------------------------- trainings made to show each
