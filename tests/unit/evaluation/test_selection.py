"""Which epoch is best and when training ends early: pure functions of the epoch table."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any, get_args

import numpy as np
import pytest

from bestepoch.base.config.groups import NoStoppingConfig, PatienceStoppingConfig, PlateauStoppingConfig
from bestepoch.base.config.schema import SelectionConfig
from bestepoch.base.config.types import Metric
from bestepoch.base.errors import UsageError
from bestepoch.components.schedules.early_stopping import early_stop_reason
from bestepoch.evaluation.selection import best_epoch, runner_up, select_epoch, smooth_metric, standard_error
from bestepoch.runs.journal import EPOCH_COLUMNS
from bestepoch.runs.tables import Row

NAN, INF = math.nan, math.inf


def table(losses: list[float], accuracies: list[float] | None = None, train: list[float] | None = None) -> list[Row]:
    """An epoch table with these values, beginning with epoch 1."""
    accuracies = accuracies or [0.5] * len(losses)
    train = train or [1.0] * len(losses)
    return [
        {
            "epoch": float(i),
            "iteration": 10.0 * i,
            "train/epoch_loss": train[i - 1],
            "train/eval_loss": train[i - 1] / 2,
            "train/eval_accuracy": accuracies[i - 1],
            "val/loss": losses[i - 1],
            "val/accuracy": accuracies[i - 1],
            "lr": 0.1 / i,  # later epochs would win, were it a metric
            "seconds": 5.0 - i,
            "time": 1000.0 + i,
        }
        for i in range(1, len(losses) + 1)
    ]


# ---------------------------------------------------------------- the best epoch


@pytest.mark.parametrize(
    ("rows", "metric", "mode", "best"),
    [
        (table([0.5, 0.3, 0.4]), "val/loss", "min", 2),
        (table([0.5, 0.3, 0.4]), "val/loss", "max", 1),
        (table([0.3, 0.4, 0.5]), "val/loss", "min", 1),
        (table([0.5, 0.4, 0.3]), "val/loss", "min", 3),
        (table([0.5, 0.3, 0.4], [0.8, 0.7, 0.9]), "val/accuracy", "max", 3),
        (table([0.5, 0.3, 0.4], [0.8, 0.7, 0.9]), "val/accuracy", "min", 2),
        (table([0.5, 0.3, 0.4], train=[0.2, 0.3, 0.1]), "train/epoch_loss", "min", 3),
        (table([0.5]), "val/loss", "min", 1),
        # of equals the one with the lower val/loss, in either direction of the metric
        (table([0.5, 0.3, 0.4], [0.9, 0.9, 0.9]), "val/accuracy", "max", 2),
        (table([0.5, 0.3, 0.4], [0.9, 0.9, 0.9]), "val/accuracy", "min", 2),
        (table([0.2, 0.5, 0.4], [0.8, 0.9, 0.9]), "val/accuracy", "max", 3),
        # of those still equal the earliest
        (table([0.4, 0.3, 0.3, 0.3]), "val/loss", "min", 2),
        (table([0.4, 0.4, 0.3], [0.9, 0.9, 0.8]), "val/accuracy", "max", 1),
        (table([0.4, 0.3, 0.3], [0.9, 0.9, 0.9]), "val/accuracy", "max", 2),
        # what is no finite number never wins, in either direction
        (table([NAN, 0.3, 0.4]), "val/loss", "min", 2),
        (table([NAN, NAN, 0.4]), "val/loss", "min", 3),
        (table([0.4, NAN, 0.3, NAN]), "val/loss", "min", 3),
        (table([-INF, 0.3]), "val/loss", "min", 2),
        (table([INF, 0.3]), "val/loss", "max", 2),
        (table([NAN, 0.3]), "val/loss", "max", 2),
        (table([0.4, 0.3, 0.2], [NAN, 0.7, 0.7]), "val/accuracy", "max", 3),
        (table([0.4, 0.3], [INF, 0.7]), "val/accuracy", "max", 2),
        # nor does an epoch whose loss is no number, whatever its accuracy
        (table([NAN, 0.9], [0.9, 0.9]), "val/accuracy", "max", 2),
        (table([-INF, 0.9], [0.9, 0.8]), "val/accuracy", "max", 2),
        (table([INF, 0.9, 0.8], [0.9, 0.7, 0.8]), "val/accuracy", "max", 3),
    ],
)
def test_the_best_epoch(rows: list[Row], metric: str, mode: str, best: int) -> None:
    before = [dict(row) for row in rows]
    chosen = best_epoch(rows, metric, mode)
    assert chosen["epoch"] == best
    assert chosen is rows[best - 1]
    assert str(rows) == str(before)  # the table is as it was


def test_the_order_of_the_rows_does_not_matter() -> None:
    rows = table([0.4, 0.3, NAN, 0.3, 0.5], [0.9, 0.8, 0.7, 0.8, 0.9])
    for shuffled in itertools.permutations(rows):
        assert best_epoch(list(shuffled), "val/loss", "min")["epoch"] == 2
        assert best_epoch(list(shuffled), "val/accuracy", "max")["epoch"] == 1


def test_the_best_epoch_is_that_of_a_plain_search() -> None:
    draw = random.Random(0)
    for _ in range(300):
        n = draw.randint(1, 8)
        losses = [draw.choice([0.1, 0.2, 0.3, NAN, INF]) for _ in range(n)]
        accuracies = [draw.choice([0.7, 0.8, NAN]) for _ in range(n)]
        rows = table(losses, accuracies)
        found, least = None, INF
        for row in rows:
            accuracy, loss = row["val/accuracy"], row["val/loss"]
            if not (math.isfinite(accuracy) and math.isfinite(loss)):
                continue
            if (
                found is None
                or accuracy > found["val/accuracy"]
                or (accuracy == found["val/accuracy"] and loss < least)
            ):
                found, least = row, loss
        if found is None:
            with pytest.raises(UsageError):
                best_epoch(rows, "val/accuracy", "max")
        else:
            assert best_epoch(rows, "val/accuracy", "max") is found


def test_without_a_finite_loss_there_is_no_best_accuracy() -> None:
    with pytest.raises(UsageError, match="No epoch has a finite val/accuracy and val/loss, so there is no best one "):
        best_epoch(table([NAN, INF], [0.9, 0.9]), "val/accuracy", "max")


@pytest.mark.parametrize("losses", [[NAN], [NAN, INF, -INF], []])
def test_without_a_finite_value_there_is_no_best_epoch(losses: list[float]) -> None:
    with pytest.raises(UsageError) as caught:
        best_epoch(table(losses), "val/loss", "min")
    assert str(caught.value) == (
        f"No epoch has a finite val/loss, so there is no best one ({len(losses)} epochs in the table)"
    )


@pytest.mark.parametrize("metric", ["val_loss", "accuracy", "", "test/loss"])
def test_a_metric_that_is_none_is_refused_and_the_real_ones_are_named(metric: str) -> None:
    with pytest.raises(UsageError) as caught:
        best_epoch(table([0.5, 0.3]), metric, "min")
    assert str(caught.value) == (
        f"{metric} is no column of epochs.csv; there are: train/epoch_loss, train/eval_loss, train/eval_accuracy, "
        "val/loss, val/accuracy, epoch, iteration, lr, seconds, time"
    )


def test_every_column_of_the_table_may_be_the_metric() -> None:
    assert set(get_args(Metric)) == set(EPOCH_COLUMNS)
    rows = table([0.5, 0.3, 0.4], [0.8, 0.7, 0.9], [1.0, 0.9, 0.8])
    for column in EPOCH_COLUMNS:
        values = [row[column] for row in rows]
        assert best_epoch(rows, column, "max")[column] == max(values)
        assert best_epoch(rows, column, "min")[column] == min(values)


# ---------------------------------------------------------------- smoothing and the rule of one standard error


def choice(**changes: Any) -> SelectionConfig:
    return SelectionConfig(**{"metric": "val/loss", "mode": "min", "rule": "best", "smoothing": 1, **changes})


def no_images(epoch: int) -> dict[str, np.ndarray]:
    raise AssertionError("the images are asked for where nobody needs them")


@pytest.mark.parametrize(
    ("losses", "window", "best"),
    [
        ([0.9, 0.1, 0.9, 0.5, 0.4, 0.45, 0.5], 1, 2),
        ([0.9, 0.1, 0.9, 0.5, 0.4, 0.45, 0.5], 3, 5),  # one lucky epoch among bad ones
        ([0.5, 0.4, 0.3], 3, 3),  # at the end the window has two epochs: 0.35, and 0.4 in the middle
        ([0.3, 0.4, 0.5], 3, 1),
        ([0.5, 0.4, 0.3, 0.4, 0.5], 99, 3),  # all windows are the whole table, and equal: the lower val/loss
        ([0.5, NAN, 0.3, 0.4], 3, 3),  # what is no number is in no window
        ([0.5, NAN, NAN, NAN], 3, 1),
    ],
)
def test_smoothing(losses: list[float], window: int, best: int) -> None:
    assert select_epoch(table(losses), choice(smoothing=window), no_images)["epoch"] == best


@pytest.mark.parametrize("window", [1, 3, 5])
def test_smoothed_values_are_plain_means(window: int) -> None:
    draw = random.Random(window)
    values = [draw.choice([0.1, 0.2, 0.7, NAN]) for _ in range(9)]
    found = smooth_metric(table(values), "val/loss", "min", window)
    for i, value in enumerate(values):
        around = [v for v in values[max(i - window // 2, 0) : i + window // 2 + 1] if math.isfinite(v)]
        if math.isfinite(value):
            assert found[i + 1] == pytest.approx(sum(around) / len(around))
        else:
            assert i + 1 not in found


def test_a_window_without_a_middle_is_refused() -> None:
    with pytest.raises(ValueError, match="must be odd"):
        choice(smoothing=4)


def test_one_standard_error_takes_the_earliest_epoch_that_is_as_good() -> None:
    """Nine images, losses around the mean with a standard deviation of 0.3: the standard error is 0.1."""
    around = 0.3 * np.array([1, -1, 1, -1, 1, -1, 1, -1, 0])
    rows = table([0.9, 0.62, 0.59, 0.5, 0.55])
    asked = []

    def fared(epoch: int) -> dict[str, np.ndarray]:
        asked.append(epoch)
        return {"losses": 0.5 + around, "correct": np.zeros(9)}

    assert standard_error(around) == pytest.approx(np.std(around, ddof=1) / 3) == pytest.approx(0.1)
    assert select_epoch(rows, choice(rule="one_standard_error"), fared)["epoch"] == 3
    assert asked == [4], "the error is that of the best epoch"
    assert select_epoch(rows, choice(), fared)["epoch"] == 4


def test_one_standard_error_of_accuracy() -> None:
    """Of 100 images 90 are right: the standard error is 0.03."""
    correct = np.array([1.0] * 90 + [0.0] * 10)
    rows = table([1.0] * 4, [0.86, 0.88, 0.9, 0.89])
    rule = choice(metric="val/accuracy", mode="max", rule="one_standard_error")
    assert standard_error(correct) == pytest.approx(0.03, rel=0.01)
    assert select_epoch(rows, rule, lambda epoch: {"losses": correct, "correct": correct})["epoch"] == 2


def test_one_standard_error_of_something_else_says_what_to_choose() -> None:
    with pytest.raises(UsageError, match=r"train/epoch_loss is not. Choose selection.metric=val/loss or val/accuracy"):
        select_epoch(table([0.5]), choice(metric="train/epoch_loss", rule="one_standard_error"), no_images)


def test_the_runner_up() -> None:
    rows = table([0.5, 0.3, NAN, 0.4])
    chosen = best_epoch(rows, "val/loss", "min")
    second = runner_up(rows, chosen, choice())
    assert second is rows[3]
    assert runner_up(rows[1:3], chosen, choice()) is None


# ---------------------------------------------------------------- early stopping


COUNTING: dict[str, Any] = {"min_delta": 0.0, "relative": False, "warmup_epochs": 0, "max_seconds": None}


def patience(epochs: int, **changes: Any) -> PatienceStoppingConfig:
    values = {"metric": "val/loss", "mode": "min", **COUNTING, **changes}
    return PatienceStoppingConfig(name="patience", patience=epochs, **values)


def stopped_after(rows: list[Row], menu: PatienceStoppingConfig | PlateauStoppingConfig) -> int | None:
    """The epoch after which a training with this table ends, asked after each epoch as training does."""
    for n in range(len(rows) + 1):
        if early_stop_reason(rows[:n], menu):
            return n
    return None


@pytest.mark.parametrize(
    ("losses", "menu", "after"),
    [
        ([0.5, 0.4, 0.3, 0.2], patience(1), None),
        ([0.5, 0.6], patience(1), 2),
        ([0.5, 0.5], patience(1), 2),  # equal is no improvement
        ([0.5, 0.6, 0.4, 0.5, 0.3], patience(1), 2),
        ([0.5, 0.6, 0.4, 0.5, 0.3], patience(2), None),
        ([0.5, 0.6, 0.7, 0.4], patience(2), 3),
        ([0.5, 0.6, 0.55, 0.7, 0.1], patience(3), 4),
        # an epoch that improves on its neighbour but not on the best does not count
        ([0.3, 0.6, 0.5, 0.4, 0.35], patience(4), 5),
        # an improvement sets the count back
        ([0.5, 0.6, 0.4, 0.5, 0.6], patience(2), 5),
        # min_delta: an improvement must be larger than it
        ([0.5, 0.45, 0.4, 0.35], patience(1, min_delta=0.0625), 2),
        ([0.5, 0.375, 0.25], patience(1, min_delta=0.0625), None),
        ([0.5, 0.25], patience(1, min_delta=0.25), 2),  # exactly as large is not larger
        # small steps add up, since they are measured from the last improvement that counted
        ([0.5, 0.45, 0.4, 0.35], patience(2, min_delta=0.0625), None),
        # the count begins after the warm-up
        ([0.5, 0.6, 0.7, 0.8], patience(1, warmup_epochs=2), 3),
        ([0.5, 0.6, 0.7, 0.8], patience(2, warmup_epochs=2), 4),
        ([0.5, 0.6, 0.7, 0.8], patience(1, warmup_epochs=4), None),
        # and what was best in the warm-up is what is to be beaten
        ([0.1, 0.5, 0.4, 0.3], patience(2, warmup_epochs=1), 3),
        # what is no number does not improve on anything, and stops nothing by itself
        ([NAN, 0.5, 0.4], patience(2), None),
        ([NAN, 0.5, 0.6, 0.7], patience(2), 4),
        ([NAN, NAN], patience(2), 2),
        ([0.5, NAN, 0.4, NAN, 0.3], patience(2), None),
        ([0.5, NAN, INF], patience(2), 3),
        ([-INF, 0.5, 0.4], patience(2), None),
        ([], patience(1), None),
    ],
)
def test_early_stopping(losses: list[float], menu: PatienceStoppingConfig, after: int | None) -> None:
    assert stopped_after(table(losses), menu) == after


def test_early_stopping_on_something_that_should_grow() -> None:
    menu = patience(2, metric="val/accuracy", mode="max")
    assert stopped_after(table([1.0] * 5, [0.5, 0.6, 0.55, 0.6, 0.9]), menu) == 4
    assert stopped_after(table([1.0] * 5, [0.5, 0.6, 0.55, 0.61, 0.9]), menu) is None
    auto = patience(2, metric="val/accuracy", mode="auto")
    assert auto.mode == "max"
    assert stopped_after(table([1.0] * 3, [0.9, 0.8, 0.7]), auto) == 3


def test_the_reason_names_the_metric_and_the_setting() -> None:
    rows = table([0.5, 0.6, 0.7])
    assert early_stop_reason(rows, patience(2)) == ("val/loss has not improved for 2 epochs (stopping.patience = 2)")
    # asked late, as by a run that is resumed with its table full already
    assert early_stop_reason(rows, patience(1)) == "val/loss has not improved for 2 epochs (stopping.patience = 1)"
    assert early_stop_reason(rows[:-1], patience(1)) == "val/loss has not improved for 1 epoch (stopping.patience = 1)"


def test_without_early_stopping_there_is_never_a_reason() -> None:
    for losses in ([], [NAN] * 50, [float(i) for i in range(50)]):
        assert early_stop_reason(table(losses), NoStoppingConfig(name="none")) is None


def test_min_delta_does_not_move_the_best_epoch() -> None:
    rows = table([0.5, 0.49, 0.48, 0.47])
    menu = patience(3, min_delta=0.1)
    assert stopped_after(rows, menu) == 4  # none of the small improvements counted
    assert best_epoch(rows, "val/loss", "min")["epoch"] == 4  # and yet the last is the best


def test_a_resumed_run_stops_where_one_that_never_stopped_does() -> None:
    draw = random.Random(1)
    for _ in range(100):
        rows = table([draw.choice([0.1, 0.2, 0.3, 0.4, NAN]) for _ in range(8)])
        menu = patience(draw.randint(1, 3), warmup_epochs=draw.randint(0, 2), min_delta=draw.choice([0.0, 0.125]))
        # a plain count, kept as training goes on
        best, waited, after = INF, 0, None
        for row in rows:
            if row["val/loss"] < best - menu.min_delta:
                best, waited = row["val/loss"], 0
            elif row["epoch"] > menu.warmup_epochs:
                waited += 1
            if waited >= menu.patience:
                after = int(row["epoch"])
                break
        assert stopped_after(rows, menu) == after


def test_a_relative_min_delta_is_a_share_of_what_is_to_be_beaten() -> None:
    small = [0.01, 0.0095, 0.009]
    assert stopped_after(table(small), patience(1, min_delta=0.1)) == 2, "0.1 is ten times the loss"
    assert stopped_after(table(small), patience(2, min_delta=0.04, relative=True)) is None
    assert stopped_after(table(small), patience(1, min_delta=0.06, relative=True)) == 2
    assert stopped_after(table([-1.0, -1.05]), patience(1, min_delta=0.1, relative=True)) == 2, "of a negative one too"


def test_a_budget_of_time_ends_training_with_the_epoch_that_exceeds_it() -> None:
    rows = [{**row, "seconds": 10.0} for row in table([0.5, 0.4, 0.3, 0.2])]
    assert stopped_after(rows, patience(9, max_seconds=25)) == 3
    assert stopped_after(rows, patience(9, max_seconds=30)) == 3
    assert stopped_after(rows, patience(9, max_seconds=41)) is None
    assert early_stop_reason(rows, patience(9, max_seconds=25)) == (
        "40 s of training are over the budget (stopping.max_seconds = 25)"
    )
    assert stopped_after(rows, level(9, max_seconds=25)) == 3


def level(window: int, **changes: Any) -> PlateauStoppingConfig:
    return PlateauStoppingConfig(
        name="plateau", window=window, **{"metric": "val/loss", "mode": "min", **COUNTING, **changes}
    )


@pytest.mark.parametrize(
    ("losses", "menu", "after"),
    [
        ([0.5, 0.4, 0.3, 0.2], level(1), None),
        ([0.5, 0.4, 0.4], level(1), 3),
        ([0.5, 0.3, 0.6, 0.1], level(2), None),  # 0.4, then 0.35: one bad epoch ends nothing
        ([0.5, 0.3, 0.6, 0.3], level(2), 4),  # 0.4, then 0.45
        ([0.5, 0.1, 0.4, 0.3, 0.4, 0.3, 0.2], level(3), 6),  # equal is no gain
        ([0.9, 0.1, 0.4, 0.4, 0.4], level(2, min_delta=0.2), 4),
        ([0.9, 0.5, 0.4, 0.4], level(2, min_delta=0.25), None),  # 0.7, then 0.4
        ([0.8, 0.4, 0.4, 0.4, 0.5], level(2, warmup_epochs=2), None),  # fewer than two windows after it
        ([0.1, 0.2, 0.4, 0.4, 0.5, 0.5], level(2, warmup_epochs=2), 6),
        ([0.5, NAN, 0.5, 0.5, 0.5], level(2), None),  # no mean to be had
        ([0.8, 0.6, 0.4, 0.4], level(1, min_delta=0.3, relative=True), 2),
        ([], level(1), None),
    ],
)
def test_stopping_at_a_level(losses: list[float], menu: PlateauStoppingConfig, after: int | None) -> None:
    assert stopped_after(table(losses), menu) == after


def test_a_level_of_something_that_should_grow() -> None:
    menu = level(2, metric="val/accuracy", mode="max")
    assert stopped_after(table([1.0] * 4, [0.5, 0.6, 0.7, 0.8]), menu) is None
    assert stopped_after(table([1.0] * 4, [0.5, 0.8, 0.6, 0.65]), menu) == 4
